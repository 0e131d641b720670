"""Makes tests/golden: what `make test` compares the reference backend with, where torch is not installed.

    cd tests && python -m verify.make_golden

Deterministic. A file is left alone when its numbers differ by no more than `SAME`, so that another processor's last
bits make no new file. Needs torch and transformers.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from elmoe.backend.decoded import Activations
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.checkpoint.text import Tokenizer
from elmoe.quant.bitnested import Float32
from verify import dequantised, hf_models, prompts
from verify.forward import forward_batch
from verify.injected_noise import Noise, NoisyBackend, band, typical_difference
from verify.make_chat_golden import write_chats
from verify.variants import DEEPSEEK_YARN, PARENTS

GOLDEN = Path(__file__).parents[1] / "golden"
SAME = 2e-5
BAND = "int8_typical_difference"
"""Drawn at random from the bits of every activation: one that differs says nothing."""
REPETITIONS = 8
TOP = 64
POSITIONS_PER_PROMPT = 8
RANDOM_SEED = 20
RANDOM_MODELS: dict[str, dict[str, Any]] = {
    "random_moe": {"family": "qwen3_moe", "mlp_only_layers": [1]},
    "random_qwen2_moe": {
        "family": "qwen2_moe",
        "num_hidden_layers": 2,
        "num_experts": 4,
        "mlp_only_layers": [1],
        "intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
    },
    "random_olmoe": {"family": "olmoe", "num_hidden_layers": 2, "num_experts": 3, "clip_qkv": 0.6},
    "random_mixtral": {"family": "mixtral", "num_hidden_layers": 2, "num_local_experts": 3, "sliding_window": 8},
    "random_granitemoe": {"family": "granitemoe", "num_hidden_layers": 2, "num_local_experts": 3},
    "random_glm4_moe_lite": {
        "family": "glm4_moe_lite",
        "num_hidden_layers": 2,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "intermediate_size": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 8,
    },
    "random_deepseek_v2": {
        "family": "deepseek_v2",
        "num_hidden_layers": 2,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "intermediate_size": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 8,
        "rope_parameters": DEEPSEEK_YARN,
    },
    "random_gpt_oss": {
        "family": "gpt_oss",
        "num_hidden_layers": 2,
        "num_local_experts": 4,
        "sliding_window": 8,
        "quantization_config": {"quant_method": "mxfp4"},
    },
}
"""Models of `hf_models.CONFIGS` with a few experts, so that the files are small."""

Arrays = dict[str, npt.NDArray[Any]]


def random_model(name: str, changes: Mapping[str, Any]) -> None:
    """A checkpoint in BF16, and logits of a text and of a tree over its first half."""
    folder = GOLDEN / name
    hf_models.save_random_model(folder, RANDOM_SEED, **changes)
    (folder / "generation_config.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as converted:
        convert(folder, Path(converted) / f"{name}.elmoe")
        checkpoint = Checkpoint.open(Path(converted) / f"{name}.elmoe")
        theirs = hf_models.load(checkpoint.config, dequantised.from_source(folder))
        rng = np.random.default_rng(RANDOM_SEED)
        text = rng.integers(0, checkpoint.shape.vocab, 48)
        tree = rng.integers(0, checkpoint.shape.vocab, len(PARENTS))
        prefix = text[: len(text) // 2].tolist()
        arrays: Arrays = {
            "text": text,
            "logits": hf_models.sequence_logits(theirs, text.tolist()),
            "tree_tokens": tree,
            "tree_parents": np.array(PARENTS),
            "tree_logits": hf_models.tree_logits(theirs, prefix, tree.tolist(), PARENTS),
        }
        arrays[BAND] = _int8_band(checkpoint, [text.tolist()], _whole)
        keep_or_write(GOLDEN / f"{name}.safetensors", arrays)
        _write_text(GOLDEN / f"{name}.json", _digests(checkpoint))


def tiny() -> None:
    """The built-in model: the best logits at some positions of three prompts."""
    checkpoint = Checkpoint.open(resolve("tiny"))
    theirs = hf_models.load(checkpoint.config, dequantised.from_checkpoint(checkpoint))
    tokenizer = Tokenizer.open(checkpoint.path)
    texts = prompts.of_tiny(tokenizer)
    arrays: Arrays = {}
    for number, text in enumerate(texts):
        positions = np.linspace(0, len(text) - 1, POSITIONS_PER_PROMPT).astype(np.int64)
        logits = hf_models.sequence_logits(theirs, text)[positions]
        best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        top = np.sort(best, axis=1)  # in the order of ids: near ties cannot swap
        arrays |= {
            f"text{number}": np.array(text),
            f"positions{number}": positions,
            f"top{number}": top,
            f"logits{number}": np.take_along_axis(logits, top, axis=1),
            f"mean{number}": logits.mean(axis=1),
        }

    def top_logits(logits: Float32) -> Float32:
        rows, first = [], 0
        for number, text in enumerate(texts):
            mine = logits[first + arrays[f"positions{number}"]]
            rows.append(np.take_along_axis(mine, arrays[f"top{number}"], axis=1))
            first += len(text)
        return np.concatenate(rows)

    arrays[BAND] = _int8_band(checkpoint, texts, top_logits)
    keep_or_write(GOLDEN / "tiny.safetensors", arrays)
    _write_text(GOLDEN / "tiny.json", _digests(checkpoint))


def _int8_band(checkpoint: Checkpoint, texts: Sequence[Sequence[int]], pick: Any) -> npt.NDArray[np.float64]:
    """What INT8's typical difference from FP32 may be: around that of its own rounding errors with random signs."""
    exact = pick(forward_batch(ReferenceBackend(checkpoint, Activations.FP32), texts).logits)
    noisy, values = NoisyBackend(checkpoint), []
    for seed in range(REPETITIONS):
        noisy.draw(Noise.SIGNS, seed)
        values.append(typical_difference(pick(forward_batch(noisy, texts).logits) - exact))
    return np.array(band(values))


def _whole(logits: Float32) -> Float32:
    return logits


def _digests(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of the weight files."""
    files = sorted(checkpoint.layout.file_bytes)
    return {name: hashlib.sha256((checkpoint.path / name).read_bytes()).hexdigest() for name in files}


def keep_or_write(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a golden file unless the one that is there says the same."""
    if path.exists():
        old = load_file(path)
        if old.keys() == arrays.keys() and all(_same(old[name], arrays[name]) for name in arrays.keys() - {BAND}):
            print(f"{path.name}: unchanged")
            return
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path)
    print(f"{path.name}: written")


def _same(old: npt.NDArray[Any], new: npt.NDArray[Any]) -> bool:
    return old.shape == new.shape and bool(np.allclose(old, new, rtol=0, atol=SAME))


def _write_text(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, changes in RANDOM_MODELS.items():
        random_model(name, changes)
    tiny()
    write_chats()
