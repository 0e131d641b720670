"""Qwen3-MoE: grouped-query attention with per-head q/k norms, softmax-top-k experts, optional dense layers.

Reference: ``transformers`` ``models/qwen3_moe`` (Apache-2.0), whose ``config.json`` fields and tensor names these are.
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
    sparse_layers,
)
from elmoe.models.program import GroupedQueryAttention, MixtureOfExperts, Program, RmsNorm
from elmoe.models.rotary import rope_of
from elmoe.models.shape import Config, ModelShape
from elmoe.models.source_tensors import Part

MODEL_TYPE = "qwen3_moe"
KV_HEADS = 4
"""What transformers takes where ``num_key_value_heads`` is missing."""


def shape(values: Mapping[str, Any]) -> ModelShape:
    """Sizes from the fields of ``config.json``; raises UnsupportedModelError naming an odd one."""
    config = Config(values)
    sizes = grouped_query_sizes(
        MODEL_TYPE, config, experts="num_experts", expert_hidden="moe_intermediate_size", kv_heads=KV_HEADS
    )
    sizes |= {"moe_layers": sparse_layers(config), "dense_hidden": config.integer("intermediate_size")}
    config.require("use_sliding_window", (False, True, None), False)
    if values.get("use_sliding_window"):
        sizes |= {"window": config.integer("sliding_window"), "windowed_layers": tuple(range(sizes["layers"]))}
    return ModelShape(**sizes)


def program(values: Mapping[str, Any]) -> Program:
    """The layer program of a ``config.json``."""
    sizes, config = shape(values), Config(values)
    config.require("hidden_act", ("silu",), "silu")
    eps, bias = config.number("rms_norm_eps", 1e-6), config.flag("attention_bias")
    rope, renormalize = rope_of(values, sizes.head_dim), config.flag("norm_topk_prob")

    def attention(index: int) -> GroupedQueryAttention:
        prefix = f"layers.{index}.attention"
        return replace(
            grouped_query_attention(sizes, index, rope, qkv_bias=bias, out_bias=bias),
            query_norm=RmsNorm(f"{prefix}.query_norm", sizes.head_dim, eps),
            key_norm=RmsNorm(f"{prefix}.key_norm", sizes.head_dim, eps),
        )

    def mixture(index: int) -> MixtureOfExperts:
        return mixture_of_experts(sizes, index, softmax_router(sizes, index, renormalize=renormalize))

    return decoder(sizes, eps, attention, mixture)


def parts(values: Mapping[str, Any], name: str) -> tuple[Part, ...]:
    """Parts of the stored dense tensor `name`."""
    return hf_tensors.usual_parts(shape(values), name)


def expert_parts(values: Mapping[str, Any], layer: int, expert: int) -> tuple[Part, Part, Part]:
    """(gate, up, down) of one expert; `layer` counts all layers."""
    return hf_tensors.expert_parts(shape(values), layer, expert)


ignored = hf_tensors.past_the_last_layer
