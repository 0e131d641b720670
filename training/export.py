#!/usr/bin/env python3
"""Weights to and from a Hugging Face folder of Qwen3MoeForCausalLM, in BF16 pieces small enough to travel.

python training/export.py RUN/parts --tokenizer FILE    # adds what text needs; `elmoe convert RUN/parts` can follow
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import Model, ModelConfig

PIECE_BYTES = 15 << 20
MAX_POSITIONS = 2048
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "q_norm": "q_norm", "k_norm": "k_norm"}


def config_json(model: Model) -> dict[str, object]:
    """What transformers needs to build the model."""
    sizes = asdict(model.config)
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **sizes,
        "intermediate_size": 4 * model.config.moe_intermediate_size,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rope_scaling": None,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def tensors(model: Model) -> dict[str, Tensor]:
    """Hugging Face name -> a view of the model's parameter."""
    named = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm}
    for number, layer in enumerate(model.layers):
        prefix = f"model.layers.{number}"
        named[f"{prefix}.input_layernorm.weight"] = layer.attention_norm
        named[f"{prefix}.post_attention_layernorm.weight"] = layer.moe_norm
        for ours, theirs in ATTENTION.items():
            named[f"{prefix}.self_attn.{theirs}.weight"] = getattr(layer.attention, ours)
        named[f"{prefix}.mlp.gate.weight"] = layer.moe.router
        for expert in range(model.config.num_experts):
            for ours in ("gate", "up", "down"):
                weight = getattr(layer.moe, ours)[expert]
                named[f"{prefix}.mlp.experts.{expert}.{ours}_proj.weight"] = weight
    return named


def write_folder(model: Model, folder: Path) -> None:
    """config.json and BF16 safetensors in pieces of at most `PIECE_BYTES`."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces: list[dict[str, Tensor]] = [{}]
    room = PIECE_BYTES
    for name, weight in tensors(model).items():
        stored = weight.detach().to("cpu", torch.bfloat16).contiguous()
        room -= stored.nbytes + 200  # its entry in the header
        if room < 0:
            pieces.append({})
            room = PIECE_BYTES - stored.nbytes - 200
        pieces[-1][name] = stored
    index = {}
    for number, piece in enumerate(pieces, 1):
        file = f"model-{number:05d}-of-{len(pieces):05d}.safetensors"
        save_file(piece, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(piece, file)
    total = sum(weight.nbytes for piece in pieces for weight in piece.values())
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    (folder / "config.json").write_text(json.dumps(config_json(model), indent=1))


def write_text_files(folder: Path, tokenizer: Path) -> None:
    """Tokenizer, chat template and stop tokens beside the weights: a folder that can be converted and served."""
    compact = json.dumps(json.loads(tokenizer.read_bytes()), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(compact, encoding="utf-8")  # 0.2 instead of 0.5 MB
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    generation = {"eos_token_id": [2, 0], "pad_token_id": 0, "max_new_tokens": 256, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1))


@torch.no_grad()
def read_weights(model: Model, folder: Path) -> None:
    """Fill the model from a folder's safetensors; every tensor must be there, in its shape."""
    stored: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        stored |= load_file(file)
    for name, weight in tensors(model).items():
        if name not in stored or stored[name].shape != weight.shape:
            raise SystemExit(f"{folder}: {name} is missing or not of shape {tuple(weight.shape)}")
        weight.copy_(stored[name])


def open_folder(folder: Path) -> Model:
    """The FP32 model of a Hugging Face folder of this architecture."""
    document = json.loads((folder / "config.json").read_text())
    model = Model(ModelConfig(**{field.name: document[field.name] for field in fields(ModelConfig)}), torch.float32)
    read_weights(model, folder)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="weights and config.json, from train.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    options = parser.parse_args()
    write_text_files(options.folder, options.tokenizer)


if __name__ == "__main__":
    main()
