"""Multi-head latent attention of DeepSeek and GLM: sizes, program piece and parts of stored tensors.

The up-projection of keys and values, one matrix in the checkpoint, is stored as two, per head: the keys' transposed,
so that it carries a query into the latent space (`LatentAttention`). Knows nothing about routers or experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elmoe.models.blocks import mxfp4_experts
from elmoe.models.hf_tensors import split_name, usual_parts, whole
from elmoe.models.program import LatentAttention, Linear, RmsNorm, Rope
from elmoe.models.rotary import latent_score_factor, longest_context
from elmoe.models.shape import Config, ModelShape
from elmoe.models.source_tensors import Part, halves_order
from elmoe.quant.bitnested import GROUP

LATENT_EPS = 1e-6
"""Of the norms of latents: transformers leaves its default, whatever ``rms_norm_eps`` says."""


def latent_sizes(family: str, config: Config, moe_layers: tuple[int, ...]) -> dict[str, Any]:
    """Fields of `ModelShape` for latent attention, routed and shared experts, and dense MLPs outside `moe_layers`."""
    layers, heads = config.integer("num_hidden_layers"), config.integer("num_attention_heads")
    config.require("num_key_value_heads", (heads, None))
    nope, rotated = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    expert_hidden = config.integer("moe_intermediate_size")
    return {
        "family": family,
        "layers": layers,
        "moe_layers": moe_layers,
        "hidden": config.integer("hidden_size"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": nope + rotated,
        "experts": config.integer("n_routed_experts"),
        "experts_per_tok": config.integer("num_experts_per_tok"),
        "expert_hidden": expert_hidden,
        "dense_hidden": config.integer("intermediate_size"),
        "vocab": config.integer("vocab_size"),
        "max_context": longest_context(config.values),
        "tied_head": config.flag("tie_word_embeddings"),
        "latent_dim": config.integer("kv_lora_rank"),
        "query_latent_dim": config.integer_or_none("q_lora_rank") or 0,
        "nope_dim": nope,
        "rope_dim": rotated,
        "value_dim": config.integer("v_head_dim"),
        "shared_hidden": expert_hidden * config.integer("n_shared_experts"),
        "mxfp4_experts": mxfp4_experts(config.values),
    }


def latent_attention(sizes: ModelShape, values: Mapping[str, Any], index: int, rope: Rope) -> LatentAttention:
    """Attention of layer `index`; UnsupportedModelError where only a part of `down` would have a bias."""
    config = Config(values)
    if not sizes.query_latent_dim:
        config.require("attention_bias", (False,), False)
    bias = config.flag("attention_bias")
    prefix, heads, latent = f"layers.{index}.attention", sizes.heads, sizes.latent_dim
    query = heads * sizes.head_dim
    compressed = sizes.query_latent_dim
    down_rows = (compressed or query) + latent + sizes.rope_dim
    padded = -(-sizes.nope_dim // GROUP) * GROUP
    return LatentAttention(
        down=Linear(f"{prefix}.down", down_rows, sizes.hidden, f"{prefix}.down_bias" if bias else None),
        query_norm=RmsNorm(f"{prefix}.query_norm", compressed, LATENT_EPS) if compressed else None,
        query_up=Linear(f"{prefix}.query_up", query, compressed) if compressed else None,
        latent_norm=RmsNorm(f"{prefix}.latent_norm", latent, LATENT_EPS),
        key_up=Linear(f"{prefix}.key_up", heads * latent, padded),
        value_up=Linear(f"{prefix}.value_up", heads * sizes.value_dim, latent),
        out=Linear(f"{prefix}.out", sizes.hidden, heads * sizes.value_dim, f"{prefix}.out_bias" if bias else None),
        heads=heads,
        nope_dim=sizes.nope_dim,
        rope_dim=sizes.rope_dim,
        latent_dim=latent,
        value_dim=sizes.value_dim,
        rope=rope,
        score_scale=sizes.head_dim**-0.5 * latent_score_factor(values),
    )


def latent_parts(sizes: ModelShape, name: str, *, interleaved: bool) -> tuple[Part, ...]:
    """Parts of the stored dense tensor `name` of a model with latent attention.

    `interleaved`: the checkpoint's rotary pairs are (2i, 2i + 1), and its rows are reordered.
    """
    if ".attention." not in name:
        return usual_parts(sizes, name, shared="mlp.shared_experts")
    layer, tail = split_name(name)
    return _attention_parts(sizes, layer, tail.removeprefix("attention."), interleaved)


def _attention_parts(sizes: ModelShape, layer: int, piece: str, interleaved: bool) -> tuple[Part, ...]:
    module, hidden = f"model.layers.{layer}.self_attn", sizes.hidden
    latent, rotated, compressed = sizes.latent_dim, sizes.rope_dim, sizes.query_latent_dim
    query = sizes.heads * sizes.head_dim
    of_query = halves_order(sizes.head_dim, rotated) if interleaved else None
    of_latent = halves_order(latent + rotated, rotated) if interleaved else None
    name = f"{module}.kv_a_proj_with_mqa"
    if piece == "down":
        kept = Part(f"{name}.weight", (latent + rotated, hidden), latent + rotated, order=of_latent)
        if compressed:
            return whole(f"{module}.q_a_proj.weight", compressed, hidden), kept
        return Part(f"{module}.q_proj.weight", (query, hidden), query, order=of_query), kept
    if piece == "down_bias":
        kept = Part(f"{name}.bias", (latent + rotated,), latent + rotated, order=of_latent)
        return whole(f"{module}.q_a_proj.bias", compressed), kept
    if piece in ("key_up", "value_up"):
        return tuple(_up_part(sizes, f"{module}.kv_b_proj.weight", piece, head) for head in range(sizes.heads))
    single = {
        "query_norm": whole(f"{module}.q_a_layernorm.weight", compressed),
        "query_up": Part(f"{module}.q_b_proj.weight", (query, compressed), query, order=of_query),
        "latent_norm": whole(f"{module}.kv_a_layernorm.weight", latent),
        "out": whole(f"{module}.o_proj.weight", hidden, sizes.heads * sizes.value_dim),
        "out_bias": whole(f"{module}.o_proj.bias", hidden),
    }
    return (single[piece],)


def _up_part(sizes: ModelShape, tensor: str, piece: str, head: int) -> Part:
    """One head's rows: in the checkpoint [keys without position | values] by latent, head after head."""
    shape = (sizes.heads * (sizes.nope_dim + sizes.value_dim), sizes.latent_dim)
    if piece == "key_up":
        inputs = sizes.nope_dim
        return Part(tensor, shape, sizes.latent_dim, head, sizes.heads, transposed=True, inputs=inputs)
    return Part(tensor, shape, sizes.value_dim, head, sizes.heads, first=sizes.nope_dim)
