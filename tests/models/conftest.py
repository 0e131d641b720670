"""Configurations of the model tests, as fresh dictionaries that a test may change."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def qwen3_30b_a3b() -> dict[str, Any]:
    """config.json of Qwen3-30B-A3B, in the spelling of transformers 4."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "decoder_sparse_step": 1,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }


@pytest.fixture
def small() -> dict[str, Any]:
    """Four layers, the second dense: sizes that differ from each other and do not fill whole tiles."""
    return {
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "head_dim": 8,
        "hidden_size": 96,
        "intermediate_size": 160,
        "max_position_embeddings": 256,
        "mlp_only_layers": [1],
        "moe_intermediate_size": 32,
        "num_attention_heads": 8,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
    }
