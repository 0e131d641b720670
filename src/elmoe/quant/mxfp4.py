"""MXFP4: 4-bit floating-point weights, 32 to a block, with one power-of-two scale per block.

OCP Microscaling Formats v1.0: elements are E2M1 (sign, two exponent bits, one mantissa bit: 0, 0.5, 1, 1.5, 2,
3, 4, 6), the shared scale is E8M0 (``2**(byte - 127)``, 255 is NaN). GPT-OSS stores its experts this way. All
E2M1 values doubled are integers, so that dot products with INT8 activations are exact; the scale is then
``2**(byte - 128)``. Where that is no normal FP32 number, bytes 0 and 1, elmoe's arithmetic takes 0: the kernels build
the scale from exponent bits alone, and all weights of such a block are below ``2**-123``.

`pack` writes the layout of the GPT-OSS checkpoints on Hugging Face: ``*_blocks`` [N, K/32, 16] and ``*_scales``
[N, K/32], both uint8; the low nibble of a byte is the element before the one in the high nibble. (GGUF pairs
element i with i + 16 instead.)

Knows nothing about files, models or kernels. Source: OCP Microscaling Formats (MX) Specification v1.0, sections
5.3.3 (E2M1), 5.4.1 (E8M0) and 6.3 (conversion).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.errors import TensorError
from elmoe.quant.bitnested import GROUP, Float32, Int8, UInt8, weight_groups

DOUBLED_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the E2M1 value of every code. Code 8 is -0, which the integer 0 stands for."""

BLOCK_BYTES = GROUP // 2
LARGEST_EXPONENT = 2
"""Exponent of 6.0, the largest E2M1 value: what is above it saturates."""
SCALE_BIAS = 127
SMALLEST_SCALE = 2
"""Byte of the smallest scale that is not taken as 0."""
SCALE_NAN = 255


def quantize(weights: npt.NDArray[Any], name: str = "tensor") -> tuple[UInt8, UInt8]:
    """Convert a weight matrix to MXFP4.

    weights [N, K] (any float type, taken as FP32; K a multiple of 32) -> codes uint8 [N, K] in [0, 15] and
    scales uint8 [N, K/32]. The scale is ``2**(floor(log2(amax)) - 2)``, at least ``2**-127``; elements are rounded
    half to even and saturate at 6 (OCP MX v1.0, section 6.3). A block of zeros has scale byte 0. Blocks with an amax
    below ``2**-123`` get scale bytes 0 and 1, which `dequantize` and the arithmetic take as 0.

    Raises TensorError naming `name` for NaN or Inf and for a K that is not a multiple of 32.
    """
    blocks, amax = weight_groups(weights, name)
    _, exponent = np.frexp(amax)  # amax = m * 2**exponent with m in [0.5, 1): floor(log2(amax)) = exponent - 1
    biased = np.where(amax == 0, 0, np.maximum(exponent - 1 - LARGEST_EXPONENT + SCALE_BIAS, 0))
    magnitude = np.ldexp(np.abs(blocks), SCALE_BIAS - biased)
    # Codes count up by one per step of 0.5 below 2, of 1 below 4, of 2 from there.
    step = np.select([magnitude < 2, magnitude < 4], [np.float32(0.5), np.float32(1)], np.float32(2))
    first = np.select([magnitude < 2, magnitude < 4], [np.float32(0), np.float32(2)], np.float32(4))
    codes = np.minimum(np.rint(magnitude / step) + first, 7).astype(np.uint8)
    codes |= np.signbit(blocks).astype(np.uint8) << np.uint8(3)
    scales = biased.astype(np.uint8).reshape(weights.shape[0], weights.shape[1] // GROUP)
    return codes.reshape(weights.shape), scales


def doubled(codes: UInt8) -> Int8:
    """Twice the values of the codes, int8 in [-12, 12]; the scales that go with them are `halved_scales`."""
    return np.array(DOUBLED_VALUES, dtype=np.int8)[codes]


def halved_scales(scales: UInt8, name: str = "tensor") -> Float32:
    """Half the shared scales, ``2**(byte - 128)``, exactly; 0 for bytes 0 and 1.

    Raises TensorError naming `name` for a NaN scale (255).
    """
    if (scales == SCALE_NAN).any():
        row = int(np.argwhere(scales == SCALE_NAN)[0, 0])
        raise TensorError(f"{name}: NaN block scale in row {row}; the checkpoint is damaged, fetch it again")
    powers = np.ldexp(np.float32(1), scales.astype(np.int32) - (SCALE_BIAS + 1))
    return np.where(scales < SMALLEST_SCALE, np.float32(0), powers)


def dequantize(codes: UInt8, scales: UInt8, name: str = "tensor") -> Float32:
    """Codes [N, K] and scales [N, K/32] -> weights [N, K] float32, each an exact product; 0 at scale bytes 0 and 1.

    Raises TensorError naming `name` for a NaN scale and for values beyond FP32 (scales from ``2**126`` on).
    """
    half = halved_scales(scales, name)
    groups = doubled(codes).reshape(*scales.shape, GROUP).astype(np.float32)
    with np.errstate(over="ignore"):
        weights = groups * half[..., None]
    if not np.isfinite(weights).all():
        row = int(np.argwhere(~np.isfinite(weights))[0, 0])
        raise TensorError(f"{name}: row {row} exceeds the FP32 range; the checkpoint is damaged, fetch it again")
    return weights.reshape(codes.shape)


def pack(codes: UInt8) -> UInt8:
    """Codes [N, K] -> ``*_blocks`` uint8 [N, K/32, 16]; element 2i in the low nibble, 2i + 1 in the high one."""
    pairs = codes.reshape(codes.shape[0], codes.shape[1] // GROUP, BLOCK_BYTES, 2)
    return pairs[..., 0] | pairs[..., 1] << np.uint8(4)


def unpack(blocks: UInt8) -> UInt8:
    """Inverse of `pack`: ``*_blocks`` uint8 [N, K/32, 16] -> codes [N, K]."""
    pairs = np.stack([blocks & np.uint8(15), blocks >> np.uint8(4)], axis=-1)
    return pairs.reshape(blocks.shape[0], blocks.shape[1] * GROUP)
