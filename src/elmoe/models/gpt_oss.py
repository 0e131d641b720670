"""GPT-OSS: attention sinks, windows in every other layer, biases everywhere, clamped SwiGLU, MXFP4 experts.

Reference: ``transformers`` ``models/gpt_oss`` (Apache-2.0), whose ``config.json`` fields these are; tensor names are
those of the checkpoints, which hold experts in MXFP4 or, dequantised, in BF16 and transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
)
from elmoe.models.program import ClampedSwiglu, GroupedQueryAttention, MixtureOfExperts, Program
from elmoe.models.rotary import rope_of
from elmoe.models.shape import Config, ModelShape
from elmoe.models.source_tensors import Part

MODEL_TYPE = "gpt_oss"
KV_HEADS = 8
"""What transformers takes where ``num_key_value_heads`` is missing."""
THETA = 150000.0
DEFAULT_SCALING = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""What transformers assumes when the file does not say."""
EXPERT_BIASES = {"expert.gate_up_bias": "gate_up_proj_bias", "expert.down_bias": "down_proj_bias"}


def shape(values: Mapping[str, Any]) -> ModelShape:
    """Sizes from the fields of ``config.json``; raises UnsupportedModelError naming an odd one."""
    config = Config(values)
    sizes = grouped_query_sizes(
        MODEL_TYPE, config, experts="num_local_experts", expert_hidden="intermediate_size", kv_heads=KV_HEADS
    )
    kinds = config.texts("layer_types", (SLIDING, FULL), sizes["layers"])
    if kinds is None:
        kinds = tuple(FULL if i % 2 else SLIDING for i in range(sizes["layers"]))
    sizes |= {"head_dim": config.integer("head_dim", 64)}
    return ModelShape(**(sizes | sliding_layers(config, kinds)))


def program(values: Mapping[str, Any]) -> Program:
    """The layer program of a ``config.json``."""
    sizes, config = shape(values), Config(values)
    config.require("hidden_act", ("silu",), "silu")
    bias = config.flag("attention_bias", True)
    scaled = bool(values.get("rope_scaling") or values.get("rope_parameters"))
    rope = rope_of(values if scaled else {**values, "rope_scaling": DEFAULT_SCALING}, sizes.head_dim, THETA)
    clamped = ClampedSwiglu(config.number("swiglu_alpha", 1.702), config.number("swiglu_limit", 7.0))

    def attention(index: int) -> GroupedQueryAttention:
        plain = grouped_query_attention(sizes, index, rope, qkv_bias=bias, out_bias=bias)
        return replace(plain, sinks=f"layers.{index}.attention.sinks")

    def mixture(index: int) -> MixtureOfExperts:
        # A softmax over the chosen logits: the same as one over all, renormalised.
        router = replace(softmax_router(sizes, index, renormalize=True), bias=f"layers.{index}.router_bias")
        return mixture_of_experts(sizes, index, router, biases=True, clamped=clamped)

    return decoder(sizes, config.number("rms_norm_eps", 1e-5), attention, mixture)


def parts(values: Mapping[str, Any], name: str) -> tuple[Part, ...]:
    """Parts of the stored dense tensor `name`, or of an expert bias vector."""
    sizes = shape(values)
    if name not in hf_tensors.WHOLE_MODEL:
        layer, tail = hf_tensors.split_name(name)
        if tail in EXPERT_BIASES:
            module = f"model.layers.{layer}.mlp.experts"
            return _bias_parts(sizes, f"{module}.{EXPERT_BIASES[tail]}", gated=tail == "expert.gate_up_bias")
    return hf_tensors.usual_parts(sizes, name, router="mlp.router")


def _bias_parts(sizes: ModelShape, tensor: str, *, gated: bool) -> tuple[Part, ...]:
    experts, inner, hidden = sizes.experts, sizes.expert_hidden, sizes.hidden
    if not gated:
        return tuple(Part(tensor, (experts, hidden), hidden, expert, experts) for expert in range(experts))
    return tuple(
        Part(tensor, (experts, 2 * inner), inner, expert, experts, first=first, step=2)
        for expert in range(experts)
        for first in (0, 1)
    )


def expert_parts(values: Mapping[str, Any], layer: int, expert: int) -> tuple[Part, Part, Part]:
    """(gate, up, down) of one expert; `layer` counts all layers. Gate and up rows alternate in one tensor."""
    sizes, module = shape(values), f"model.layers.{layer}.mlp.experts"
    hidden, inner, experts = sizes.hidden, sizes.expert_hidden, sizes.experts
    fused, out, transposed = (2 * inner, hidden), (hidden, inner), not sizes.mxfp4_experts
    if transposed:
        fused, out = fused[::-1], out[::-1]

    def gate_or_up(first: int) -> Part:
        tensor, dims = f"{module}.gate_up_proj", (experts, *fused)
        return Part(tensor, dims, inner, expert, experts, first=first, step=2, transposed=transposed)

    down = Part(f"{module}.down_proj", (experts, *out), hidden, expert, experts, transposed=transposed)
    return gate_or_up(0), gate_or_up(1), down


ignored = hf_tensors.past_the_last_layer
