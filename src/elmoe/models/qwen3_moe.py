"""Qwen3-MoE: grouped-query attention with QK-norm, softmax router, SiLU-gated experts.

Reference: transformers ``Qwen3MoeForCausalLM``. Layers in ``mlp_only_layers``, or not on the
``decoder_sparse_step`` grid, have a dense MLP of ``intermediate_size``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elmoe.errors import UnsupportedModelError
from elmoe.models.program import (
    GatedMlp,
    GroupedQueryAttention,
    Layer,
    Linear,
    MixtureOfExperts,
    Program,
    RmsNorm,
    Rope,
    Router,
)
from elmoe.models.shape import Config, ModelShape

MODEL_TYPE = "qwen3_moe"


def shape(values: Mapping[str, Any]) -> ModelShape:
    """Sizes from the fields of ``config.json``; raises UnsupportedModelError naming an odd one."""
    config = Config(values)
    layers = config.integer("num_hidden_layers")
    step = config.integer("decoder_sparse_step", 1)
    dense = set(config.integers("mlp_only_layers"))
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    return ModelShape(
        family=MODEL_TYPE,
        layers=layers,
        moe_layers=tuple(i for i in range(layers) if i not in dense and (i + 1) % step == 0),
        hidden=hidden,
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=config.integer("head_dim", hidden // heads),
        experts=config.integer("num_experts", values.get("num_local_experts")),  # the name transformers 5 saves
        experts_per_tok=config.integer("num_experts_per_tok"),
        expert_hidden=config.integer("moe_intermediate_size"),
        dense_hidden=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        max_context=config.integer("max_position_embeddings"),
        tied_head=config.flag("tie_word_embeddings"),
    )


def program(values: Mapping[str, Any]) -> Program:
    """The layer program of a ``config.json``."""
    sizes, config = shape(values), Config(values)
    config.require("hidden_act", ("silu",), "silu")
    config.require("use_sliding_window", (False, None), False)
    eps = config.number("rms_norm_eps", 1e-6)
    rope = Rope(_rope_theta(values), sizes.head_dim)
    bias = config.flag("attention_bias")
    embedding = Linear("embedding", sizes.vocab, sizes.hidden)

    def attention(prefix: str) -> GroupedQueryAttention:
        width = sizes.heads * sizes.head_dim
        qkv_rows = width + 2 * sizes.kv_heads * sizes.head_dim
        return GroupedQueryAttention(
            qkv=Linear(f"{prefix}.qkv", qkv_rows, sizes.hidden, f"{prefix}.qkv_bias" if bias else None),
            out=Linear(f"{prefix}.out", sizes.hidden, width, f"{prefix}.out_bias" if bias else None),
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            rope=rope,
            query_norm=RmsNorm(f"{prefix}.query_norm", sizes.head_dim, eps),
            key_norm=RmsNorm(f"{prefix}.key_norm", sizes.head_dim, eps),
        )

    def gated(prefix: str, inner: int) -> GatedMlp:
        return GatedMlp(
            gate_up=Linear(f"{prefix}.gate_up", 2 * inner, sizes.hidden),
            down=Linear(f"{prefix}.down", sizes.hidden, inner),
        )

    def ffn(index: int) -> GatedMlp | MixtureOfExperts:
        if index not in sizes.moe_layers:
            return gated(f"layers.{index}.mlp", sizes.dense_hidden)
        router = Router(
            weight=f"layers.{index}.router",
            inputs=sizes.hidden,
            experts=sizes.experts,
            experts_per_tok=sizes.experts_per_tok,
            renormalize=config.flag("norm_topk_prob"),
        )
        expert = gated(f"layers.{index}.expert", sizes.expert_hidden)
        return MixtureOfExperts(sizes.moe_layers.index(index), router, expert)

    return Program(
        embedding=embedding,
        layers=tuple(
            Layer(
                attention_norm=RmsNorm(f"layers.{i}.attention_norm", sizes.hidden, eps),
                attention=attention(f"layers.{i}.attention"),
                ffn_norm=RmsNorm(f"layers.{i}.ffn_norm", sizes.hidden, eps),
                ffn=ffn(i),
            )
            for i in range(sizes.layers)
        ),
        final_norm=RmsNorm("final_norm", sizes.hidden, eps),
        head=embedding if sizes.tied_head else Linear("head", sizes.vocab, sizes.hidden),
    )


def hf_names(name: str) -> tuple[str, ...]:
    """Tensors of the Hugging Face checkpoint whose rows, stacked, make the stored dense tensor `name`."""
    fixed = {
        "embedding": ("model.embed_tokens.weight",),
        "head": ("lm_head.weight",),
        "final_norm": ("model.norm.weight",),
    }
    if name in fixed:
        return fixed[name]
    _, index, part = name.split(".", 2)
    base = f"model.layers.{index}"
    tails = {
        "attention_norm": ("input_layernorm.weight",),
        "ffn_norm": ("post_attention_layernorm.weight",),
        "attention.qkv": tuple(f"self_attn.{p}_proj.weight" for p in "qkv"),
        "attention.qkv_bias": tuple(f"self_attn.{p}_proj.bias" for p in "qkv"),
        "attention.out": ("self_attn.o_proj.weight",),
        "attention.out_bias": ("self_attn.o_proj.bias",),
        "attention.query_norm": ("self_attn.q_norm.weight",),
        "attention.key_norm": ("self_attn.k_norm.weight",),
        "router": ("mlp.gate.weight",),
        "mlp.gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "mlp.down": ("mlp.down_proj.weight",),
    }
    return tuple(f"{base}.{tail}" for tail in tails[part])


def hf_expert_names(layer: int, expert: int) -> tuple[str, str, str]:
    """(gate, up, down) tensors of one expert; `layer` counts all layers."""
    base = f"model.layers.{layer}.mlp.experts.{expert}"
    return f"{base}.gate_proj.weight", f"{base}.up_proj.weight", f"{base}.down_proj.weight"


def _rope_theta(values: Mapping[str, Any]) -> float:
    """Transformers 4 writes rope_theta and rope_scaling, transformers 5 writes rope_parameters."""
    field = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    parameters = values.get(field) or {}
    if not isinstance(parameters, Mapping):
        raise UnsupportedModelError(f"config.json: {field} must be an object, not {parameters!r}")
    kind = Config(parameters, f"config.json: {field}")
    name = "rope_type" if "rope_type" in parameters else "type"
    kind.require(name, ("default",), "default")
    kind.require("partial_rotary_factor", (1, None))
    if "rope_theta" in parameters:
        return kind.number("rope_theta", 10000.0)
    return Config(values).number("rope_theta", 10000.0)
