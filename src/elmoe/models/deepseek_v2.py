"""DeepSeek-V2: latent attention with YaRN, softmax scores, shared experts, first layers dense.

Reference: ``transformers`` ``models/deepseek_v2`` (Apache-2.0), whose ``config.json`` fields and tensor names these
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from elmoe.models import hf_tensors
from elmoe.models.blocks import decoder, expert_groups, mixture_of_experts, softmax_router
from elmoe.models.latent import latent_attention, latent_parts, latent_sizes
from elmoe.models.program import GroupScore, LatentAttention, MixtureOfExperts, Program
from elmoe.models.rotary import rope_of
from elmoe.models.shape import Config, ModelShape
from elmoe.models.source_tensors import Part

MODEL_TYPE = "deepseek_v2"
GROUPED = "group_limited_greedy"


def shape(values: Mapping[str, Any]) -> ModelShape:
    """Sizes from the fields of ``config.json``; raises UnsupportedModelError naming an odd one."""
    config = Config(values)
    config.require("moe_layer_freq", (1, None))
    sparse = tuple(range(config.integer("first_k_dense_replace", 0, least=0), config.integer("num_hidden_layers")))
    return ModelShape(**latent_sizes(MODEL_TYPE, config, sparse))


def program(values: Mapping[str, Any]) -> Program:
    """The layer program of a ``config.json``."""
    sizes, config = shape(values), Config(values)
    config.require("hidden_act", ("silu",), "silu")
    config.require("mlp_bias", (False, None))
    config.require("scoring_func", ("softmax", None))
    config.require("topk_method", ("greedy", GROUPED), "greedy")
    # DeepSeek's own code and transformers differ in what it means, and no published model has it.
    config.require("norm_topk_prob", (False, None))
    rope, scale = rope_of(values, sizes.rope_dim), config.number("routed_scaling_factor", 1.0)
    groups, kept = 1, 1
    if values.get("topk_method") == GROUPED:
        groups, kept = expert_groups(config, sizes, GroupScore.BEST)

    def attention(index: int) -> LatentAttention:
        return latent_attention(sizes, values, index, rope)

    def mixture(index: int) -> MixtureOfExperts:
        router = softmax_router(sizes, index, renormalize=False)
        return mixture_of_experts(sizes, index, replace(router, scale=scale, groups=groups, groups_kept=kept))

    return decoder(sizes, config.number("rms_norm_eps", 1e-6), attention, mixture)


def parts(values: Mapping[str, Any], name: str) -> tuple[Part, ...]:
    """Parts of the stored dense tensor `name`; rotary pairs of the checkpoint are always interleaved."""
    return latent_parts(shape(values), name, interleaved=True)


def expert_parts(values: Mapping[str, Any], layer: int, expert: int) -> tuple[Part, Part, Part]:
    """(gate, up, down) of one expert; `layer` counts all layers."""
    return hf_tensors.expert_parts(shape(values), layer, expert)


ignored = hf_tensors.past_the_last_layer
