"""Mixtral: plain grouped-query attention, an optional window in all layers, weights always renormalised.

Reference: ``transformers`` ``models/mixtral`` (Apache-2.0), whose ``config.json`` fields these are; tensor names are
those of the checkpoints (w1 gate, w3 up, w2 down).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elmoe.models import hf_tensors
from elmoe.models.blocks import (
    decoder,
    grouped_query_attention,
    grouped_query_sizes,
    mixture_of_experts,
    softmax_router,
)
from elmoe.models.program import GroupedQueryAttention, MixtureOfExperts, Program
from elmoe.models.rotary import rope_of
from elmoe.models.shape import Config, ModelShape
from elmoe.models.source_tensors import Part

MODEL_TYPE = "mixtral"
KV_HEADS = 8
"""What transformers takes where ``num_key_value_heads`` is missing."""
THETA = 1e6


def shape(values: Mapping[str, Any]) -> ModelShape:
    """Sizes from the fields of ``config.json``; raises UnsupportedModelError naming an odd one."""
    config = Config(values)
    sizes = grouped_query_sizes(
        MODEL_TYPE, config, experts="num_local_experts", expert_hidden="intermediate_size", kv_heads=KV_HEADS
    )
    if values.get("sliding_window") is not None:
        sizes |= {"window": config.integer("sliding_window"), "windowed_layers": tuple(range(sizes["layers"]))}
    return ModelShape(**sizes)


def program(values: Mapping[str, Any]) -> Program:
    """The layer program of a ``config.json``."""
    sizes, config = shape(values), Config(values)
    config.require("hidden_act", ("silu",), "silu")
    rope = rope_of(values, sizes.head_dim, THETA)

    def attention(index: int) -> GroupedQueryAttention:
        return grouped_query_attention(sizes, index, rope)

    def mixture(index: int) -> MixtureOfExperts:
        return mixture_of_experts(sizes, index, softmax_router(sizes, index, renormalize=True))

    return decoder(sizes, config.number("rms_norm_eps", 1e-5), attention, mixture)


def parts(values: Mapping[str, Any], name: str) -> tuple[Part, ...]:
    """Parts of the stored dense tensor `name`."""
    return hf_tensors.usual_parts(shape(values), name, router="block_sparse_moe.gate")


def expert_parts(values: Mapping[str, Any], layer: int, expert: int) -> tuple[Part, Part, Part]:
    """(gate, up, down) of one expert; `layer` counts all layers."""
    sizes, module = shape(values), f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
    return hf_tensors.gated_parts(module, sizes.hidden, sizes.expert_hidden, ("w1", "w3", "w2"))


ignored = hf_tensors.past_the_last_layer
