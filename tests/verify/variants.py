"""Random models that differ in what a family may differ in, and a tree to run on them."""

from __future__ import annotations

from typing import Any

YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128}
DEEPSEEK_YARN: dict[str, Any] = YARN | {
    "rope_theta": 10000.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}
SLIDING, FULL = "sliding_attention", "full_attention"

BY_FAMILY: dict[str, dict[str, dict[str, Any]]] = {
    "qwen3_moe": {
        "untied head": {},
        "tied head, weights not renormalised": {
            "tie_word_embeddings": True,
            "norm_topk_prob": False,
            "num_experts_per_tok": 3,
        },
        "a dense layer, attention bias, one key-value head": {
            "mlp_only_layers": [1],
            "intermediate_size": 96,
            "num_key_value_heads": 1,
            "attention_bias": True,
        },
        "every second layer dense, a key-value head per head, odd tiles": {
            "decoder_sparse_step": 2,
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "hidden_size": 96,
            "vocab_size": 203,
            "rope_theta": 1e6,
        },
        "12 of 24 experts per token, weights not renormalised": {
            "num_experts": 24,
            "num_experts_per_tok": 12,
            "norm_topk_prob": False,
        },
        "one expert per token": {"num_experts": 5, "num_experts_per_tok": 1},
        "long heads, wide experts": {"head_dim": 64, "moe_intermediate_size": 96, "num_attention_heads": 8},
        "YaRN": {"rope_parameters": YARN | {"rope_theta": 10000.0}},
        "a window in all layers": {"use_sliding_window": True, "sliding_window": 8},
    },
    "qwen2_moe": {
        "shared expert behind a gate": {},
        "no bias, tied head, weights renormalised": {
            "qkv_bias": False,
            "tie_word_embeddings": True,
            "norm_topk_prob": True,
        },
        "windows in every other of the first layers, a dense layer": {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 3,
            "num_hidden_layers": 5,
            "mlp_only_layers": [3],
        },
    },
    "olmoe": {
        "norms over all heads": {},
        "clipping, bias, a key-value head per head": {
            "clip_qkv": 0.6,
            "attention_bias": True,
            "num_key_value_heads": 4,
        },
        "weights renormalised": {"norm_topk_prob": True, "num_experts_per_tok": 3},
    },
    "mixtral": {
        "no window": {},
        "a window in all layers": {"sliding_window": 8},
        "YaRN without truncation": {"rope_parameters": YARN | {"rope_theta": 10000.0, "truncate": False}},
    },
    "granitemoe": {
        "multipliers": {},
        "bias, tied head": {"attention_bias": True, "tie_word_embeddings": True, "num_experts_per_tok": 4},
    },
    "glm4_moe_lite": {
        "compressed queries": {},
        "groups, uncompressed queries": {
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 3,
            "q_lora_rank": None,
        },
        "bias, rotary pairs in halves, weights not renormalised": {
            "attention_bias": True,
            "rope_interleave": False,
            "norm_topk_prob": False,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
        },
        "YaRN with its own scale of the scores": {"rope_parameters": DEEPSEEK_YARN},
        "a large epsilon, which norms of latents do not have": {"rms_norm_eps": 0.1},
    },
    "deepseek_v2": {
        "YaRN": {"rope_parameters": DEEPSEEK_YARN},
        "YaRN with unequal scales": {"rope_parameters": DEEPSEEK_YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
        "groups, compressed queries, bias": {
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 3,
            "routed_scaling_factor": 2.5,
            "q_lora_rank": 64,
            "attention_bias": True,
        },
        "no dense layer, wide values, a large epsilon": {
            "first_k_dense_replace": 0,
            "v_head_dim": 48,
            "kv_lora_rank": 32,
            "rms_norm_eps": 0.1,
        },
    },
    "gpt_oss": {
        "BF16 experts": {},
        "MXFP4 experts": {"quantization_config": {"quant_method": "mxfp4"}},
        "a short window first, no attention bias, other limits": {
            "sliding_window": 8,
            "layer_types": [FULL, SLIDING, SLIDING],
            "attention_bias": False,
            "swiglu_limit": 0.8,
            "swiglu_alpha": 1.2,
        },
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    f"{family}: {what}": {"family": family} | changes
    for family, variants in BY_FAMILY.items()
    for what, changes in variants.items()
}
PARENTS = (-1, 0, 0, 0, 1, 1, 2, 4, 4, 6, 7)
