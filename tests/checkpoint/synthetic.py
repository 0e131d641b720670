"""Synthetic Qwen3-MoE checkpoints, small enough to convert in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Array = npt.NDArray[Any]
DTYPES = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 100,  # not a multiple of the 16 rows of a tile
    "hidden_size": 96,  # nor of its 64 inputs
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "mlp_only_layers": [1],
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "eos_token_id": 7,
}


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk and what was written into it."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Array]

    def save(self, shards: int = 1) -> None:
        """Write config and weights (again)."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.json").write_text(json.dumps(self.config))
        for old in self.path.glob("model*"):
            old.unlink()
        if shards == 1:
            save_file(self.tensors, self.path / "model.safetensors")
            return
        weight_map = {}
        for shard in range(shards):
            part = dict(list(self.tensors.items())[shard::shards])
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            save_file(part, self.path / file)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (self.path / "model.safetensors.index.json").write_text(json.dumps(index))


def make_tensors(config: dict[str, Any], dtype: str, seed: int = 0) -> dict[str, Array]:
    """Random weights, with the names and shapes that transformers saves."""
    rng = np.random.default_rng(seed)
    D, V, E = config["hidden_size"], config["vocab_size"], config["num_experts"]
    heads, kv_heads, head_dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, D)
    for i in range(config["num_hidden_layers"]):
        base = f"model.layers.{i}"
        shapes |= {
            f"{base}.input_layernorm.weight": (D,),
            f"{base}.post_attention_layernorm.weight": (D,),
            f"{base}.self_attn.q_proj.weight": (heads * head_dim, D),
            f"{base}.self_attn.k_proj.weight": (kv_heads * head_dim, D),
            f"{base}.self_attn.v_proj.weight": (kv_heads * head_dim, D),
            f"{base}.self_attn.o_proj.weight": (D, heads * head_dim),
            f"{base}.self_attn.q_norm.weight": (head_dim,),
            f"{base}.self_attn.k_norm.weight": (head_dim,),
        }
        if config.get("attention_bias"):
            shapes |= {
                f"{base}.self_attn.q_proj.bias": (heads * head_dim,),
                f"{base}.self_attn.k_proj.bias": (kv_heads * head_dim,),
                f"{base}.self_attn.v_proj.bias": (kv_heads * head_dim,),
                f"{base}.self_attn.o_proj.bias": (D,),
            }
        if i in config["mlp_only_layers"]:
            shapes |= _gated_shapes(f"{base}.mlp", D, config["intermediate_size"])
            continue
        shapes[f"{base}.mlp.gate.weight"] = (E, D)
        for e in range(E):
            shapes |= _gated_shapes(f"{base}.mlp.experts.{e}", D, config["moe_intermediate_size"])
    return {
        name: (rng.standard_normal(shape, dtype=np.float32) * 0.05).astype(DTYPES[dtype])
        for name, shape in shapes.items()
    }


def _gated_shapes(base: str, D: int, F: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{base}.gate_proj.weight": (F, D),
        f"{base}.up_proj.weight": (F, D),
        f"{base}.down_proj.weight": (D, F),
    }


MakeSource = Callable[..., Source]
