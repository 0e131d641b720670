"""Qwen2-MoE (Qwen1.5-MoE): biased queries, keys and values, a shared expert behind a sigmoid gate.

Reference: ``transformers`` ``models/qwen2_moe`` (Apache-2.0), whose ``config.json`` fields and tensor names these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elmoe.models import hf_tensors
from elmoe.models.blocks import (
    FULL,
    SLIDING,
    decoder,
    grouped_query_attention,
    grouped_query_sizes,
    mixture_of_experts,
    sliding_layers,
    softmax_router,
    sparse_layers,
)
from elmoe.models.program import GroupedQueryAttention, MixtureOfExperts, Program
from elmoe.models.rotary import rope_of
from elmoe.models.shape import Config, ModelShape
from elmoe.models.source_tensors import Part

MODEL_TYPE = "qwen2_moe"
KV_HEADS = 16
"""What transformers takes where ``num_key_value_heads`` is missing."""


def shape(values: Mapping[str, Any]) -> ModelShape:
    """Sizes from the fields of ``config.json``; raises UnsupportedModelError naming an odd one."""
    config = Config(values)
    sizes = grouped_query_sizes(
        MODEL_TYPE, config, experts="num_experts", expert_hidden="moe_intermediate_size", kv_heads=KV_HEADS
    )
    sizes |= {
        "moe_layers": sparse_layers(config),
        "dense_hidden": config.integer("intermediate_size"),
        "shared_hidden": config.integer("shared_expert_intermediate_size"),
    }
    return ModelShape(**(sizes | sliding_layers(config, _layer_types(config, sizes["layers"]))))


def _layer_types(config: Config, layers: int) -> tuple[str, ...]:
    """As given, or every other of the first ``max_window_layers`` sliding where windows are in use."""
    config.require("use_sliding_window", (False, True, None), False)
    sliding = bool(config.values.get("use_sliding_window"))
    given = config.texts("layer_types", (SLIDING, FULL), layers)
    if given is None:
        last = config.integer("max_window_layers", 28, least=0) if sliding else 0
        return tuple(SLIDING if i % 2 == 0 and i < last else FULL for i in range(layers))
    if not sliding and SLIDING in given:
        config.require("use_sliding_window", (True,), False)
    return given


def program(values: Mapping[str, Any]) -> Program:
    """The layer program of a ``config.json``."""
    sizes, config = shape(values), Config(values)
    config.require("hidden_act", ("silu",), "silu")
    rope, renormalize = rope_of(values, sizes.head_dim), config.flag("norm_topk_prob")
    bias = config.flag("qkv_bias", True)

    def attention(index: int) -> GroupedQueryAttention:
        return grouped_query_attention(sizes, index, rope, qkv_bias=bias)

    def mixture(index: int) -> MixtureOfExperts:
        router = softmax_router(sizes, index, renormalize=renormalize)
        return mixture_of_experts(sizes, index, router, shared_gate=True)

    return decoder(sizes, config.number("rms_norm_eps", 1e-6), attention, mixture)


def parts(values: Mapping[str, Any], name: str) -> tuple[Part, ...]:
    """Parts of the stored dense tensor `name`."""
    return hf_tensors.usual_parts(shape(values), name, shared="mlp.shared_expert")


def expert_parts(values: Mapping[str, Any], layer: int, expert: int) -> tuple[Part, Part, Part]:
    """(gate, up, down) of one expert; `layer` counts all layers."""
    return hf_tensors.expert_parts(shape(values), layer, expert)


ignored = hf_tensors.past_the_last_layer
