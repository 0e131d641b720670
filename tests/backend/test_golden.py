"""Backends against what transformers computed (tests/golden, made by `tests/verify/make_golden.py`)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from elmoe.backend.decoded import Activations
from elmoe.backend.protocol import DraftQuality
from elmoe.backend.reference import ReferenceBackend
from elmoe.backend.select import BACKENDS, open_backend
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.text import Tokenizer
from elmoe.models.registry import FAMILIES
from elmoe.quant.bitnested import Float32
from verify.forward import forward_batch, forward_speculatively, forward_tree
from verify.injected_noise import typical_difference

GOLDEN = Path(__file__).parents[1] / "golden"
RANDOM_MODELS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
TOLERANCE = 1e-4
PROMPTS = range(3)

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class RandomModel:
    """A random model of a family, and what transformers made of it."""

    name: str
    checkpoint: Checkpoint
    golden: Arrays


@pytest.fixture(scope="module", params=RANDOM_MODELS)
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    folder = tmp_path_factory.mktemp("golden") / f"{request.param}.elmoe"
    convert(GOLDEN / request.param, folder)
    return RandomModel(request.param, Checkpoint.open(folder), load_file(GOLDEN / f"{request.param}.safetensors"))


@pytest.fixture(scope="module")
def tiny_golden() -> Arrays:
    return load_file(GOLDEN / "tiny.safetensors")


def test_every_family_has_a_random_model() -> None:
    configs = [json.loads((GOLDEN / name / "config.json").read_text()) for name in RANDOM_MODELS]
    assert sorted(config["model_type"] for config in configs) == sorted(FAMILIES)


def test_random_models_equal_transformers(random_model: RandomModel) -> None:
    golden = random_model.golden
    ours = forward_batch(ReferenceBackend(random_model.checkpoint, Activations.FP32), [golden["text"].tolist()]).logits
    np.testing.assert_allclose(ours, golden["logits"], rtol=0, atol=TOLERANCE)


def test_trees_equal_transformers(random_model: RandomModel) -> None:
    backend = ReferenceBackend(random_model.checkpoint, Activations.FP32)
    ours = forward_tree(backend, *tree_of(random_model.golden)).logits
    np.testing.assert_allclose(ours, random_model.golden["tree_logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", BACKENDS)
def test_int8_tree_rows_are_the_rows_of_their_paths(random_model: RandomModel, name: str) -> None:
    """Bit for bit, beside other texts."""
    backend = open_backend(name, random_model.checkpoint)
    prefix, tokens, parents = tree_of(random_model.golden)
    ours = forward_tree(backend, prefix, tokens, parents).logits
    paths = [[0, 1, 4, 7, 10], [0, 2, 6, 9], [0, 3]]
    texts = [[*prefix, *(tokens[node] for node in path)] for path in paths]
    rows = forward_batch(backend, texts).logits
    first = 0
    for path, text in zip(paths, texts, strict=True):
        np.testing.assert_array_equal(rows[first + len(prefix) : first + len(text)], ours[path])
        first += len(text)


@pytest.mark.parametrize("name", BACKENDS)
def test_int8_rows_after_speculation_are_those_of_the_text(random_model: RandomModel, name: str) -> None:
    """Bit for bit, though drafts of low quality from half of the experts have written to the cache."""
    backend, golden = open_backend(name, random_model.checkpoint), random_model.golden
    shape = random_model.checkpoint.shape
    text, start = golden["text"].tolist(), 21
    pool = np.arange(shape.experts) % 2 == np.arange(len(shape.moe_layers))[:, None] % 2
    _, tokens, parents = tree_of(golden)
    draft = DraftQuality(bits=4, experts_per_tok=1)
    ours = forward_speculatively(backend, text, start, tokens, parents, [0, 2, 6, 9], draft, pool)
    np.testing.assert_array_equal(ours, forward_batch(backend, [text]).logits[start:])


@pytest.mark.parametrize("name", BACKENDS)
def test_int8_of_random_models_errs_like_random_rounding(random_model: RandomModel, name: str) -> None:
    golden = random_model.golden
    ours = forward_batch(open_backend(name, random_model.checkpoint), [golden["text"].tolist()]).logits
    low, high = golden["int8_typical_difference"]
    assert low < typical_difference(ours - golden["logits"]) < high


@pytest.mark.parametrize("text", ["text", "tree_tokens"])
def test_backends_agree_on_random_models(random_model: RandomModel, text: str) -> None:
    """Bit for bit, in what they compute and in what they say they read."""
    tokens = random_model.golden[text].tolist()
    cpu, reference = (forward_batch(open_backend(name, random_model.checkpoint), [tokens]) for name in BACKENDS)
    np.testing.assert_array_equal(cpu.logits, reference.logits)
    np.testing.assert_array_equal(cpu.experts, reference.experts)
    assert cpu.traffic == reference.traffic


def test_tiny_equals_transformers(tiny: Checkpoint, tiny_golden: Arrays) -> None:
    for number, (top, mean) in enumerate(tiny_logits(ReferenceBackend(tiny, Activations.FP32), tiny_golden)):
        np.testing.assert_allclose(top, tiny_golden[f"logits{number}"], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(mean, tiny_golden[f"mean{number}"], rtol=0, atol=TOLERANCE)


def test_int8_of_tiny_errs_like_random_rounding(tiny: Checkpoint, tiny_golden: Arrays) -> None:
    ours = np.concatenate([top for top, _ in tiny_logits(ReferenceBackend(tiny), tiny_golden)])
    theirs = np.concatenate([tiny_golden[f"logits{number}"] for number in PROMPTS])
    low, high = tiny_golden["int8_typical_difference"]
    assert low < typical_difference(ours - theirs) < high


def test_weights_of_random_models_are_those_that_transformers_had(random_model: RandomModel) -> None:
    """The converter writes what the golden logits were made with."""
    assert_digests(random_model.name, random_model.checkpoint)


def test_weights_of_tiny_are_those_that_transformers_had(tiny: Checkpoint) -> None:
    """The package ships what the golden logits were made with."""
    assert_digests("tiny", tiny)


def assert_digests(name: str, checkpoint: Checkpoint) -> None:
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
