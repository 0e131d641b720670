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
import transformers
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
from verify.variants import PARENTS

GOLDEN = Path(__file__).parents[1] / "golden"
SAME = 2e-5
REPETITIONS = 8
TOP = 64
POSITIONS_PER_PROMPT = 8
RANDOM_SEED = 20
RANDOM_CHANGES: dict[str, Any] = {"mlp_only_layers": [1]}

Arrays = dict[str, npt.NDArray[Any]]


def random_model() -> None:
    """A checkpoint in BF16, and logits of a text and of a tree over its first half."""
    folder = GOLDEN / "random_moe"
    hf_models.save_random_model(folder, RANDOM_SEED, **RANDOM_CHANGES)
    (folder / "generation_config.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as name:
        convert(folder, Path(name) / "random_moe.elmoe")
        checkpoint = Checkpoint.open(Path(name) / "random_moe.elmoe")
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
        arrays["int8_typical_difference"] = _int8_band(checkpoint, [text.tolist()], _whole)
        keep_or_write(GOLDEN / "random_moe.safetensors", arrays)
        _write_text(GOLDEN / "random_moe.json", _digests(checkpoint))


def tiny() -> None:
    """The built-in model: the best logits at some positions of three prompts, and its chat template's texts."""
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

    arrays["int8_typical_difference"] = _int8_band(checkpoint, texts, top_logits)
    keep_or_write(GOLDEN / "tiny.safetensors", arrays)
    _write_text(GOLDEN / "tiny.json", _digests(checkpoint))
    _write_text(GOLDEN / "chat.json", _chats(checkpoint.path))


def _chats(folder: Path) -> list[dict[str, Any]]:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return [
        {
            "messages": messages,
            "text": tokenizer.apply_chat_template(messages, tokenize=False),
            "prompt": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
            "ids": tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False),
        }
        for messages in prompts.CONVERSATIONS
    ]


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
        if old.keys() == arrays.keys() and all(_same(old[name], new) for name, new in arrays.items()):
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
    random_model()
    tiny()
