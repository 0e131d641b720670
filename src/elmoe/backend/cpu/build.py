"""Hands a checkpoint's layer program and weights over to the C++ core, once.

Weights stay where they are: the native model keeps views of the mapped `.elmoe` files, or of the memory they were read
into. Knows nothing about passes.
"""

from __future__ import annotations

import numpy as np

from elmoe.backend.cpu import _native
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import ConfigError
from elmoe.models.program import (
    GatedMlp,
    GroupedQueryAttention,
    GroupScore,
    LatentAttention,
    Layer,
    Linear,
    MixtureOfExperts,
    RmsNorm,
    Rope,
    Scoring,
    Storage,
)
from elmoe.quant.bitnested import Float32

MAX_EXPERTS_PER_TOK, MAX_GROUPS = 64, 256


def build_model(checkpoint: Checkpoint, experts_mapped: bool = True) -> tuple[_native.Model, dict[Rope, int]]:
    """The native model of a checkpoint, and the number that it gave to each rotary embedding.

    experts_mapped: experts are computed from the mapped files; else they have no memory until a store gives them some.

    Dense weights are checked against their CRC now, an expert's record when a pass first reads it. Raises
    CheckpointError for damaged weights, ConfigError for shapes that the kernels do not take.
    """
    builder = _Builder(checkpoint, experts_mapped)
    return builder.build(), builder.ropes


class _Builder:
    def __init__(self, checkpoint: Checkpoint, experts_mapped: bool) -> None:
        shape = checkpoint.shape
        if shape.experts_per_tok > MAX_EXPERTS_PER_TOK:
            raise ConfigError(
                f"{shape.experts_per_tok} experts per token are more than the cpu backend's {MAX_EXPERTS_PER_TOK}; "
                "use --backend reference"
            )
        self._checkpoint, self._experts_mapped = checkpoint, experts_mapped
        self._program = checkpoint.program
        blocks = self._program.moe_blocks
        counts = (len(blocks), shape.experts, shape.experts_per_tok) if blocks else (0, 0, 0)
        self._model = _native.Model(shape.vocab, shape.hidden, *counts)
        self._matrices: dict[str, _native.Matrix] = {}
        self.ropes: dict[Rope, int] = {}

    def build(self) -> _native.Model:
        program = self._program
        self._model.set_embedding(self._matrix(program.embedding))
        self._model.set_scales(program.embedding_scale, program.residual_scale, program.logit_divisor)
        for layer in program.layers:
            self._add_layer(layer)
        self._model.set_head(self._matrix(program.head), self._vector(program.final_norm.name), program.final_norm.eps)
        return self._model

    def _add_layer(self, layer: Layer) -> None:
        self._model.add_layer(
            attention_norm=self._vector(layer.attention_norm.name),
            attention_eps=layer.attention_norm.eps,
            ffn_norm=self._vector(layer.ffn_norm.name),
            ffn_eps=layer.ffn_norm.eps,
        )
        if isinstance(layer.attention, LatentAttention):
            self._set_latent(layer.attention)
        else:
            self._set_grouped(layer.attention)
        if isinstance(layer.ffn, GatedMlp):
            self._model.set_mlp(self._matrix(layer.ffn.gate_up), self._matrix(layer.ffn.down))
            return
        self._set_router(layer.ffn)
        self._set_experts(layer.ffn)
        if layer.ffn.shared is not None:
            shared = layer.ffn.shared
            gate = self._vector_or_none(layer.ffn.shared_gate)
            self._model.set_shared_experts(self._matrix(shared.gate_up), self._matrix(shared.down), gate)

    def _set_grouped(self, attention: GroupedQueryAttention) -> None:
        head_norms = [norm for norm in (attention.query_norm, attention.key_norm) if norm is not None]
        self._model.set_grouped_attention(
            qkv=self._matrix(attention.qkv),
            out=self._matrix(attention.out),
            heads=attention.heads,
            kv_heads=attention.kv_heads,
            head_dim=attention.head_dim,
            rope=self._rope(attention.rope),
            score_scale=attention.score_scale,
            query_norm=self._norm_or_none(attention.query_norm),
            key_norm=self._norm_or_none(attention.key_norm),
            head_eps=head_norms[0].eps if head_norms else 0.0,
            clip=attention.clip or 0.0,
            window=attention.window or 0,
            sinks=self._vector_or_none(attention.sinks),
        )

    def _set_latent(self, attention: LatentAttention) -> None:
        query_up = attention.query_up
        self._model.set_latent_attention(
            down=self._matrix(attention.down),
            query_norm=self._norm_or_none(attention.query_norm),
            query_eps=0.0 if attention.query_norm is None else attention.query_norm.eps,
            query_up=None if query_up is None else self._matrix(query_up),
            latent_norm=self._vector(attention.latent_norm.name),
            latent_eps=attention.latent_norm.eps,
            key_up=self._matrix(attention.key_up),
            value_up=self._matrix(attention.value_up),
            out=self._matrix(attention.out),
            heads=attention.heads,
            nope_dim=attention.nope_dim,
            rope_dim=attention.rope_dim,
            latent_dim=attention.latent_dim,
            value_dim=attention.value_dim,
            rope=self._rope(attention.rope),
            score_scale=attention.score_scale,
        )

    def _set_router(self, block: MixtureOfExperts) -> None:
        router = block.router
        if router.groups > MAX_GROUPS:
            raise ConfigError(
                f"{router.groups} groups of experts are more than the cpu backend's {MAX_GROUPS}; "
                "use --backend reference"
            )
        self._model.set_router(
            moe_layer=block.layer,
            weight=self._vector(router.weight),
            bias=self._vector_or_none(router.bias),
            correction=self._vector_or_none(router.correction),
            experts_per_tok=router.experts_per_tok,
            sigmoid=router.scoring is Scoring.SIGMOID,
            renormalize=router.renormalize,
            scale=router.scale,
            groups=router.groups,
            groups_kept=router.groups_kept,
            best_two=router.group_score is GroupScore.BEST_TWO,
        )

    def _set_experts(self, block: MixtureOfExperts) -> None:
        records = range(block.router.experts)
        msb = [self._checkpoint.expert_extent("msb", block.layer, expert) for expert in records]
        lsb = [self._checkpoint.expert_extent("lsb", block.layer, expert) for expert in records]
        crcs, clamped, mapped = self._checkpoint.crcs, block.expert.clamped, self._experts_mapped
        self._model.set_experts(
            inner=block.expert.down.inputs,
            mxfp4=block.expert.gate_up.storage is Storage.MXFP4,
            msb_file=self._checkpoint.mapped(msb[0].file) if mapped else None,
            lsb_file=self._checkpoint.mapped(lsb[0].file) if mapped else None,
            msb_offsets=np.array([extent.offset for extent in msb], dtype=np.int64),
            lsb_offsets=np.array([extent.offset for extent in lsb], dtype=np.int64),
            msb_crc=np.array([crcs[extent] for extent in msb], dtype=np.uint32),
            lsb_crc=np.array([crcs[extent] for extent in lsb], dtype=np.uint32),
            gate_up_bias=self._vector_or_none(block.expert.gate_up.bias),
            down_bias=self._vector_or_none(block.expert.down.bias),
            alpha=clamped.alpha if clamped else 0.0,
            limit=clamped.limit if clamped else 0.0,
        )

    def _matrix(self, linear: Linear) -> _native.Matrix:
        if linear.name not in self._matrices:  # a tied head is the embedding again
            msb, lsb = self._checkpoint.linear_planes(linear.name)
            bias = None if linear.bias is None else self._vector(linear.bias)
            self._matrices[linear.name] = _native.Matrix(msb, lsb, linear.outputs, linear.inputs, bias)
        return self._matrices[linear.name]

    def _vector(self, name: str) -> Float32:
        return np.ascontiguousarray(self._checkpoint.vector(name), dtype=np.float32)

    def _vector_or_none(self, name: str | None) -> Float32 | None:
        return None if name is None else self._vector(name)

    def _norm_or_none(self, norm: RmsNorm | None) -> Float32 | None:
        return None if norm is None else self._vector(norm.name)

    def _rope(self, rope: Rope) -> int:
        if rope not in self.ropes:
            self.ropes[rope] = self._model.add_rope()
        return self.ropes[rope]
