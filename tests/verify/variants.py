"""Random models that differ in what a Qwen3-MoE may differ in, and a tree to run on them."""

from __future__ import annotations

from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
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
}
PARENTS = (-1, 0, 0, 0, 1, 1, 2, 4, 4, 6, 7)
