"""Bit-nested INT8 codes: one stored weight is the 8-bit target and, by its upper bits alone, the draft.

A weight matrix [N, K] is quantised symmetrically in groups of 32 along K, with an FP16 scale per group; the
grid, the rounding and the scales are those of GGUF's ``Q8_0``. A code ``q`` in [-127, 127] is cut at a draft
width of ``bits``: ``msb = q >> (8 - bits)`` (arithmetic) and ``lsb = q & (2**(8 - bits) - 1)``, so that
``q = (msb << (8 - bits)) + lsb`` exactly. The draft reads only ``msb``.

Knows nothing about files, models or kernels. Source: ELMoE-3D (arXiv 2604.14626), "bit-nested quantization"
and "LSB-augmented bit slicing"; GGUF ``Q8_0`` of llama.cpp.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError, TensorError

GROUP = 32
"""Weights that share one scale, along the input dimension."""

MIN_DRAFT_BITS, MAX_DRAFT_BITS = 2, 7
STORED_DRAFT_BITS = 4
"""Width at which `.elmoe` files cut the codes: an MSB plane of 4 bits and an LSB plane of 4 bits."""

Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float16 = npt.NDArray[np.float16]


class Treatment(Enum):
    """How a draft value is made from a weight: the paper's choice and what it is compared with."""

    AUGMENT = "augment"
    """``msb`` with a constant half unit below it: a rounding approximation that costs no stored bit."""
    TRUNCATE = "truncate"
    """``msb`` with zeros below it: conventional bit slicing."""
    ROUND = "round"
    """The nearest representable slice; needs other bits than the stored ones."""
    DEDICATED = "dedicated"
    """A separate low-bit copy with scales of its own; needs its own memory."""


def weight_groups(weights: npt.NDArray[Any], name: str) -> tuple[Float32, Float32]:
    """The groups of a weight matrix [N, K] as FP32 ``[N*K/32, 32]``, and their largest magnitudes ``[N*K/32, 1]``.

    Raises TensorError naming `name` for NaN or Inf (also what becomes Inf in FP32), and for a K that is not a
    multiple of 32.
    """
    if weights.ndim != 2 or weights.shape[1] % GROUP:
        raise TensorError(
            f"{name}: shape {list(weights.shape)} cannot be quantised; "
            f"a matrix whose last dimension is a multiple of {GROUP} is needed"
        )
    with np.errstate(over="ignore"):
        blocks = np.asarray(weights, dtype=np.float32).reshape(-1, GROUP)
    amax = np.abs(blocks).max(axis=1, keepdims=True, initial=0.0)
    if not np.isfinite(amax).all():
        row = _first_row(~np.isfinite(amax), weights.shape[1])
        raise TensorError(f"{name}: NaN or Inf in row {row}; the checkpoint is damaged, fetch it again")
    return blocks, amax


def _fp16_scales(scale: Float32, name: str, shape: tuple[int, ...], top: int) -> Float16:
    """FP32 scales of the groups -> FP16 [N, K/32]; `top` is the largest code, for the message."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    if not np.isfinite(half).all():
        row = _first_row(~np.isfinite(half), shape[1])
        raise TensorError(f"{name}: row {row} exceeds the FP16 scale range (|w| > {top * 65504:.3g})")
    return half.reshape(shape[0], shape[1] // GROUP)


def _first_row(bad_groups: npt.NDArray[np.bool_], inputs: int) -> int:
    return int(np.flatnonzero(bad_groups)[0]) * GROUP // inputs


def quantize(weights: npt.NDArray[Any], name: str = "tensor") -> tuple[Int8, Float16]:
    """Quantise a weight matrix to INT8 in groups of 32.

    weights [N, K] (any float type, K a multiple of 32) -> codes int8 [N, K] in [-127, 127] and scales float16
    [N, K/32]. Bit-compatible with GGUF ``Q8_0``: ``d = amax/127`` in FP32, codes are ``w * (1/d)`` rounded half
    away from zero with the unrounded ``d``, and ``d`` is then stored as FP16. A scale below the FP16 range
    becomes 0, as there: the group reads as zeros.

    Raises TensorError naming `name` for NaN or Inf, for a group whose scale overflows FP16
    (|w| > 127 * 65504), and for a K that is not a multiple of 32.
    """
    blocks, amax = weight_groups(weights, name)
    scale = amax / np.float32(127.0)
    half = _fp16_scales(scale, name, weights.shape, 127)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1.0) / scale)
        inverse[~np.isfinite(inverse)] = 0  # scale below 2**-128: the group reads as zeros in any case
        scaled = blocks * inverse
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    magnitude = whole + np.floor(np.float32(2) * (magnitude - whole))  # half away from zero, exactly
    codes = np.copysign(magnitude, scaled).astype(np.int8)
    return codes.reshape(weights.shape), half


def dequantize(codes: Int8, scales: Float16) -> Float32:
    """Codes [N, K] int8 and scales [N, K/32] -> weights [N, K] float32, each an exact product."""
    groups = codes.reshape(*scales.shape, GROUP).astype(np.float32)
    return (groups * scales.astype(np.float32)[..., None]).reshape(codes.shape)


def _check_bits(bits: int) -> None:
    if not MIN_DRAFT_BITS <= bits <= MAX_DRAFT_BITS:
        raise ConfigError(f"draft bits must be {MIN_DRAFT_BITS} to {MAX_DRAFT_BITS}, not {bits}")


def slice_codes(codes: Int8, bits: int = STORED_DRAFT_BITS) -> tuple[Int8, UInt8]:
    """Cut codes int8 into msb int8, in ``[-2**(bits-1), 2**(bits-1)-1]``, and lsb uint8, in ``[0, 2**(8-bits)-1]``."""
    _check_bits(bits)
    low = 8 - bits
    return codes >> low, (codes & ((1 << low) - 1)).astype(np.uint8)


def merge_slices(msb: Int8, lsb: UInt8, bits: int = STORED_DRAFT_BITS) -> Int8:
    """Inverse of `slice_codes`, exact at every width."""
    _check_bits(bits)
    return ((msb.astype(np.int16) << (8 - bits)) + lsb).astype(np.int8)


def augmented(msb: Int8, bits: int = STORED_DRAFT_BITS) -> Int8:
    """Draft codes from the MSB slice alone, LSB-augmented: ``(msb << low) + 2**(low-1)`` with ``low = 8-bits``.

    The error ``q - augmented`` lies in ``[-2**(low-1), 2**(low-1)-1]`` ([-8, 7] at 4 bits).
    """
    _check_bits(bits)
    low = 8 - bits
    return ((msb.astype(np.int16) << low) + (1 << (low - 1))).astype(np.int8)


def draft_codes(codes: Int8, bits: int = STORED_DRAFT_BITS, treatment: Treatment = Treatment.AUGMENT) -> Int8:
    """Draft codes on the scale of the 8-bit codes, for the treatments that keep that scale.

    Raises ConfigError for `Treatment.DEDICATED`, which has scales of its own: see `quantize_dedicated`.
    """
    msb, _ = slice_codes(codes, bits)
    low = 8 - bits
    if treatment is Treatment.AUGMENT:
        return augmented(msb, bits)
    if treatment is Treatment.TRUNCATE:
        return (msb.astype(np.int16) << low).astype(np.int8)
    if treatment is Treatment.ROUND:
        nearest = (codes.astype(np.int16) + (1 << (low - 1))) >> low
        return (nearest.clip(max=(1 << (bits - 1)) - 1) << low).astype(np.int8)
    raise ConfigError("a dedicated copy has scales of its own; use quantize_dedicated")


def quantize_dedicated(
    weights: npt.NDArray[Any], bits: int = STORED_DRAFT_BITS, name: str = "tensor"
) -> tuple[Int8, Float16]:
    """A low-bit copy with its own group scales: weights [N, K] -> codes int8 [N, K], scales float16 [N, K/32].

    Symmetric round-to-nearest, ``d = amax / (2**(bits-1) - 1)``. What an INT4 checkpoint of the same model
    would hold; the rival that LSB augmentation is compared with. Raises TensorError like `quantize`.
    """
    _check_bits(bits)
    top = (1 << (bits - 1)) - 1
    blocks, amax = weight_groups(weights, name)
    scale = _fp16_scales(amax / np.float32(top), name, weights.shape, top)
    wide = scale.astype(np.float32).reshape(-1, 1)
    codes = np.clip(np.rint(blocks / np.where(wide == 0, np.float32(1), wide)), -top - 1, top)
    return codes.astype(np.int8).reshape(weights.shape), scale
