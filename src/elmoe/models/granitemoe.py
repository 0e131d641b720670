"""Granite-MoE: multipliers of embedding, scores, residuals and logits; experts fused into one tensor per layer.

Reference: ``transformers`` ``models/granitemoe`` (Apache-2.0), whose ``config.json`` fields these are; tensor names
are those of the checkpoints.
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
from elmoe.models.program import GroupedQueryAttention, MixtureOfExperts, Program
from elmoe.models.rotary import rope_of
from elmoe.models.shape import Config, ModelShape
from elmoe.models.source_tensors import Part

MODEL_TYPE = "granitemoe"


def shape(values: Mapping[str, Any]) -> ModelShape:
    """Sizes from the fields of ``config.json``; raises UnsupportedModelError naming an odd one."""
    config = Config(values)
    return ModelShape(
        **grouped_query_sizes(MODEL_TYPE, config, experts="num_local_experts", expert_hidden="intermediate_size")
    )


def program(values: Mapping[str, Any]) -> Program:
    """The layer program of a ``config.json``."""
    sizes, config = shape(values), Config(values)
    config.require("hidden_act", ("silu",), "silu")
    rope, bias = rope_of(values, sizes.head_dim), config.flag("attention_bias")
    score_scale = config.number("attention_multiplier", 1.0)

    def attention(index: int) -> GroupedQueryAttention:
        plain = grouped_query_attention(sizes, index, rope, qkv_bias=bias, out_bias=bias)
        return replace(plain, score_scale=score_scale)

    def mixture(index: int) -> MixtureOfExperts:
        # A softmax over the chosen logits: the same as one over all, renormalised.
        return mixture_of_experts(sizes, index, softmax_router(sizes, index, renormalize=True))

    return replace(
        decoder(sizes, config.number("rms_norm_eps", 1e-6), attention, mixture),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        residual_scale=config.number("residual_multiplier", 1.0),
        logit_divisor=config.number("logits_scaling", 1.0),
    )


def parts(values: Mapping[str, Any], name: str) -> tuple[Part, ...]:
    """Parts of the stored dense tensor `name`."""
    return hf_tensors.usual_parts(shape(values), name, router="block_sparse_moe.router.layer")


def expert_parts(values: Mapping[str, Any], layer: int, expert: int) -> tuple[Part, Part, Part]:
    """(gate, up, down) of one expert; `layer` counts all layers. Gate and up rows follow each other in one tensor."""
    sizes, module = shape(values), f"model.layers.{layer}.block_sparse_moe"
    hidden, inner, experts = sizes.hidden, sizes.expert_hidden, sizes.experts
    fused, fused_shape = f"{module}.input_linear.weight", (experts, 2 * inner, hidden)
    return (
        Part(fused, fused_shape, inner, expert, experts),
        Part(fused, fused_shape, inner, expert, experts, first=inner),
        Part(f"{module}.output_linear.weight", (experts, hidden, inner), hidden, expert, experts),
    )


ignored = hf_tensors.past_the_last_layer
