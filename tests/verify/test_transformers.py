"""The reference backend with FP32 activations against transformers with the same dequantised weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elmoe.backend.decoded import Activations
from elmoe.backend.protocol import DraftQuality
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.text import Tokenizer
from elmoe.quant.bitnested import Float32
from verify import dequantised, prompts
from verify.forward import forward_batch, forward_speculatively, forward_tree
from verify.variants import PARENTS, VARIANTS

hf_models = pytest.importorskip("verify.hf_models", reason="make verify installs torch and transformers")

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pair:
    """One model in both engines, and texts for it."""

    theirs: Any
    ours: ReferenceBackend
    texts: list[list[int]]

    def tree(self) -> list[int]:
        """Tokens for the nodes of `PARENTS`."""
        return np.random.default_rng(3).integers(0, self.ours.shape.vocab, len(PARENTS)).tolist()


@pytest.fixture(scope="module", params=[*VARIANTS, "tiny"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if request.param == "tiny":
        checkpoint = request.getfixturevalue("tiny")
        weights = dequantised.from_checkpoint(checkpoint)
        texts = prompts.of_tiny(Tokenizer.open(checkpoint.path))
    else:
        folder = tmp_path_factory.mktemp("random")
        number = list(VARIANTS).index(request.param)
        hf_models.save_random_model(folder / "source", seed=number, **VARIANTS[request.param])
        convert(folder / "source", folder / "model.elmoe")
        checkpoint = Checkpoint.open(folder / "model.elmoe")
        weights = dequantised.from_source(folder / "source")
        rng = np.random.default_rng(number)
        texts = [rng.integers(0, checkpoint.shape.vocab, length).tolist() for length in (70, 3, 31, 1)]
    theirs = hf_models.load(checkpoint.config, weights)
    return Pair(theirs, ReferenceBackend(checkpoint, Activations.FP32), texts)


def difference(ours: Float32, theirs: Float32) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max())


def test_one_prompt(pair: Pair) -> None:
    for text in pair.texts:
        assert difference(forward_batch(pair.ours, [text]).logits, hf_models.sequence_logits(pair.theirs, text)) < (
            TOLERANCE
        )


def test_a_batch_in_one_pass(pair: Pair) -> None:
    theirs = np.concatenate([hf_models.sequence_logits(pair.theirs, text) for text in pair.texts])
    assert difference(forward_batch(pair.ours, pair.texts).logits, theirs) < TOLERANCE


def test_a_tree(pair: Pair) -> None:
    prefix, tokens = pair.texts[0], pair.tree()
    ours = forward_tree(pair.ours, prefix, tokens, PARENTS).logits
    assert difference(ours, hf_models.tree_logits(pair.theirs, prefix, tokens, PARENTS)) < TOLERANCE


@pytest.mark.parametrize("number", [-1, 2])
def test_a_tree_is_its_paths(pair: Pair, number: int) -> None:
    """transformers again, without masks: each root-to-leaf path as a text of its own."""
    prefix, tokens = pair.texts[number], pair.tree()
    ours = forward_tree(pair.ours, prefix, tokens, PARENTS).logits
    for leaf in set(range(len(PARENTS))) - set(PARENTS):
        path = [leaf]
        while PARENTS[path[0]] >= 0:
            path.insert(0, PARENTS[path[0]])
        theirs = hf_models.sequence_logits(pair.theirs, [*prefix, *(tokens[node] for node in path)])
        assert difference(ours[path], theirs[len(prefix) :]) < TOLERANCE


def test_after_speculation(pair: Pair) -> None:
    """Drafts of low quality write the cache, verification overwrites it, accepted nodes move: as if never drafted."""
    text, shape = max(pair.texts, key=len), pair.ours.shape
    path, start = [0, 2, 6, 9], len(text) // 2
    pool = np.arange(shape.experts) % 2 == np.arange(len(shape.moe_layers))[:, None] % 2
    draft = DraftQuality(bits=4, experts_per_tok=1)
    ours = forward_speculatively(pair.ours, text, start, pair.tree(), PARENTS, path, draft, pool)
    assert difference(ours, hf_models.sequence_logits(pair.theirs, text)[start:]) < TOLERANCE


def test_routing_is_realistic(pair: Pair) -> None:
    """A comparison under degenerate routing would prove little: all experts serve, and the logits are not flat."""
    result = forward_batch(pair.ours, pair.texts)
    assert result.read.sum(axis=1).min() >= 0.8 * pair.ours.shape.experts
    assert result.logits.std() > 0.5


def test_conversion_keeps_the_dequantised_weights(tmp_path: Path) -> None:
    """What transformers gets in these tests is, bit for bit, what the backend reads from the folder."""
    for number, changes in enumerate(VARIANTS.values()):
        folder = tmp_path / str(number)
        hf_models.save_random_model(folder / "source", seed=number, **changes)
        convert(folder / "source", folder / "model.elmoe")
        expected = dequantised.from_source(folder / "source")
        found = dequantised.from_checkpoint(Checkpoint.open(folder / "model.elmoe"))
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
