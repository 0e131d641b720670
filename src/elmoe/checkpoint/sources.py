"""Which rows of which Hugging Face tensors make a stored matrix, and their quantisation.

Rows are quantised apart from one another, so a stored matrix can be made in blocks of rows and needs memory for
one block only. Knows nothing about where the result goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from elmoe.checkpoint.safetensors_folder import SafetensorsFolder
from elmoe.errors import CheckpointError, TensorError
from elmoe.models.program import GatedMlp, Linear, Program
from elmoe.models.registry import Family
from elmoe.models.shape import ModelShape
from elmoe.quant.bitnested import Float16, Float32, Int8, quantize
from elmoe.quant.tiles import TILE_ROWS

Scalar = TypeVar("Scalar", bound=np.generic)

BLOCK_WEIGHTS = 1 << 18
"""Weights quantised at a time: 1 MiB in FP32, so that the temporaries of `quantize` stay in the caches."""
INTERLEAVE_ROWS = 2 * TILE_ROWS
"""Blocks of rows start on multiples of this: a gate block and its up block."""


@dataclass(frozen=True)
class MatrixSource:
    """The tensors (name, rows) that make a stored matrix: stacked, or interleaved in blocks of 16 rows."""

    linear: Linear
    parts: tuple[tuple[str, int], ...]
    interleaved: bool = False

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of stored rows (first, last) to quantise at a time, in order."""
        rows = max(1, BLOCK_WEIGHTS // self.linear.inputs // INTERLEAVE_ROWS) * INTERLEAVE_ROWS
        return ((first, min(first + rows, self.linear.outputs)) for first in range(0, self.linear.outputs, rows))

    def source_bytes(self, source: SafetensorsFolder, first: int, last: int) -> int:
        """Bytes read from the source for stored rows, an even share of the matrix."""
        total = sum(source.check(name, (rows, self.linear.inputs)) for name, rows in self.parts)
        return total * last // self.linear.outputs - total * first // self.linear.outputs

    def quantized(self, source: SafetensorsFolder, first: int, last: int) -> tuple[Int8, Float16]:
        """Codes int8 [last-first, K] and scales float16 [last-first, K/32] of stored rows."""
        pieces: list[tuple[Int8, Float16]] = []
        if self.interleaved:
            for name, _ in self.parts:
                pieces.append(_quantize_rows(source, name, first // 2, last // 2))
            gate, up = pieces
            return _interleave(gate[0], up[0]), _interleave(gate[1], up[1])
        start = 0
        for name, rows in self.parts:
            lower, upper = max(first - start, 0), min(last - start, rows)
            if lower < upper:
                pieces.append(_quantize_rows(source, name, lower, upper))
            start += rows
        return np.concatenate([codes for codes, _ in pieces]), np.concatenate([scales for _, scales in pieces])


@dataclass(frozen=True)
class VectorSource:
    """The tensors (name, shape) that, stacked, make an FP32 tensor."""

    name: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]

    def read(self, source: SafetensorsFolder) -> Float32:
        """The tensor; TensorError for NaN or Inf."""
        pieces: list[Float32] = []
        for name, dims in self.parts:
            piece = source.rows(name, 0, dims[0]).astype(np.float32)
            if not np.isfinite(piece).all():
                raise TensorError(f"{name}: NaN or Inf; the checkpoint is damaged, fetch it again")
            pieces.append(piece)
        return np.concatenate(pieces)


@dataclass(frozen=True)
class ModelSources:
    """Everything that a program stores, in stored order. `experts[layer][expert]` is (gate_up, down)."""

    linears: tuple[MatrixSource, ...]
    vectors: tuple[VectorSource, ...]
    experts: tuple[tuple[tuple[MatrixSource, MatrixSource], ...], ...]

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every source tensor."""
        matrices = [*self.linears, *(matrix for layer in self.experts for pair in layer for matrix in pair)]
        for matrix in matrices:
            yield from ((name, (rows, matrix.linear.inputs)) for name, rows in matrix.parts)
        for vector in self.vectors:
            yield from vector.parts


def model_sources(family: Family, shape: ModelShape, program: Program) -> ModelSources:
    """Map every stored tensor of a program to the tensors of its Hugging Face checkpoint."""
    splits = _splits(program)
    linears = []
    for linear in program.linears:
        rows = splits.get(linear.name, (linear.outputs,))
        parts = tuple(zip(family.hf_names(linear.name), rows, strict=True))
        linears.append(MatrixSource(linear, parts, linear.name.endswith("gate_up")))
    bias_splits = {linear.bias: splits.get(linear.name) for linear in program.linears if linear.bias}
    vectors = []
    for name, dims in program.vectors.items():
        heights = bias_splits.get(name) or (dims[0],)
        parts_of = zip(family.hf_names(name), heights, strict=True)
        vectors.append(VectorSource(name, tuple((part, (rows, *dims[1:])) for part, rows in parts_of)))
    experts = tuple(
        tuple(
            _expert_sources(block.expert, family.hf_expert_names(shape.moe_layers[block.layer], expert))
            for expert in range(shape.experts)
        )
        for block in program.moe_blocks
    )
    return ModelSources(tuple(linears), tuple(vectors), experts)


def check_sources(sources: ModelSources, source: SafetensorsFolder, shape: ModelShape) -> tuple[int, int]:
    """(tensors, bytes) that a conversion will read, once every header is known to be as the program wants it.

    Raises CheckpointError for a missing, misshapen or unexpected tensor (one that the program would drop in
    silence), UnsupportedModelError for a dtype.
    """
    wanted = dict(sources.tensors())
    size_bytes = sum(source.check(name, dims) for name, dims in wanted.items())
    for name in source.tensors:
        tied = shape.tied_head and name == "lm_head.weight"
        if name not in wanted and not tied and not name.endswith("rotary_emb.inv_freq"):
            raise CheckpointError(
                f"{source.path}: tensor {name} has no place in the {shape.family} model of config.json; "
                "the weights and config.json are not of the same model"
            )
    return len(wanted), size_bytes


def _splits(program: Program) -> dict[str, tuple[int, ...]]:
    """Rows of the source tensors of those matrices that are made of several."""
    splits: dict[str, tuple[int, ...]] = {}
    for layer in program.layers:
        attention = layer.attention
        query, key = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        splits[attention.qkv.name] = (query, key, key)
        if isinstance(layer.ffn, GatedMlp):
            splits[layer.ffn.gate_up.name] = _halves(layer.ffn.gate_up)
    return splits


def _expert_sources(expert: GatedMlp, names: tuple[str, str, str]) -> tuple[MatrixSource, MatrixSource]:
    gate_up = tuple(zip(names[:2], _halves(expert.gate_up), strict=True))
    return MatrixSource(expert.gate_up, gate_up, True), MatrixSource(expert.down, ((names[2], expert.down.outputs),))


def _halves(gate_up: Linear) -> tuple[int, int]:
    return gate_up.outputs // 2, gate_up.outputs // 2


def _quantize_rows(source: SafetensorsFolder, name: str, first: int, last: int) -> tuple[Int8, Float16]:
    title = name if first == 0 else f"{name} (counted from row {first})"
    return quantize(source.rows(name, first, last), title)


def _interleave(gate: npt.NDArray[Scalar], up: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """[F, X] and [F, X] -> [2F, X]: gate rows 0-15, up rows 0-15, gate rows 16-31, ..."""
    split = (gate.shape[0] // TILE_ROWS, TILE_ROWS, gate.shape[1])
    return np.stack([gate.reshape(split), up.reshape(split)], axis=1).reshape(2 * gate.shape[0], -1)
