"""Pieces of layer programs that families share: a family module is a few lines that put them together.

Stored names are given here (`hf_tensors.py` says where their rows come from). A family changes what is special about
it with ``dataclasses.replace``. Knows nothing about tensors' bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from elmoe.errors import UnsupportedModelError
from elmoe.models.program import (
    Attention,
    ClampedSwiglu,
    GatedMlp,
    GroupedQueryAttention,
    GroupScore,
    Layer,
    Linear,
    MixtureOfExperts,
    Program,
    RmsNorm,
    Rope,
    Router,
    Scoring,
    Storage,
)
from elmoe.models.rotary import longest_context
from elmoe.models.shape import Config, ModelShape

SLIDING, FULL = "sliding_attention", "full_attention"
EXPERT_COUNT = {"num_experts": "num_local_experts", "num_local_experts": "num_experts"}
"""The name of the number of experts, and what another version of transformers calls it."""


def grouped_query_sizes(
    family: str, config: Config, *, experts: str, expert_hidden: str, kv_heads: int | None = None
) -> dict[str, Any]:
    """Fields of `ModelShape` for grouped-query attention and experts in all layers.

    `experts` and `expert_hidden` name the fields of ``config.json`` with the number and the inner size of experts.
    `kv_heads` is what transformers takes where ``num_key_value_heads`` is missing; where that is null, and without
    `kv_heads`, every query head has keys of its own.
    """
    layers = config.integer("num_hidden_layers")
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    own_keys = heads if kv_heads is None or "num_key_value_heads" in config.values else kv_heads
    return {
        "family": family,
        "layers": layers,
        "moe_layers": tuple(range(layers)),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": config.integer("num_key_value_heads", own_keys),
        "head_dim": config.integer("head_dim", hidden // heads),
        "experts": config.integer(experts, config.values.get(EXPERT_COUNT[experts])),
        "experts_per_tok": config.integer("num_experts_per_tok"),
        "expert_hidden": config.integer(expert_hidden),
        "dense_hidden": 0,
        "vocab": config.integer("vocab_size"),
        "max_context": longest_context(config.values),
        "tied_head": config.flag("tie_word_embeddings"),
        "mxfp4_experts": mxfp4_experts(config.values),
    }


def sparse_layers(config: Config) -> tuple[int, ...]:
    """The MoE layers by the rule of Qwen: every ``decoder_sparse_step``-th but for ``mlp_only_layers``."""
    layers, step = config.integer("num_hidden_layers"), config.integer("decoder_sparse_step", 1)
    dense = set(config.integers("mlp_only_layers"))
    return tuple(i for i in range(layers) if i not in dense and (i + 1) % step == 0)


def sliding_layers(config: Config, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Fields of `ModelShape` for layers of these ``layer_types``."""
    windowed = tuple(i for i, kind in enumerate(kinds) if kind == SLIDING)
    return {"window": config.integer("sliding_window") if windowed else 0, "windowed_layers": windowed}


def mxfp4_experts(values: Mapping[str, Any]) -> bool:
    """Whether the experts of a checkpoint are MXFP4."""
    quantisation = values.get("quantization_config")
    return isinstance(quantisation, Mapping) and quantisation.get("quant_method") == "mxfp4"


def decoder(
    sizes: ModelShape,
    eps: float,
    attention: Callable[[int], Attention],
    mixture: Callable[[int], MixtureOfExperts],
) -> Program:
    """A whole model: `attention` of every layer by its index, `mixture` of the MoE layers, dense MLPs elsewhere."""
    embedding = Linear("embedding", sizes.vocab, sizes.hidden)

    def ffn(index: int) -> GatedMlp | MixtureOfExperts:
        if index in sizes.moe_layers:
            return mixture(index)
        return gated_mlp(f"layers.{index}.mlp", sizes.hidden, sizes.dense_hidden)

    return Program(
        embedding=embedding,
        layers=tuple(
            Layer(
                attention_norm=RmsNorm(f"layers.{i}.attention_norm", sizes.hidden, eps),
                attention=attention(i),
                ffn_norm=RmsNorm(f"layers.{i}.ffn_norm", sizes.hidden, eps),
                ffn=ffn(i),
            )
            for i in range(sizes.layers)
        ),
        final_norm=RmsNorm("final_norm", sizes.hidden, eps),
        head=embedding if sizes.tied_head else Linear("head", sizes.vocab, sizes.hidden),
    )


def grouped_query_attention(
    sizes: ModelShape, index: int, rope: Rope, *, qkv_bias: bool = False, out_bias: bool = False
) -> GroupedQueryAttention:
    """Attention of layer `index`: scores over ``sqrt(head_dim)``, a window where the shape says so, no norms."""
    prefix = f"layers.{index}.attention"
    width = sizes.heads * sizes.head_dim
    qkv_rows = width + 2 * sizes.kv_heads * sizes.head_dim
    return GroupedQueryAttention(
        qkv=Linear(f"{prefix}.qkv", qkv_rows, sizes.hidden, f"{prefix}.qkv_bias" if qkv_bias else None),
        out=Linear(f"{prefix}.out", sizes.hidden, width, f"{prefix}.out_bias" if out_bias else None),
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        rope=rope,
        score_scale=sizes.head_dim**-0.5,
        window=sizes.window if index in sizes.windowed_layers else None,
    )


def gated_mlp(prefix: str, hidden: int, inner: int) -> GatedMlp:
    """An MLP without biases, bit-nested INT8."""
    return GatedMlp(
        gate_up=Linear(f"{prefix}.gate_up", 2 * inner, hidden), down=Linear(f"{prefix}.down", hidden, inner)
    )


def mixture_of_experts(
    sizes: ModelShape,
    index: int,
    router: Router,
    *,
    shared_gate: bool = False,
    biases: bool = False,
    clamped: ClampedSwiglu | None = None,
) -> MixtureOfExperts:
    """The MoE block of layer `index`: its experts in the storage of the shape, shared experts where there are any."""
    prefix = f"layers.{index}"
    storage = Storage.MXFP4 if sizes.mxfp4_experts else Storage.INT8

    def linear(part: str, outputs: int, inputs: int) -> Linear:
        bias = f"{prefix}.expert.{part}_bias" if biases else None
        return Linear(f"{prefix}.expert.{part}", outputs, inputs, bias, storage)

    inner, hidden = sizes.expert_hidden, sizes.hidden
    return MixtureOfExperts(
        layer=sizes.moe_layers.index(index),
        router=router,
        expert=GatedMlp(linear("gate_up", 2 * inner, hidden), linear("down", hidden, inner), clamped),
        shared=gated_mlp(f"{prefix}.shared", hidden, sizes.shared_hidden) if sizes.shared_hidden else None,
        shared_gate=f"{prefix}.shared_gate" if shared_gate else None,
    )


def softmax_router(sizes: ModelShape, index: int, *, renormalize: bool) -> Router:
    """Softmax scores, the best taken from all experts."""
    return Router(
        weight=f"layers.{index}.router",
        inputs=sizes.hidden,
        experts=sizes.experts,
        experts_per_tok=sizes.experts_per_tok,
        renormalize=renormalize,
    )


def sigmoid_router(sizes: ModelShape, index: int, *, renormalize: bool, scale: float) -> Router:
    """Sigmoid scores with a correction of the choice (DeepSeek-V3, GLM)."""
    return replace(
        softmax_router(sizes, index, renormalize=renormalize),
        scoring=Scoring.SIGMOID,
        correction=f"layers.{index}.router_correction",
        scale=scale,
    )


def expert_groups(config: Config, sizes: ModelShape, score: GroupScore) -> tuple[int, int]:
    """(groups, groups kept) of a router, from ``n_group`` and ``topk_group``; UnsupportedModelError for odd ones."""
    groups, kept = config.integer("n_group", 1), config.integer("topk_group", 1)
    size = sizes.experts // groups
    if sizes.experts % groups:
        raise UnsupportedModelError(f"config.json: {sizes.experts} experts cannot be split into n_group = {groups}")
    if score is GroupScore.BEST_TWO and size < 2:
        raise UnsupportedModelError(f"config.json: n_group = {groups} leaves fewer than two experts to rank a group by")
    if not sizes.experts_per_tok <= kept * size <= sizes.experts:
        raise UnsupportedModelError(
            f"config.json: topk_group = {kept} groups of {size} experts, of which {sizes.experts_per_tok} are to be "
            f"chosen, out of {groups} groups"
        )
    return groups, kept
