"""Makes a random-weight Hugging Face folder of a given shape: a model whose speed, not text, is of interest.

    python bench/random_checkpoint.py DESTINATION [--hidden-size 1024 --num-hidden-layers 20 ...] [--seed 0]
    python bench/random_checkpoint.py DESTINATION --config CONFIG.json [--num-hidden-layers 2 ...]

The default is a Qwen3-MoE of 1.13 B parameters; a ``config.json`` may be of any family. Weights are N(0, 0.02) in
bfloat16 (MXFP4 experts: random blocks of that size), norms are 1. The embedding is scaled by 100: with
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

from elmoe.checkpoint.json_file import read_json_object
from elmoe.checkpoint.partial_folder import partial_folder
from elmoe.checkpoint.sources import MatrixSource, model_sources
from elmoe.checkpoint.supported import supported_model
from elmoe.errors import ElmoeError
from elmoe.models.program import Storage
from elmoe.models.registry import family_of
from elmoe.quant.bitnested import GROUP
from elmoe.quant.mxfp4 import BLOCK_BYTES

DEVIATION = 0.02
EMBEDDING = "model.embed_tokens.weight"
EMBEDDING_SCALE = 100
BLOCKS, SCALES = "_blocks", "_scales"
MXFP4_SCALE = 127 - 7
"""Exponent byte: random E2M1 values have a standard deviation of 2.9, times 2**-7 that is about `DEVIATION`."""
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


def qwen3_config(dimensions: dict[str, int]) -> dict[str, Any]:
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
    sources = model_sources(family_of(config), config, shape, program)
    mxfp4 = {part.tensor for matrix in sources.matrices() for part in matrix.parts if is_mxfp4(matrix)}
    split: list[Shapes] = [{} for _ in range(shape.layers + 1)]
    for part in sources.parts():
        index = int(part.tensor.split(".")[2]) + 1 if part.tensor.startswith("model.layers.") else 0
        if part.tensor in mxfp4:
            groups = (*part.shape[:-1], part.shape[-1] // GROUP)
            split[index] |= {f"{part.tensor}{BLOCKS}": (*groups, BLOCK_BYTES), f"{part.tensor}{SCALES}": groups}
        else:
            split[index][part.tensor] = part.shape
    return split


def is_mxfp4(matrix: MatrixSource) -> bool:
    """Whether a matrix is stored as MXFP4."""
    return matrix.linear.storage is Storage.MXFP4


def random_tensor(name: str, dims: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """One tensor, bfloat16, or the blocks or scales of MXFP4."""
    if name.endswith(BLOCKS):
        return rng.integers(0, 256, dims, dtype=np.uint8)
    if name.endswith(SCALES):
        return np.full(dims, MXFP4_SCALE, dtype=np.uint8)
    if len(dims) == 1 and "norm" in name:
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


def write_checkpoint(destination: Path, config: dict[str, Any], seed: int) -> int:
    """Make the folder, whole or not at all; the number of bytes of its weights.

    Raises ConfigError when `destination` exists, UnsupportedModelError for a `config` that elmoe cannot run.
    """
    plan = shards(config)
    tokenizer = byte_level_tokenizer(config["vocab_size"])
    weight_map: dict[str, str] = {}
    size_bytes = 0
    destination.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(destination) as folder:
        for index, shapes in enumerate(plan):
            rng = np.random.default_rng([seed, index])
            tensors = {name: random_tensor(name, dims, rng) for name, dims in shapes.items()}
            file = f"model-{index + 1:05}-of-{len(plan):05}.safetensors"
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
            size_bytes += sum(tensor.nbytes for tensor in tensors.values())
            print(f"{file}: {len(tensors)} tensors", flush=True)
        index_json = {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_json) + "\n")
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        tokenizer.save(str(folder / "tokenizer.json"))
    return size_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--config", type=Path, help="a config.json; the options change its fields")
    for field in DIMENSIONS:
        parser.add_argument(f"--{field.replace('_', '-')}", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    changes = {field: arguments[field] for field in DIMENSIONS if arguments[field] is not None}
    try:
        if arguments["config"] is None:
            config = qwen3_config(DIMENSIONS | changes)
        else:
            config = read_json_object(arguments["config"], "give a config.json of a model") | changes
        size_bytes = write_checkpoint(arguments["destination"], config, arguments["seed"])
    except ElmoeError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{arguments['destination']}: {size_bytes / 1e9:.3f} GB of weights")


if __name__ == "__main__":
    main()
