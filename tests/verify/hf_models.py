"""Models of transformers: random ones made and saved, FP32 ones with given weights, and their logits.

Needs torch and transformers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.torch import load_file, save_file

from elmoe.quant import mxfp4
from elmoe.quant.bitnested import Float32
from verify.dequantised import Tensors
from verify.forward import depths_of

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
}
GROUPED_QUERY: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "intermediate_size": 96,
    "kv_lora_rank": 64,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_moe": COMMON
    | GROUPED_QUERY
    | {
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "num_experts": 6,
        "norm_topk_prob": True,
        "rope_theta": 10000.0,
        "attention_bias": False,
    },
    "qwen2_moe": COMMON
    | {
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 96,
        "num_experts": 6,
    },
    "olmoe": COMMON | {"num_key_value_heads": 2, "intermediate_size": 32, "num_experts": 6},
    "mixtral": COMMON | GROUPED_QUERY | {"intermediate_size": 32, "num_local_experts": 6},
    "granitemoe": COMMON
    | {
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "num_local_experts": 6,
        "embedding_multiplier": 1.5,
        "attention_multiplier": 0.35,
        "residual_multiplier": 0.7,
        "logits_scaling": 0.8,
    },
    "glm4_moe_lite": COMMON | LATENT,
    "deepseek_v2": COMMON | LATENT | {"q_lora_rank": None, "n_shared_experts": 2, "first_k_dense_replace": 1},
    "gpt_oss": COMMON
    | GROUPED_QUERY
    | {
        "intermediate_size": 32,
        "num_local_experts": 6,
        "sliding_window": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 8.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 32,
        },
    },
}
"""The smallest model of the comparisons by family; others change some of it."""


def save_random_model(folder: Path, seed: int, family: str = "qwen3_moe", **changes: Any) -> None:
    """A random model of a family in BF16, as transformers saves it.

    transformers' own initialisation (standard deviation 0.02) gives nearly equal router scores and logits near zero;
    here the embedding has standard deviation 1 and matrices ``fan_in ** -0.5``, routers twice that. With a
    `quantization_config` among the changes, experts are MXFP4 in the layout of GPT-OSS checkpoints.
    """
    values = CONFIGS[family] | changes
    quantization = values.pop("quantization_config", None)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **values))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(_weights(model)):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif "embed" in name or name.endswith("sinks"):
                parameter.copy_(noise)
            else:
                gain = 2 if name.endswith(ROUTERS) else 1
                fan_in = parameter.shape[-2 if family == "gpt_oss" and parameter.ndim == 3 else -1]
                parameter.copy_(gain * fan_in**-0.5 * noise)
    correction = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith(CORRECTION)}
    model.to(torch.bfloat16)
    for name, buffer in correction.items():  # FP32 in published checkpoints too
        model.get_submodule(name.removesuffix(f".{CORRECTION}")).register_buffer(CORRECTION, buffer)
    model.save_pretrained(folder)
    if quantization is not None:
        _quantise_experts(folder, quantization)


CORRECTION = "e_score_correction_bias"
ROUTERS = ("mlp.gate.weight", "router.weight")


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything that a checkpoint holds, by the names of transformers' modules."""
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name.endswith(CORRECTION))


def _quantise_experts(folder: Path, quantization: Mapping[str, Any]) -> None:
    """Turn BF16 experts [E, K, N] of a saved GPT-OSS into MXFP4 pairs [E, N, K/32, 16] and [E, N, K/32]."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        weights = tensors.pop(name).float().transpose(1, 2).numpy()
        codes, scales = mxfp4.quantize(weights.reshape(-1, weights.shape[-1]), name)
        blocks = mxfp4.pack(codes).reshape(*weights.shape[:2], -1, mxfp4.BLOCK_BYTES)
        tensors[f"{name}_blocks"] = torch.from_numpy(np.ascontiguousarray(blocks))
        tensors[f"{name}_scales"] = torch.from_numpy(scales.reshape(*weights.shape[:2], -1))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}, indent=2))


def load(config: Mapping[str, Any], tensors: Tensors) -> transformers.PreTrainedModel:
    """The FP32 model of a ``config.json`` with these weights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = {name: torch.from_numpy(values) for name, values in tensors.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        plain = {name: value for name, value in config.items() if name != "quantization_config"}
        (folder / "config.json").write_text(json.dumps(plain))
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    untaken = {kind: names for kind, names in report.items() if names}
    assert not untaken, f"transformers did not take the weights as they are: {untaken}"
    return model.eval()


def sequence_logits(model: transformers.PreTrainedModel, text: Sequence[int]) -> Float32:
    """[T, V]."""
    with torch.no_grad():
        return model(torch.tensor([text]), use_cache=False).logits[0].numpy()


def tree_logits(
    model: transformers.PreTrainedModel, prefix: Sequence[int], tokens: Sequence[int], parents: Sequence[int]
) -> Float32:
    """[nodes, V] of a tree over a prefix: one pass with 4-D masks and explicit positions."""
    P, T = len(prefix), len(prefix) + len(tokens)
    sees: npt.NDArray[np.bool_] = np.tril(np.ones((T, T), dtype=np.bool_))
    sees[P:, P:] = False
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[P + node] |= sees[P + parent]
        sees[P + node, P + node] = True
    positions = np.array([*range(P), *(P + depth for depth in depths_of(parents))])
    with torch.no_grad():
        result = model(
            torch.tensor([[*prefix, *tokens]]),
            attention_mask=_masks(model.config, sees, positions),
            position_ids=torch.from_numpy(positions)[None],
            use_cache=False,
        )
    return result.logits[0, P:].numpy()


def _masks(
    config: transformers.PreTrainedConfig, sees: npt.NDArray[np.bool_], positions: npt.NDArray[np.int64]
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask of all layers, or one for each kind of layer."""
    window = getattr(config, "sliding_window", None) or len(sees)
    near = positions[:, None] - positions[None] < window
    full, sliding = (
        torch.where(torch.from_numpy(mask), 0.0, torch.finfo(torch.float32).min)[None, None]
        for mask in (sees, sees & near)
    )
    if getattr(config, "layer_types", None):
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding
