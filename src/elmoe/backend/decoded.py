"""Weights of a checkpoint as the reference backend multiplies them, decoded at first use and kept.

One matrix at one draft quality is one array of FP32-held integer codes. A draft at the stored width reads MSB planes
alone; other widths and treatments, which exist to be compared, are derived from the merged codes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from elmoe.backend.protocol import DraftQuality
from elmoe.checkpoint.folder import Checkpoint
from elmoe.models.program import GatedMlp, Linear, MixtureOfExperts, Storage
from elmoe.quant import mxfp4
from elmoe.quant.bitnested import (
    GROUP,
    STORED_DRAFT_BITS,
    Float16,
    Float32,
    Int8,
    Treatment,
    UInt8,
    dequantize,
    draft_codes,
    quantize_dedicated,
)
from elmoe.quant.tiles import TILE_ROWS, unpack, unpack_draft, unpack_mxfp4

TARGET = DraftQuality(bits=8)
"""Undegraded weights."""


class Activations(Enum):
    """Arithmetic of the linear layers."""

    INT8 = "int8"
    """The product's: INT8 activations in groups of 32, FP16 keys and values."""
    FP32 = "fp32"
    """For comparison with other implementations on dequantised weights: FP32 activations, keys and values."""


@dataclass(frozen=True)
class Decoded:
    """A weight matrix [N, K] ready for products, G = K/32."""

    codes: Float32
    """[G, 32, N] integers held in FP32; for FP32 activations: dequantised weights [1, K, N]."""
    scales: Float32
    """[G, N]."""

    def rows(self, first: int, last: int) -> Decoded:
        """Some rows of the matrix: the block of one head."""
        return Decoded(
            np.ascontiguousarray(self.codes[..., first:last]), np.ascontiguousarray(self.scales[..., first:last])
        )


class DecodedWeights:
    """Matrices by name and quality, vectors by name."""

    def __init__(self, checkpoint: Checkpoint, activations: Activations) -> None:
        self.checkpoint, self.activations = checkpoint, activations
        self._matrices: dict[Hashable, Decoded] = {}
        self._experts: dict[Hashable, tuple[Decoded, Decoded]] = {}
        self._vectors: dict[str, Float32] = {}

    def vector(self, name: str) -> Float32:
        """An FP32 tensor."""
        if name not in self._vectors:
            self._vectors[name] = np.array(self.checkpoint.vector(name), dtype=np.float32)
        return self._vectors[name]

    def linear(self, linear: Linear, quality: DraftQuality) -> Decoded:
        """A dense matrix."""
        key = (linear.name, quality.bits, quality.treatment)
        if key not in self._matrices:
            msb, lsb = self.checkpoint.linear_planes(linear.name)
            self._matrices[key] = self._decode(linear, quality, msb, lambda: lsb)
        return self._matrices[key]

    def expert(self, block: MixtureOfExperts, expert: int, quality: DraftQuality) -> tuple[Decoded, Decoded]:
        """(gate_up, down) of one expert. At the stored draft width the LSB record is not touched."""
        gate_up, down = block.expert.gate_up, block.expert.down
        if gate_up.storage is Storage.MXFP4:
            quality = TARGET
        key = (block.layer, expert, quality.bits, quality.treatment)
        if key not in self._experts:
            msb_split, lsb_split = gate_up.plane_bytes
            msb = self.checkpoint.expert_msb(block.layer, expert)

            def lsb() -> UInt8:
                return self.checkpoint.expert_lsb(block.layer, expert)

            self._experts[key] = (
                self._decode(gate_up, quality, msb[:msb_split], lambda: lsb()[:lsb_split]),
                self._decode(down, quality, msb[msb_split:], lambda: lsb()[lsb_split:]),
            )
        return self._experts[key]

    def _decode(self, linear: Linear, quality: DraftQuality, msb: UInt8, lsb: Callable[[], UInt8]) -> Decoded:
        codes, scales = _codes(linear, quality, msb, lsb)
        if self.activations is Activations.FP32:
            wide = codes.reshape(*scales.shape, GROUP).astype(np.float32) * scales.astype(np.float32)[..., None]
            weights = np.ascontiguousarray(wide.reshape(codes.shape).T)[None]
            return Decoded(weights, np.ones((1, linear.outputs), dtype=np.float32))
        grouped = codes.reshape(linear.outputs, -1, GROUP).transpose(1, 2, 0)  # [G, 32, N]
        return Decoded(
            np.ascontiguousarray(grouped, dtype=np.float32), np.ascontiguousarray(scales.T, dtype=np.float32)
        )


def _codes(
    linear: Linear, quality: DraftQuality, msb: UInt8, lsb: Callable[[], UInt8]
) -> tuple[Int8, Float16 | Float32]:
    """Codes [N, K] and scales [N, G] of a matrix at a quality, from its planes; MXFP4 has one quality."""
    rows, inputs = linear.outputs, linear.inputs
    if linear.storage is Storage.MXFP4:
        floats, exponents = unpack_mxfp4(msb, rows, inputs)
        return mxfp4.doubled(floats), mxfp4.halved_scales(exponents, linear.name)
    if quality.bits == STORED_DRAFT_BITS and quality.treatment is Treatment.AUGMENT:
        return unpack_draft(msb, rows, inputs)
    codes, scales = unpack(msb, lsb(), rows, inputs)
    if quality.bits == TARGET.bits:
        return codes, scales
    if quality.treatment is Treatment.DEDICATED:
        return quantize_dedicated(dequantize(codes, scales), quality.bits)
    return draft_codes(codes, quality.bits, quality.treatment), scales


def gate_and_up(block_interleaved: Float32, spec: GatedMlp) -> tuple[Float32, Float32]:
    """Undo the 16-row interleave of `GatedMlp.gate_up`: [M, 2F] -> gate [M, F], up [M, F]."""
    by_block = block_interleaved.reshape(len(block_interleaved), -1, 2, TILE_ROWS)
    halves = np.ascontiguousarray(by_block.transpose(2, 0, 1, 3))
    gate, up = halves.reshape(2, len(block_interleaved), spec.down.inputs)
    return gate, up
