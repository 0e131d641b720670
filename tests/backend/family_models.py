"""Small random models of every family, made of what the family says about its tensors; no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.models.program import MixtureOfExperts
from elmoe.models.registry import family_of
from elmoe.models.source_tensors import Part
from elmoe.quant import mxfp4

GROUPED: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "eos_token_id": 0,
}  # fmt: skip
LATENT: dict[str, Any] = GROUPED | {
    "num_key_value_heads": 4, "qk_nope_head_dim": 24, "qk_rope_head_dim": 20, "v_head_dim": 16, "kv_lora_rank": 64,
    "n_routed_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "intermediate_size": 96,
    "n_shared_experts": 2, "first_k_dense_replace": 1, "num_hidden_layers": 3, "routed_scaling_factor": 1.8,
}  # fmt: skip
YARN = {
    "type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1,
    "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip
GPT_OSS: dict[str, Any] = GROUPED | {
    "model_type": "gpt_oss", "head_dim": 32, "num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 96,
    "sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"], "attention_bias": True,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                     "original_max_position_embeddings": 64},
}  # fmt: skip
MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}

FAMILY_MODELS: dict[str, dict[str, Any]] = {
    "qwen3_moe": GROUPED | {
        "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "intermediate_size": 64, "norm_topk_prob": True, "head_dim": 48,
    },
    "qwen2_moe": GROUPED | {
        "model_type": "qwen2_moe", "num_experts": 9, "num_experts_per_tok": 4, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 160, "intermediate_size": 96, "mlp_only_layers": [0], "num_hidden_layers": 3,
        "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 28,
    },
    "olmoe": GROUPED | {
        "model_type": "olmoe", "num_experts": 16, "num_experts_per_tok": 5, "intermediate_size": 32, "clip_qkv": 0.7,
        "num_key_value_heads": 8, "num_attention_heads": 8,
    },
    "mixtral": GROUPED | {
        "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 96,
        "sliding_window": 13,
    },
    "granitemoe": GROUPED | {
        "model_type": "granitemoe", "num_local_experts": 10, "num_experts_per_tok": 4, "intermediate_size": 32,
        "embedding_multiplier": 12.0, "attention_multiplier": 0.2, "residual_multiplier": 0.22, "logits_scaling": 6.0,
        "tie_word_embeddings": True,
    },
    "glm4_moe_lite": LATENT | {
        "model_type": "glm4_moe_lite", "q_lora_rank": 96, "n_group": 4, "topk_group": 2, "norm_topk_prob": True,
        "rope_theta": 1e6,
    },
    "deepseek_v2": LATENT | {
        "model_type": "deepseek_v2", "q_lora_rank": None, "topk_method": "group_limited_greedy", "n_group": 3,
        "topk_group": 1, "norm_topk_prob": False, "rope_scaling": YARN, "scoring_func": "softmax",
    },
    "gpt_oss": GPT_OSS,
    "gpt_oss_mxfp4": GPT_OSS | MXFP4,
    "shared_mxfp4": LATENT | MXFP4 | {
        "model_type": "deepseek_v2", "q_lora_rank": 64, "topk_method": "greedy", "rope_theta": 1e4, "v_head_dim": 24,
    },
}  # fmt: skip
"""Odd sizes on purpose: padded heads, half tiles, windows shorter than a block, groups that leave experts out."""

Tensors = dict[str, npt.NDArray[Any]]


def make_family_model(folder: Path, config: Mapping[str, Any], seed: int = 0) -> Checkpoint:
    """Write, convert and open one."""
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(config, seed), source / "model.safetensors")
    convert(source, folder / "model.elmoe")
    return Checkpoint.open(folder / "model.elmoe")


def random_tensors(config: Mapping[str, Any], seed: int) -> Tensors:
    """Weights that tell tokens, experts and positions apart."""
    rng = np.random.default_rng(seed)
    tensors: Tensors = {}
    for part in all_parts(config):
        if part.tensor not in tensors:
            tensors[part.tensor] = _random(rng, part.tensor, part.shape, part.transposed)
    if not config.get("quantization_config"):
        return tensors
    return {name: values for tensor, old in tensors.items() for name, values in _stored(tensor, old).items()}


def all_parts(config: Mapping[str, Any]) -> Iterator[Part]:
    """Every part of every stored tensor."""
    family = family_of(config)
    program = family.program(config)
    for linear in program.linears:
        yield from family.parts(config, linear.name)
    for name in program.vectors:
        yield from family.parts(config, name)
    for index, layer in enumerate(program.layers):
        if isinstance(layer.ffn, MixtureOfExperts):
            for expert in range(layer.ffn.router.experts):
                yield from family.expert_parts(config, index, expert)


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...], transposed: bool) -> npt.NDArray[np.float32]:
    noise = rng.standard_normal(shape).astype(np.float32)
    if "norm" in name:
        return 1 + np.float32(0.1) * noise
    if len(shape) == 1 or "bias" in name:
        return noise if "sinks" in name else np.float32(0.2) * noise
    if "embed_tokens" in name:
        return noise
    gain = 2 if "router" in name or name.endswith("gate.weight") else 1
    fan_in = shape[-2] if transposed and len(shape) == 3 else shape[-1]
    return np.float32(gain * fan_in**-0.5) * noise


def _stored(name: str, values: npt.NDArray[np.float32]) -> Tensors:
    """Experts as a checkpoint holds them in MXFP4, anything else as it is."""
    return {name: values} if ".experts." not in name or "bias" in name else mxfp4_pair(name, values)


def mxfp4_pair(name: str, values: npt.NDArray[np.float32]) -> Tensors:
    """A tensor [..., K] in MXFP4 under the two names that a Hugging Face folder has for it."""
    codes, scales = mxfp4.quantize(values.reshape(-1, values.shape[-1]))
    leading = values.shape[:-1]
    return {
        f"{name}_blocks": mxfp4.pack(codes).reshape(*leading, -1, mxfp4.BLOCK_BYTES),
        f"{name}_scales": scales.reshape(*leading, -1),
    }
