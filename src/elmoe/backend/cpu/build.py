"""Hands a checkpoint's layer program and weights over to the C++ core, once.

Weights stay where they are mapped: the native model keeps views of the `.elmoe` files. Knows nothing about passes.
"""

from __future__ import annotations

import numpy as np

from elmoe.backend.cpu import _native
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import ConfigError
from elmoe.models.program import GatedMlp, Layer, Linear, MixtureOfExperts, RmsNorm, Rope
from elmoe.quant.bitnested import Float32

HEAD_DIM_MULTIPLE = 32
MAX_EXPERTS_PER_TOK = 64


def build_model(checkpoint: Checkpoint) -> tuple[_native.Model, dict[Rope, int]]:
    """The native model of a checkpoint, and the number that it gave to each rotary embedding.

    Dense weights are checked against their CRC now, an expert's record when a pass first reads it. Raises
    CheckpointError for damaged weights, ConfigError for shapes that the kernels do not take.
    """
    builder = _Builder(checkpoint)
    return builder.build(), builder.ropes


class _Builder:
    def __init__(self, checkpoint: Checkpoint) -> None:
        shape = checkpoint.shape
        if shape.experts_per_tok > MAX_EXPERTS_PER_TOK:
            raise ConfigError(
                f"{shape.experts_per_tok} experts per token are more than the cpu backend's {MAX_EXPERTS_PER_TOK}; "
                "use --backend reference"
            )
        self._checkpoint = checkpoint
        self._program = checkpoint.program
        blocks = self._program.moe_blocks
        counts = (len(blocks), shape.experts, shape.experts_per_tok) if blocks else (0, 0, 0)
        self._model = _native.Model(shape.vocab, shape.hidden, *counts)
        self._matrices: dict[str, _native.Matrix] = {}
        self.ropes: dict[Rope, int] = {}

    def build(self) -> _native.Model:
        self._model.set_embedding(self._matrix(self._program.embedding))
        for layer in self._program.layers:
            self._add_layer(layer)
        norm = self._program.final_norm
        self._model.set_head(self._matrix(self._program.head), self._vector(norm.name), norm.eps)
        return self._model

    def _add_layer(self, layer: Layer) -> None:
        attention = layer.attention
        if attention.head_dim % HEAD_DIM_MULTIPLE:
            raise ConfigError(
                f"heads of {attention.head_dim} dimensions are not a multiple of {HEAD_DIM_MULTIPLE}, which the cpu "
                "backend needs; use --backend reference"
            )
        head_norms = [norm for norm in (attention.query_norm, attention.key_norm) if norm is not None]
        self._model.add_layer(
            attention_norm=self._vector(layer.attention_norm.name),
            attention_eps=layer.attention_norm.eps,
            qkv=self._matrix(attention.qkv),
            out=self._matrix(attention.out),
            heads=attention.heads,
            kv_heads=attention.kv_heads,
            head_dim=attention.head_dim,
            rope=self._rope(attention.rope),
            query_norm=self._norm_or_none(attention.query_norm),
            key_norm=self._norm_or_none(attention.key_norm),
            head_eps=head_norms[0].eps if head_norms else 0.0,
            ffn_norm=self._vector(layer.ffn_norm.name),
            ffn_eps=layer.ffn_norm.eps,
        )
        if isinstance(layer.ffn, GatedMlp):
            self._model.set_mlp(self._matrix(layer.ffn.gate_up), self._matrix(layer.ffn.down))
        else:
            self._set_experts(layer.ffn)

    def _set_experts(self, block: MixtureOfExperts) -> None:
        records = range(block.router.experts)
        msb = [self._checkpoint.expert_extent("msb", block.layer, expert) for expert in records]
        lsb = [self._checkpoint.expert_extent("lsb", block.layer, expert) for expert in records]
        crcs = self._checkpoint.crcs
        self._model.set_experts(
            moe_layer=block.layer,
            router=self._vector(block.router.weight),
            experts_per_tok=block.router.experts_per_tok,
            renormalize=block.router.renormalize,
            inner=block.expert.down.inputs,
            msb_file=self._checkpoint.mapped(msb[0].file),
            lsb_file=self._checkpoint.mapped(lsb[0].file),
            msb_offsets=np.array([extent.offset for extent in msb], dtype=np.int64),
            lsb_offsets=np.array([extent.offset for extent in lsb], dtype=np.int64),
            msb_crc=np.array([crcs[extent] for extent in msb], dtype=np.uint32),
            lsb_crc=np.array([crcs[extent] for extent in lsb], dtype=np.uint32),
        )

    def _matrix(self, linear: Linear) -> _native.Matrix:
        if linear.name not in self._matrices:  # a tied head is the embedding again
            msb, lsb = self._checkpoint.linear_planes(linear.name)
            bias = None if linear.bias is None else self._vector(linear.bias)
            self._matrices[linear.name] = _native.Matrix(msb, lsb, linear.outputs, linear.inputs, bias)
        return self._matrices[linear.name]

    def _vector(self, name: str) -> Float32:
        return np.ascontiguousarray(self._checkpoint.vector(name), dtype=np.float32)

    def _norm_or_none(self, norm: RmsNorm | None) -> Float32 | None:
        return None if norm is None else self._vector(norm.name)

    def _rope(self, rope: Rope) -> int:
        if rope not in self.ropes:
            self.ropes[rope] = self._model.add_rope()
        return self.ropes[rope]
