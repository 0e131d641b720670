"""The reference backend against what transformers computed (tests/golden, made by `tests/verify/make_golden.py`)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from elmoe.backend.decoded import Activations
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.text import Tokenizer
from elmoe.quant.bitnested import Float32
from verify.forward import forward_batch, forward_tree
from verify.injected_noise import typical_difference

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4
PROMPTS = range(3)

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def random_moe(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("golden") / "random_moe.elmoe"
    convert(GOLDEN / "random_moe", folder)
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def random_golden() -> Arrays:
    return load_file(GOLDEN / "random_moe.safetensors")


@pytest.fixture(scope="module")
def tiny_golden() -> Arrays:
    return load_file(GOLDEN / "tiny.safetensors")


def test_random_model_equals_transformers(random_moe: Checkpoint, random_golden: Arrays) -> None:
    ours = forward_batch(ReferenceBackend(random_moe, Activations.FP32), [random_golden["text"].tolist()]).logits
    np.testing.assert_allclose(ours, random_golden["logits"], rtol=0, atol=TOLERANCE)


def test_tree_equals_transformers(random_moe: Checkpoint, random_golden: Arrays) -> None:
    backend = ReferenceBackend(random_moe, Activations.FP32)
    ours = forward_tree(backend, *tree_of(random_golden)).logits
    np.testing.assert_allclose(ours, random_golden["tree_logits"], rtol=0, atol=TOLERANCE)


def test_int8_tree_rows_are_the_rows_of_their_paths(random_moe: Checkpoint, random_golden: Arrays) -> None:
    """Bit for bit, beside other texts."""
    backend = ReferenceBackend(random_moe)
    prefix, tokens, parents = tree_of(random_golden)
    ours = forward_tree(backend, prefix, tokens, parents).logits
    paths = [[0, 1, 4, 7, 10], [0, 2, 6, 9], [0, 3]]
    texts = [[*prefix, *(tokens[node] for node in path)] for path in paths]
    rows = forward_batch(backend, texts).logits
    first = 0
    for path, text in zip(paths, texts, strict=True):
        np.testing.assert_array_equal(rows[first + len(prefix) : first + len(text)], ours[path])
        first += len(text)


def test_int8_of_random_model_errs_like_random_rounding(random_moe: Checkpoint, random_golden: Arrays) -> None:
    ours = forward_batch(ReferenceBackend(random_moe), [random_golden["text"].tolist()]).logits
    low, high = random_golden["int8_typical_difference"]
    assert low < typical_difference(ours - random_golden["logits"]) < high


def test_tiny_equals_transformers(tiny: Checkpoint, tiny_golden: Arrays) -> None:
    for number, (top, mean) in enumerate(tiny_logits(ReferenceBackend(tiny, Activations.FP32), tiny_golden)):
        np.testing.assert_allclose(top, tiny_golden[f"logits{number}"], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(mean, tiny_golden[f"mean{number}"], rtol=0, atol=TOLERANCE)


def test_int8_of_tiny_errs_like_random_rounding(tiny: Checkpoint, tiny_golden: Arrays) -> None:
    ours = np.concatenate([top for top, _ in tiny_logits(ReferenceBackend(tiny), tiny_golden)])
    theirs = np.concatenate([tiny_golden[f"logits{number}"] for number in PROMPTS])
    low, high = tiny_golden["int8_typical_difference"]
    assert low < typical_difference(ours - theirs) < high


@pytest.mark.parametrize("name", ["tiny", "random_moe"])
def test_weights_are_those_that_transformers_had(name: str, request: pytest.FixtureRequest) -> None:
    """The converter writes, and the package ships, what the golden logits were made with."""
    checkpoint: Checkpoint = request.getfixturevalue(name)
    for file, digest in json.loads((GOLDEN / f"{name}.json").read_text()).items():
        found = hashlib.sha256((checkpoint.path / file).read_bytes()).hexdigest()
        assert found == digest, f"{file} of {name} has changed: run make verify, which makes new golden files"


def test_chats_equal_transformers(tiny: Checkpoint) -> None:
    tokenizer = Tokenizer.open(tiny.path)
    for chat in json.loads((GOLDEN / "chat.json").read_text(encoding="utf-8")):
        assert tokenizer.render_chat(chat["messages"], add_generation_prompt=False) == chat["text"]
        assert tokenizer.render_chat(chat["messages"]) == chat["prompt"]
        assert tokenizer.encode_chat(chat["messages"]) == chat["ids"]


def tree_of(golden: Arrays) -> tuple[list[int], list[int], list[int]]:
    """(prefix, tokens, parents) of the golden tree, which grows from the first half of the text."""
    text = golden["text"].tolist()
    return text[: len(text) // 2], golden["tree_tokens"].tolist(), golden["tree_parents"].tolist()


def tiny_logits(backend: ReferenceBackend, golden: Arrays) -> list[tuple[Float32, Float32]]:
    """Per prompt: the golden ids' logits [positions, 64], and the mean of all logits [positions]."""
    found = []
    for number in PROMPTS:
        logits = forward_batch(backend, [golden[f"text{number}"].tolist()]).logits[golden[f"positions{number}"]]
        found.append((np.take_along_axis(logits, golden[f"top{number}"], axis=1), logits.mean(axis=1)))
    return found
