"""Whole passes against the reference backend: equal bits in everything, for models and passes of all shapes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_models import ODD, config_of, make_model, without_head_norms
from story import Story
from twins import Checked, Oracle, Tell, open_on

from backend.passes import HALF_OF_TINY as HALF
from backend.passes import int32, joined, run_of, tree_of
from elmoe.backend.protocol import Backend, DraftQuality
from elmoe.checkpoint.folder import Checkpoint

OddModel = Callable[[str], Checkpoint]
Check = Callable[..., None]
TOKENS = np.random.default_rng(0).integers(3, 8192, 150).tolist()


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture
def check(request: pytest.FixtureRequest, oracle: Oracle, isa: str) -> Check:
    """``check(checkpoint, tell, *more)``: the path answers `tell` like the reference. `more`: what `tell` depends on
    beside the parameters of the test."""
    parameters = {name: value for name, value in request.node.callspec.params.items() if name != "isa"}

    def check(checkpoint: Checkpoint, tell: Tell, *more: object) -> None:
        key = (request.node.originalname, repr(parameters), more)
        checked = Checked(open_on(isa, checkpoint), oracle.answers(key, checkpoint, tell))
        tell(checked)
        assert checked.passes == len(checked.answers) > 0

    return check


@pytest.mark.parametrize("name", ODD)
def test_odd_models_in_random_passes(odd_model: OddModel, check: Check, name: str) -> None:
    seed = list(ODD).index(name)
    check(odd_model(name), lambda backend: Story(backend, np.random.default_rng(seed), sequences=3).tell(14))


@pytest.mark.parametrize("name", ["half_tiles", "bias", "extreme"])
def test_models_without_head_norms(odd_model: OddModel, check: Check, name: str) -> None:
    checkpoint = without_head_norms(odd_model(name))
    check(checkpoint, lambda backend: Story(backend, np.random.default_rng(0)).tell(10))


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes that the models of `ODD` do not have."""
    kv_heads, shared = draw(st.sampled_from([1, 2, 3, 4])), draw(st.integers(1, 8))
    head_dim = draw(st.sampled_from([8, 16, 24, 32, 40, 64, 96, 128]))
    if kv_heads * shared * head_dim % 32:
        head_dim = 32
    experts = draw(st.integers(1, 40))
    layers = draw(st.integers(1, 3))
    return config_of(
        hidden=32 * draw(st.integers(1, 7)),
        vocab=draw(st.integers(1, 1200)),
        heads=(kv_heads * shared, kv_heads, head_dim),
        experts=(experts, draw(st.integers(1, min(experts, 8))), 32 * draw(st.integers(1, 5))),
        layers=layers,
        mlp_only_layers=sorted(draw(st.sets(st.integers(1, layers), max_size=layers)) - {layers}),
        intermediate_size=32 * draw(st.integers(1, 8)),
        attention_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        norm_topk_prob=draw(st.booleans()),
    )


@given(configurations(), st.integers(0, 2**32 - 1))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_model_in_random_passes(check: Check, configuration: dict[str, Any], seed: int) -> None:
    def tell(backend: Backend) -> None:
        Story(backend, np.random.default_rng(seed), sequences=1 + seed % 4, cells=16 + seed % 200).tell(8)

    with tempfile.TemporaryDirectory() as folder:
        check(make_model(Path(folder), configuration, seed), tell, repr(configuration), seed)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tiny_in_random_passes(tiny: Checkpoint, check: Check, seed: int) -> None:
    check(tiny, lambda backend: Story(backend, np.random.default_rng(seed)).tell(5), seed)


@pytest.mark.parametrize("prefix", [0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 120, 127, 128, 129])
def test_a_tree_at_the_boundaries_of_blocks_and_spans(odd_model: OddModel, check: Check, prefix: int) -> None:
    """Blocks of 8 positions, of 16 keys and of 128 scores begin and end inside the prefix, the path, or between."""
    tokens = np.random.default_rng(prefix).integers(0, 17, 160).tolist()
    parents = [-1, 0, 0, 1, 1, 2, 5, 6, 7, 8, 9, 10]  # 8 deep

    def tell(backend: Backend) -> None:
        backend.allocate(0, 200)
        if prefix:
            backend.forward(run_of(tokens[:prefix]))
        for cells in (range(prefix, prefix + 12), [prefix, *range(199, 188, -1)], range(prefix, prefix + 60, 5)):
            backend.forward(tree_of(tokens[:12], parents, prefix, cells))
            backend.forward(tree_of(tokens[:12], parents, prefix, cells), draft=DraftQuality())

    check(odd_model("all_experts"), tell)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 33, 66])
def test_chunks_of_rows(tiny: Checkpoint, check: Check, count: int) -> None:
    """Kernels take 4 or 16 rows at a time."""

    def tell(backend: Backend) -> None:
        backend.allocate(0, 120)
        backend.forward(run_of(TOKENS[:count]))
        backend.forward(run_of(TOKENS[count : count + 20], 0, count), HALF, DraftQuality(experts_per_tok=3))

    check(tiny, tell)


@pytest.mark.parametrize("bits", range(2, 9))
def test_draft_qualities(tiny: Checkpoint, check: Check, bits: int) -> None:
    def tell(backend: Backend) -> None:
        backend.allocate(0, 30)
        backend.forward(run_of(TOKENS[:5]))
        for experts in (None, 1, 3, 9):
            backend.forward(run_of(TOKENS[5:8], 0, 5), HALF, DraftQuality(bits, experts_per_tok=experts))
            backend.forward(run_of(TOKENS[8:9], 0, 8), None, DraftQuality(bits, experts_per_tok=experts))

    check(tiny, tell)


@pytest.mark.parametrize("best", [1, 2, 512, 513, 8192, 10**6])
def test_best_logits(tiny: Checkpoint, check: Check, best: int) -> None:
    """The vocabulary is scanned in parts of 512."""

    def tell(backend: Backend) -> None:
        backend.allocate(0, 30)
        for wanted in ([5], [0, 5, 3, 3], []):
            answer = backend.forward(replace(run_of(TOKENS[:6]), logits=int32(wanted), best=best))
            assert answer.best is not None
            assert answer.best.tokens.shape == (len(wanted), min(best, 8192))

    check(tiny, tell)


@pytest.mark.parametrize("best", [1, 2, 17, 600, 1040])
def test_ties_go_to_the_lower_token_and_the_lower_expert(odd_model: OddModel, check: Check, best: int) -> None:
    """Among vectors of 16 and parts of 512 logits; five different ones in all."""

    def tell(backend: Backend) -> None:
        backend.allocate(0, 4)
        answer = backend.forward(replace(run_of([3, 4, 700]), best=best))
        assert answer.best is not None
        assert len(np.unique(answer.best.logits[0])) <= 5
        assert (answer.best.tokens[:, :5] < 5 * 208).all()
        assert (np.sort(answer.experts[:, 0], axis=1)[:, 0] < 5).all()

    check(odd_model("ties"), tell)


def test_sequences_of_unequal_lengths_together(tiny: Checkpoint, check: Check) -> None:
    """Prefill, decode and trees of several sequences in one pass."""

    def tell(backend: Backend) -> None:
        for sequence in (7, -3, 2**31 - 1):
            backend.allocate(sequence, 150)
        backend.forward(joined(run_of(TOKENS[:100], 7), run_of(TOKENS[:1], -3)))
        tree = tree_of(TOKENS[:5], [-1, 0, 0, 2, -1], 1, [1, 40, 3, 149, 16], -3)
        backend.forward(joined(run_of(TOKENS[100:101], 7, 100), run_of(TOKENS[:30], 2**31 - 1), tree), HALF)

    check(tiny, tell)


def test_move_is_as_if_all_at_once(odd_model: OddModel, check: Check) -> None:
    """Chains, swaps, copies of one cell to many; then every cell is looked at."""
    moves = (
        ([0, 1, 2], [1, 2, 3]),
        ([5, 39], [39, 5]),
        ([17, 17, 17], [16, 18, 31]),
        ([], []),
        ([4], [4]),
        (range(40), range(39, -1, -1)),
    )

    def tell(backend: Backend) -> None:
        backend.allocate(0, 40)
        backend.forward(run_of(list(range(40))))
        for source, destination in moves:
            backend.move(0, int32(source), int32(destination))
            rows = run_of([7], 0, 39)
            backend.forward(replace(rows, path=int32(range(38, -1, -1))[None], prefix=int32([0])))

    check(odd_model("bias"), tell)
