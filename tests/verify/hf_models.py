"""Qwen3-MoE models of transformers: random ones made and saved, FP32 ones with given weights, and their logits.

Needs torch and transformers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.numpy import save_file

from elmoe.quant.bitnested import Float32
from verify.dequantised import Tensors
from verify.forward import depths_of

CONFIG: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "attention_bias": False,
}
"""The smallest model of the comparisons; others change some of it."""


def save_random_model(folder: Path, seed: int, **changes: Any) -> None:
    """A random Qwen3-MoE in BF16, as transformers saves it.

    transformers' own initialisation (standard deviation 0.02) gives nearly equal router scores and logits near zero;
    here the embedding has standard deviation 1 and matrices ``fan_in ** -0.5``, routers twice that.
    """
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**(CONFIG | changes)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif "embed" in name:
                parameter.copy_(noise)
            else:
                gain = 2 if name.endswith("mlp.gate.weight") else 1
                parameter.copy_(gain * parameter.shape[-1] ** -0.5 * noise)
    model.to(torch.bfloat16).save_pretrained(folder)


def load(config: Mapping[str, Any], tensors: Tensors) -> transformers.Qwen3MoeForCausalLM:
    """The FP32 model of a ``config.json`` with these weights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        model, report = transformers.Qwen3MoeForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    untaken = {kind: names for kind, names in report.items() if names}
    assert not untaken, f"transformers did not take the weights as they are: {untaken}"
    return model.eval()


def sequence_logits(model: transformers.Qwen3MoeForCausalLM, text: Sequence[int]) -> Float32:
    """[T, V]."""
    with torch.no_grad():
        return model(torch.tensor([text]), use_cache=False).logits[0].numpy()


def tree_logits(
    model: transformers.Qwen3MoeForCausalLM, prefix: Sequence[int], tokens: Sequence[int], parents: Sequence[int]
) -> Float32:
    """[nodes, V] of a tree over a prefix: one pass with a 4-D mask and explicit positions."""
    P, T = len(prefix), len(prefix) + len(tokens)
    sees: npt.NDArray[np.bool_] = np.tril(np.ones((T, T), dtype=np.bool_))
    sees[P:, P:] = False
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[P + node] |= sees[P + parent]
        sees[P + node, P + node] = True
    mask = torch.where(torch.from_numpy(sees), 0.0, torch.finfo(torch.float32).min)[None, None]
    positions = torch.tensor([[*range(P), *(P + depth for depth in depths_of(parents))]])
    with torch.no_grad():
        result = model(torch.tensor([[*prefix, *tokens]]), attention_mask=mask, position_ids=positions, use_cache=False)
    return result.logits[0, P:].numpy()
