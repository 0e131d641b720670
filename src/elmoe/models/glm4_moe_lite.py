"""GLM-4.7-Flash: latent attention, first layer dense, sigmoid scores with a correction bias, a shared expert.

Reference: ``transformers`` ``models/glm4_moe_lite`` (Apache-2.0), whose ``config.json`` fields and tensor names these
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from elmoe.models import hf_tensors
from elmoe.models.blocks import decoder, expert_groups, mixture_of_experts, sigmoid_router
from elmoe.models.latent import latent_attention, latent_parts, latent_sizes
from elmoe.models.program import GroupScore, LatentAttention, MixtureOfExperts, Program
from elmoe.models.rotary import rope_of
from elmoe.models.shape import Config, ModelShape
from elmoe.models.source_tensors import Part

MODEL_TYPE = "glm4_moe_lite"


def shape(values: Mapping[str, Any]) -> ModelShape:
    """Sizes from the fields of ``config.json``; raises UnsupportedModelError naming an odd one."""
    config = Config(values)
    layers = config.integer("num_hidden_layers")
    kinds = config.texts("mlp_layer_types", ("dense", "sparse"), layers)
    if kinds is None:
        sparse = tuple(range(config.integer("first_k_dense_replace", 1, least=0), layers))
    else:
        sparse = tuple(i for i, kind in enumerate(kinds) if kind == "sparse")
    return ModelShape(**latent_sizes(MODEL_TYPE, config, sparse))


def program(values: Mapping[str, Any]) -> Program:
    """The layer program of a ``config.json``."""
    sizes, config = shape(values), Config(values)
    config.require("hidden_act", ("silu",), "silu")
    config.require("scoring_func", ("sigmoid", None))
    config.require("topk_method", ("noaux_tc", None))
    rope, renormalize = rope_of(values, sizes.rope_dim), config.flag("norm_topk_prob", True)
    scale = config.number("routed_scaling_factor", 1.8)
    groups, kept = expert_groups(config, sizes, GroupScore.BEST_TWO)

    def attention(index: int) -> LatentAttention:
        return latent_attention(sizes, values, index, rope)

    def mixture(index: int) -> MixtureOfExperts:
        router = sigmoid_router(sizes, index, renormalize=renormalize, scale=scale)
        router = replace(router, groups=groups, groups_kept=kept, group_score=GroupScore.BEST_TWO)
        return mixture_of_experts(sizes, index, router)

    return decoder(sizes, config.number("rms_norm_eps", 1e-5), attention, mixture)


def parts(values: Mapping[str, Any], name: str) -> tuple[Part, ...]:
    """Parts of the stored dense tensor `name`."""
    return latent_parts(shape(values), name, interleaved=Config(values).flag("rope_interleave", True))


def expert_parts(values: Mapping[str, Any], layer: int, expert: int) -> tuple[Part, Part, Part]:
    """(gate, up, down) of one expert; `layer` counts all layers."""
    return hf_tensors.expert_parts(shape(values), layer, expert)


ignored = hf_tensors.past_the_last_layer
