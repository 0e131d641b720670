"""Random models of shapes that fill no tile, no vector and no block, small enough to convert in milliseconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from checkpoint.synthetic import CONFIG, Array, Source, make_tensors
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint

Changes = dict[str, Any]


def config_of(
    hidden: int, vocab: int, heads: tuple[int, int, int], experts: tuple[int, int, int], layers: int = 2, **more: Any
) -> Changes:
    """`heads`: query heads, key-value heads, dimensions; `experts`: how many, per token, hidden size."""
    return {
        "hidden_size": hidden,
        "vocab_size": vocab,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "num_experts": experts[0],
        "num_experts_per_tok": experts[1],
        "moe_intermediate_size": experts[2],
        "num_hidden_layers": layers,
        "mlp_only_layers": [],
        "eos_token_id": 0,
        "max_position_embeddings": 4096,
        **more,
    }


ODD: dict[str, Changes] = {
    "least": config_of(32, 5, (1, 1, 32), (2, 1, 32), layers=1),
    "half_tiles": config_of(96, 100, (3, 1, 32), (3, 2, 32), layers=3, mlp_only_layers=[1]),
    "bias": config_of(160, 513, (2, 2, 96), (5, 4, 96), attention_bias=True, tie_word_embeddings=False),
    "all_experts": config_of(64, 17, (4, 2, 64), (8, 8, 32), tie_word_embeddings=False, norm_topk_prob=False),
    "wide_heads": config_of(
        32, 1040, (4, 1, 128), (6, 3, 64), decoder_sparse_step=2, mlp_only_layers=[0], intermediate_size=160
    ),
    "many_heads": config_of(64, 40, (28, 4, 32), (9, 5, 160), layers=1, attention_bias=True),
    "many_experts": config_of(96, 33, (6, 2, 32), (70, 6, 32), layers=2),
    "middling": config_of(96, 600, (4, 2, 64), (12, 3, 32), layers=3, mlp_only_layers=[1], tie_word_embeddings=False),
    "late_moe": config_of(224, 31, (5, 5, 64), (17, 7, 32), layers=4, mlp_only_layers=[0, 1], intermediate_size=96),
    "small_heads": config_of(64, 50, (8, 4, 8), (4, 2, 32), attention_bias=True),
    "uneven_heads": config_of(96, 70, (4, 1, 40), (5, 2, 32), layers=3),
    "extreme": config_of(96, 257, (4, 2, 32), (4, 2, 64), attention_bias=True),
    "faint": config_of(64, 90, (2, 1, 64), (3, 1, 32)),
    "ties": config_of(64, 1040, (2, 1, 32), (9, 4, 32), layers=1),
}
"""Heads share keys and values by 1 to 7, in groups of 4, 2 and 1; layers have an MLP of another width than experts."""


ATTENTION = {
    "extreme": {"k_norm": 1e5, "v_proj": 1e5},  # keys and values saturate FP16, softmaxes are one-hot
    "faint": {"k_norm": 1e-6, "v_proj": 1e-6, "o_proj": 1e6},  # keys and values are subnormal FP16
}


def lively(tensors: dict[str, Array], weights: str) -> dict[str, Array]:
    """Weights that tell tokens, experts and positions apart; `weights` may name an entry of `ATTENTION`."""
    factors = {"mlp.gate.weight": 20, "embed_tokens": 30, **ATTENTION.get(weights, {})}
    changed = {}
    for name, tensor in tensors.items():
        wide = tensor.astype(np.float32)
        if name.endswith("norm.weight"):
            wide = 1 + 4 * wide
        for part, factor in factors.items():
            if part in name:
                wide *= factor
        if weights == "ties" and ("embed_tokens" in name or "mlp.gate.weight" in name):
            wide = wide[np.arange(len(wide)) % 5]  # equal logits, equal scores of experts
        changed[name] = wide.astype(tensor.dtype)
    return changed


def make_model(folder: Path, changes: Changes, seed: int = 0, weights: str = "") -> Checkpoint:
    """Write, convert and open one."""
    config = CONFIG | changes
    source = Source(folder / "source", config, lively(make_tensors(config, "F32", seed), weights))
    source.save()
    convert(source.path, folder / "model.elmoe")
    return Checkpoint.open(folder / "model.elmoe")


def without_head_norms(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights, run by a program that does not norm queries and keys."""
    layers = tuple(
        replace(layer, attention=replace(layer.attention, query_norm=None, key_norm=None))
        for layer in checkpoint.program.layers
    )
    return replace(checkpoint, program=replace(checkpoint.program, layers=layers))
