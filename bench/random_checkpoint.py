"""Makes a random-weight Qwen3-MoE Hugging Face folder of a given shape: a model whose speed, not text, is of interest.

    python bench/random_checkpoint.py DESTINATION [--hidden-size 1024 --num-hidden-layers 20 ...] [--seed 0]

The default has 1.13 B parameters. Weights are N(0, 0.02) in bfloat16, norms are 1. The embedding is scaled by 100: with
it unscaled, all tokens look alike to the routers and go to the same few experts; scaled, routing is near uniform.
Written shard by shard, one layer each, so memory holds one layer. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from elmoe.checkpoint.partial_folder import partial_folder
from elmoe.checkpoint.sources import model_sources
from elmoe.checkpoint.supported import supported_model
from elmoe.errors import ElmoeError
from elmoe.models.registry import family_of

DEVIATION = 0.02
EMBEDDING = "model.embed_tokens.weight"
EMBEDDING_SCALE = 100
Shapes = dict[str, tuple[int, ...]]

DIMENSIONS = {
    "hidden_size": 1024,
    "num_hidden_layers": 20,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 256,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
"""Fields of config.json that are options, and their defaults."""


def make_config(dimensions: dict[str, int]) -> dict[str, Any]:
    """The config.json of a Qwen3-MoE model in which every layer has experts; no token ends a text."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **dimensions,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def shards(config: dict[str, Any]) -> list[Shapes]:
    """Shapes of all tensors by name: one shard for what is outside the layers, then one per layer."""
    shape, program = supported_model(config)
    tensors = dict(model_sources(family_of(config), shape, program).tensors())
    split: list[Shapes] = [{} for _ in range(shape.layers + 1)]
    for name, dims in tensors.items():
        index = int(name.split(".")[2]) + 1 if name.startswith("model.layers.") else 0
        split[index][name] = dims
    return split


def random_tensor(name: str, dims: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """One tensor, bfloat16."""
    if len(dims) == 1:
        return np.ones(dims, dtype=ml_dtypes.bfloat16)
    deviation = np.float32(DEVIATION * (EMBEDDING_SCALE if name == EMBEDDING else 1))
    values = rng.standard_normal(dims, dtype=np.float32)
    values *= deviation
    return values.astype(ml_dtypes.bfloat16)


def byte_level_tokenizer(vocab: int) -> tokenizers.Tokenizer:
    """A tokenizer of one token per byte, filled up to `vocab` tokens that no text contains."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    if vocab < len(alphabet):
        raise SystemExit(f"error: vocab_size must be at least {len(alphabet)}, one token per byte, not {vocab}")
    tokens = alphabet + [f"<unused{i}>" for i in range(len(alphabet), vocab)]
    core = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    return core


def write_checkpoint(destination: Path, dimensions: dict[str, int], seed: int) -> int:
    """Make the folder, whole or not at all; the number of parameters.

    Raises ConfigError when `destination` exists, UnsupportedModelError for dimensions that elmoe cannot run.
    """
    config = make_config(dimensions)
    plan = shards(config)
    tokenizer = byte_level_tokenizer(config["vocab_size"])
    weight_map: dict[str, str] = {}
    parameters = 0
    destination.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(destination) as folder:
        for index, shapes in enumerate(plan):
            rng = np.random.default_rng([seed, index])
            tensors = {name: random_tensor(name, dims, rng) for name, dims in shapes.items()}
            file = f"model-{index + 1:05}-of-{len(plan):05}.safetensors"
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
            parameters += sum(tensor.size for tensor in tensors.values())
            print(f"{file}: {len(tensors)} tensors", flush=True)
        index_json = {"metadata": {"total_size": 2 * parameters}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_json) + "\n")
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        tokenizer.save(str(folder / "tokenizer.json"))
    return parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("destination", type=Path)
    for field, default in DIMENSIONS.items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    try:
        parameters = write_checkpoint(
            arguments["destination"], {field: arguments[field] for field in DIMENSIONS}, arguments["seed"]
        )
    except ElmoeError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{arguments['destination']}: {parameters / 1e9:.3f} B parameters")


if __name__ == "__main__":
    main()
