"""The choice of experts against a definition row by row, for every kind of router, throttled and not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.backend.routing import choose
from elmoe.models.program import GroupScore, Router, Scoring

E, A = 12, 3
SOFTMAX = Router("w", 8, E, A, renormalize=True)
ROUTERS = {
    "qwen": SOFTMAX,
    "olmoe": replace(SOFTMAX, renormalize=False),
    "deepseek v2": replace(SOFTMAX, renormalize=False, groups=4, groups_kept=2, scale=1.5),
    "glm": replace(
        SOFTMAX, scoring=Scoring.SIGMOID, correction="c", groups=4, groups_kept=2, group_score=GroupScore.BEST_TWO,
        scale=1.8,
    ),
    "one group of all": replace(SOFTMAX, scoring=Scoring.SIGMOID, correction="c", renormalize=False),
}  # fmt: skip


def by_definition(router, logits, correction, allowed, count):
    """(own, used, weights) of one row, in Python floats."""
    if router.scoring is Scoring.SOFTMAX:
        top = max(logits)
        exponentials = [math.exp(x - top) for x in logits]
        scores = [x / sum(exponentials) for x in exponentials]
    else:
        scores = [1 / (1 + math.exp(-x)) for x in logits]
    ranks = [score + add for score, add in zip(scores, correction, strict=True)]
    size = E // router.groups
    of_groups = []
    for group in range(router.groups):
        best = sorted(ranks[group * size : (group + 1) * size], reverse=True)
        of_groups.append(best[0] if router.group_score is GroupScore.BEST else best[0] + best[1])
    kept = sorted(range(router.groups), key=lambda g: -of_groups[g])[: router.groups_kept]
    order = sorted(range(E), key=lambda e: -ranks[e])
    inside = [e for e in order if e // size in kept]
    own = inside[:A]
    used = own[:count]
    if allowed is not None:
        outside = [e for e in order if e // size not in kept]
        used = [e for e in [*inside, *outside] if allowed[e]][:count]
    weights = [scores[e] for e in used]
    if router.renormalize:
        weights = [weight / sum(weights) for weight in weights]
    return own, used, [weight * router.scale for weight in weights]


@pytest.mark.parametrize("name", ROUTERS)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, A), throttled=st.booleans())
def test_every_router_as_by_definition(name, seed, count, throttled):
    router, rng = ROUTERS[name], np.random.default_rng(seed)
    logits = (2 * rng.standard_normal((5, E))).astype(np.float32)
    correction = (0.3 * rng.standard_normal(E)).astype(np.float32) if router.correction else None
    allowed = None
    if throttled:
        allowed = np.zeros(E, dtype=np.bool_)
        allowed[rng.permutation(E)[: rng.integers(count, E + 1)]] = True
    choice = choose(router, logits, correction, allowed, count)
    for row in range(5):
        added = [0.0] * E if correction is None else correction.tolist()
        own, used, weights = by_definition(router, logits[row].tolist(), added, allowed, count)
        assert choice.own[row].tolist() == own
        assert choice.used[row].tolist() == used
        np.testing.assert_allclose(choice.weights[row], weights, rtol=1e-5)


def test_a_pool_without_kept_groups_still_has_experts():
    """Group-limited routing keeps groups 0 and 1; the pool holds experts of group 3 alone."""
    logits = np.zeros((1, E), dtype=np.float32)
    logits[0, :6] = 5
    allowed = np.arange(E) >= 9
    choice = choose(ROUTERS["deepseek v2"], logits, None, allowed, A)
    assert choice.own[0].tolist() == [0, 1, 2]
    assert choice.used[0].tolist() == [9, 10, 11]


def test_correction_chooses_and_does_not_weigh():
    logits = np.zeros((1, E), dtype=np.float32)
    correction = np.zeros(E, dtype=np.float32)
    correction[[2, 5, 11]] = 1
    choice = choose(ROUTERS["one group of all"], logits, correction, None, A)
    assert choice.own[0].tolist() == [2, 5, 11]
    assert choice.weights[0].tolist() == [0.5, 0.5, 0.5]


def test_scores_that_vanish_leave_no_nan():
    """A pool whose experts all score exactly 0 in FP32."""
    logits = np.zeros((1, E), dtype=np.float32)
    logits[0, :3] = 300
    allowed = np.arange(E) >= 6
    choice = choose(SOFTMAX, logits, None, allowed, A)
    assert choice.weights[0].tolist() == [0, 0, 0]
