"""Which rows of which source tensors make a stored tensor, and their quantisation.

Rows are quantised apart from one another, so a stored matrix can be made in blocks of rows and needs memory for
one block only. Knows nothing about file formats (`weight_source.py`) or about where the result goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from elmoe.checkpoint.weight_source import Int8Rows, Mxfp4Rows, WeightSource, floats
from elmoe.errors import CheckpointError, InternalError, TensorError
from elmoe.models.program import GatedMlp, Linear, Program, Storage
from elmoe.models.registry import Family
from elmoe.models.shape import ModelShape
from elmoe.models.source_tensors import Part
from elmoe.quant.bitnested import GROUP, Float16, Float32, Int8, UInt8, quantize
from elmoe.quant.mxfp4 import halved_scales
from elmoe.quant.tiles import TILE_ROWS, pack, pack_mxfp4

Scalar = TypeVar("Scalar", bound=np.generic)
Parts = tuple[Part, ...]

BLOCK_WEIGHTS = 1 << 18
"""Weights quantised at a time: 1 MiB in FP32, so that the temporaries of `quantize` stay in the caches."""
INTERLEAVE_ROWS = 2 * TILE_ROWS
"""Blocks of rows start on multiples of this: a gate block and its up block."""


@dataclass(frozen=True)
class MatrixSource:
    """The parts that make a stored matrix: stacked, or interleaved in blocks of 16 rows."""

    linear: Linear
    parts: Parts
    interleaved: bool = False

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of stored rows (first, last) to quantise at a time, in order."""
        rows = max(1, BLOCK_WEIGHTS // self.linear.inputs // INTERLEAVE_ROWS) * INTERLEAVE_ROWS
        return ((first, min(first + rows, self.linear.outputs)) for first in range(0, self.linear.outputs, rows))

    def source_bytes(self, source: WeightSource, first: int, last: int) -> int:
        """Bytes read from the source for stored rows, an even share of the matrix."""
        total = sum(source.check(part) for part in self.parts)
        return total * last // self.linear.outputs - total * first // self.linear.outputs

    def planes(self, source: WeightSource, first: int, last: int) -> tuple[UInt8, UInt8]:
        """Tiles of stored rows, (MSB plane, LSB plane): what is there bit for bit, floats quantised.

        Raises TensorError for NaN, Inf and values beyond the format's range.
        """
        if self.linear.storage is Storage.MXFP4:
            return pack_mxfp4(*self._stacked(first, last, lambda *rows: _mxfp4_rows(source, *rows))), _NOTHING
        return pack(*self._stacked(first, last, lambda *rows: _int8_rows(source, self.linear.inputs, *rows)))

    def _stacked(
        self, first: int, last: int, read: Callable[[Part, int, int], tuple[npt.NDArray[Any], npt.NDArray[Any]]]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Codes and scales of stored rows, from those of rows of parts."""
        if self.interleaved:
            gate, up = (read(part, first // 2, last // 2) for part in self.parts)
            return _interleave(gate[0], up[0]), _interleave(gate[1], up[1])
        pieces = []
        start = 0
        for part in self.parts:
            lower, upper = max(first - start, 0), min(last - start, part.rows)
            if lower < upper:
                pieces.append(read(part, lower, upper))
            start += part.rows
        return np.concatenate([codes for codes, _ in pieces]), np.concatenate([scales for _, scales in pieces])


@dataclass(frozen=True)
class VectorSource:
    """The parts that, stacked, make an FP32 tensor; where `interleaved`, pairs of them in blocks of 16 rows."""

    name: str
    parts: Parts
    interleaved: bool = False

    def source_bytes(self, source: WeightSource) -> int:
        """Bytes read from the source."""
        return sum(source.check(part) for part in self.parts)

    def read(self, source: WeightSource) -> Float32:
        """The tensor, flat; TensorError for NaN or Inf."""
        pieces: list[Float32] = []
        for part in self.parts:
            rows = floats(source.read(part, 0, part.rows), part.tensor).astype(np.float32)
            if not np.isfinite(rows).all():
                raise TensorError(f"{_title(part, 0)}: NaN or Inf; the checkpoint is damaged, fetch it again")
            pieces.append(rows)
        if self.interleaved:
            pieces = [_interleave(gate, up) for gate, up in zip(pieces[::2], pieces[1::2], strict=True)]
        return np.concatenate([piece.reshape(-1) for piece in pieces])


@dataclass(frozen=True)
class ModelSources:
    """Everything that a program stores, in stored order. `experts[layer][expert]` is (gate_up, down)."""

    linears: tuple[MatrixSource, ...]
    vectors: tuple[VectorSource, ...]
    experts: tuple[tuple[tuple[MatrixSource, MatrixSource], ...], ...]

    def matrices(self) -> Iterator[MatrixSource]:
        """Dense matrices, then the experts'."""
        yield from self.linears
        yield from (matrix for layer in self.experts for pair in layer for matrix in pair)

    def parts(self) -> Iterator[Part]:
        """Parts of all source tensors."""
        for matrix in self.matrices():
            yield from matrix.parts
        for vector in self.vectors:
            yield from vector.parts


def model_sources(family: Family, values: Mapping[str, Any], shape: ModelShape, program: Program) -> ModelSources:
    """Map every stored tensor of the program of ``config.json`` `values` to the tensors of its checkpoint."""
    gated = {mlp.gate_up.name: mlp.gate_up.bias for mlp in _gated_mlps(program)}
    biases = set(gated.values())
    linears = tuple(
        MatrixSource(linear, family.parts(values, linear.name), linear.name in gated) for linear in program.linears
    )
    vectors = tuple(VectorSource(name, family.parts(values, name), name in biases) for name in program.vectors)
    experts = tuple(
        tuple(
            _expert_sources(block.expert, family.expert_parts(values, shape.moe_layers[block.layer], expert))
            for expert in range(shape.experts)
        )
        for block in program.moe_blocks
    )
    sources = ModelSources(linears, vectors, experts)
    for matrix in sources.matrices():
        _check_fit(matrix)
    return sources


def check_sources(
    sources: ModelSources, source: WeightSource, shape: ModelShape, ignored: Callable[[str], bool]
) -> tuple[int, int]:
    """(tensors, bytes) that a conversion will read, once every header is known to be as the program wants it.

    `ignored` says which tensors the family leaves out on purpose. Raises CheckpointError for a missing, misshapen or
    unexpected tensor (one that the program would drop in silence), UnsupportedModelError for a dtype.
    """
    parts = tuple(sources.parts())
    size_bytes = sum(source.check(part) for part in parts)
    for matrix in sources.matrices():
        if matrix.linear.storage is Storage.MXFP4:
            for part in matrix.parts:
                _check_mxfp4(source, part)
    unused = source.unused(parts)
    for name in unused:
        tied = shape.tied_head and name == "lm_head.weight"
        if not tied and not name.endswith("rotary_emb.inv_freq") and not ignored(name):
            raise CheckpointError(
                f"{source.path}: tensor {name} has no place in the {shape.family} model of config.json; "
                "the weights and config.json are not of the same model"
            )
    return len(source.tensors) - len(unused), size_bytes


_NOTHING = np.empty(0, dtype=np.uint8)


def _gated_mlps(program: Program) -> Iterator[GatedMlp]:
    for layer in program.layers:
        if layer.dense_mlp is not None:
            yield layer.dense_mlp
    for block in program.moe_blocks:
        yield block.expert


def _expert_sources(expert: GatedMlp, parts: tuple[Part, Part, Part]) -> tuple[MatrixSource, MatrixSource]:
    return MatrixSource(expert.gate_up, parts[:2], True), MatrixSource(expert.down, parts[2:])


def _check_fit(matrix: MatrixSource) -> None:
    """A family module whose program and parts disagree is a bug."""
    rows, widths = sum(part.rows for part in matrix.parts), {part.width for part in matrix.parts}
    if rows != matrix.linear.outputs or not all(width <= matrix.linear.inputs for width in widths):
        raise InternalError(f"{matrix.linear}: its parts have {rows} rows of {sorted(widths)}")


def _check_mxfp4(source: WeightSource, part: Part) -> None:
    if not isinstance(source.read(part, 0, 1), Mxfp4Rows):
        raise CheckpointError(
            f"{source.path}: {part.tensor} is not MXFP4, though quantization_config of config.json says so; "
            "fetch the model again, or remove quantization_config if the weights were dequantised"
        )


def _title(part: Part, first: int) -> str:
    """A part's name for messages about rows that are counted from `first` of its rows."""
    name = part.tensor if part.slabs == 1 else f"{part.tensor}[{part.slab}]"
    if (part.order, part.step, part.transposed) != (None, 1, False):
        return f"{name} (rows as elmoe orders them, counted from row {first})"
    first += part.first
    return name if first == 0 else f"{name} (counted from row {first})"


def _mxfp4_rows(source: WeightSource, part: Part, first: int, last: int) -> tuple[UInt8, UInt8]:
    rows = source.read(part, first, last)
    if not isinstance(rows, Mxfp4Rows):
        raise InternalError(f"{part.tensor} is not MXFP4")
    halved_scales(rows.scales, _title(part, first))  # refuses NaN
    return rows.codes, rows.scales


def _int8_rows(source: WeightSource, inputs: int, part: Part, first: int, last: int) -> tuple[Int8, Float16]:
    """Codes [last-first, inputs] and scales of rows of a part, padded with zeros."""
    title = _title(part, first)
    rows = source.read(part, first, last)
    pad = inputs - part.width
    if isinstance(rows, Int8Rows) and pad % GROUP == 0:
        if not np.isfinite(rows.scales).all():
            row = int(np.argwhere(~np.isfinite(rows.scales))[0, 0])
            raise TensorError(f"{title}: NaN or Inf scale in row {row}; the checkpoint is damaged, fetch it again")
        return np.pad(rows.codes, ((0, 0), (0, pad))), np.pad(rows.scales, ((0, 0), (0, pad // GROUP)))
    values = floats(rows, title)
    return quantize(np.pad(values, ((0, 0), (0, pad))) if pad else values, title)


def _interleave(gate: npt.NDArray[Scalar], up: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """[F, X] and [F, X] -> [2F, X]: gate rows 0-15, up rows 0-15, gate rows 16-31, ..."""
    split = (gate.shape[0] // TILE_ROWS, TILE_ROWS, gate.shape[1])
    return np.stack([gate.reshape(split), up.reshape(split)], axis=1).reshape(2 * gate.shape[0], -1)
