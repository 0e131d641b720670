"""OLMoE: q/k norms over all heads at once, optional clipping of queries, keys and values.

Reference: ``transformers`` ``models/olmoe`` (Apache-2.0), whose ``config.json`` fields and tensor names these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from elmoe.models import hf_tensors
from elmoe.models.blocks import (
    decoder,
    grouped_query_attention,
    grouped_query_sizes,
    mixture_of_experts,
    softmax_router,
)
from elmoe.models.program import GroupedQueryAttention, MixtureOfExperts, Program, RmsNorm
from elmoe.models.rotary import rope_of
from elmoe.models.shape import Config, ModelShape
from elmoe.models.source_tensors import Part

MODEL_TYPE = "olmoe"


def shape(values: Mapping[str, Any]) -> ModelShape:
    """Sizes from the fields of ``config.json``; raises UnsupportedModelError naming an odd one."""
    config = Config(values)
    sizes = grouped_query_sizes(MODEL_TYPE, config, experts="num_experts", expert_hidden="intermediate_size")
    config.require("head_dim", (sizes["hidden"] // sizes["heads"], None))
    config.require("sliding_window", (None,))
    return ModelShape(**sizes)


def program(values: Mapping[str, Any]) -> Program:
    """The layer program of a ``config.json``."""
    sizes, config = shape(values), Config(values)
    config.require("hidden_act", ("silu",), "silu")
    eps, bias = config.number("rms_norm_eps", 1e-5), config.flag("attention_bias")
    rope, renormalize = rope_of(values, sizes.head_dim), config.flag("norm_topk_prob")
    clip = None if values.get("clip_qkv") is None else config.number("clip_qkv", 1.0)

    def attention(index: int) -> GroupedQueryAttention:
        prefix = f"layers.{index}.attention"
        return replace(
            grouped_query_attention(sizes, index, rope, qkv_bias=bias, out_bias=bias),
            query_norm=RmsNorm(f"{prefix}.query_norm", sizes.heads * sizes.head_dim, eps),
            key_norm=RmsNorm(f"{prefix}.key_norm", sizes.kv_heads * sizes.head_dim, eps),
            clip=clip,
        )

    def mixture(index: int) -> MixtureOfExperts:
        return mixture_of_experts(sizes, index, softmax_router(sizes, index, renormalize=renormalize))

    return decoder(sizes, eps, attention, mixture)


def parts(values: Mapping[str, Any], name: str) -> tuple[Part, ...]:
    """Parts of the stored dense tensor `name`."""
    sizes = shape(values)
    widths = {"query_norm": sizes.heads, "key_norm": sizes.kv_heads}
    (part, *others) = hf_tensors.usual_parts(sizes, name)
    piece = name.rpartition(".")[2]
    if piece in widths:
        return (hf_tensors.whole(part.tensor, widths[piece] * sizes.head_dim),)
    return part, *others


def expert_parts(values: Mapping[str, Any], layer: int, expert: int) -> tuple[Part, Part, Part]:
    """(gate, up, down) of one expert; `layer` counts all layers."""
    return hf_tensors.expert_parts(shape(values), layer, expert)


ignored = hf_tensors.past_the_last_layer
