from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from host_files import MODEL, host

from elmoe.errors import ConfigError
from elmoe.sim.host.cache import Budget
from elmoe.sim.host.gain import Shape, Span, accepted_length, draw_tokens, gain, run_profile
from elmoe.sim.host.spec import Host
from elmoe.sim.locality import inclusion, power_law, unique_experts
from elmoe.sim.profile import RESIDENT, Profile

LARGER = replace(MODEL, experts=32, experts_per_tok=4, moe_layers=4, layers=4)


def profile(exponent: float = 1.2, reuse: float = 0.5) -> Profile:
    return Profile(
        name="made up", inclusion=np.full(32, 4 / 32), popularity=power_law(exponent, 32), inside_reuse=reuse,
        decode_hits=RESIDENT, verify_hits=RESIDENT, acceptance={}, pool_sharpness=1.0,
    )  # fmt: skip


def slow_host() -> Host:
    """A disk of 100 MB/s."""
    return host(
        slow={f"read_{size}_gb_per_s": 0.1 for size in ("16k", "64k", "256k", "1m", "4m")},
        fast={"gb_per_s": 10.0},
        work={"pass_us": 20.0, "layer_us": 2.0},
    )


BUDGET = Budget(420_000)


def test_tokens_are_drawn_by_popularity_without_replacement() -> None:
    tokens = draw_tokens(LARGER, profile(reuse=0.0), 1, 2000, np.random.default_rng(0))
    assert tokens.shape == (2000, 1, 4, 4)
    assert (np.diff(np.sort(tokens, axis=-1), axis=-1) > 0).all(), "no expert twice"
    shares = np.bincount(tokens.ravel(), minlength=32) / tokens[..., 0].size
    assert shares == pytest.approx(inclusion(profile().popularity, 4), abs=0.03)


def test_tokens_repeat_their_predecessors_experts() -> None:
    tokens = draw_tokens(LARGER, profile(exponent=0.0, reuse=0.6), 1, 1500, np.random.default_rng(0))
    pair = [len(set(a) | set(b)) for a, b in zip(tokens[:-1, 0, 0].tolist(), tokens[1:, 0, 0].tolist(), strict=True)]
    assert np.mean(pair) == pytest.approx(float(unique_experts(np.full(32, 4 / 32), 1, 2, 0.6)), rel=0.02)


def test_caching_helps_and_costs_no_tokens() -> None:
    found = gain(slow_host(), LARGER, profile(), BUDGET, Shape(2, 50, 1, 3, 3, 2.0))
    assert found.cache_gain > 1.2
    assert found.streaming.tokens == found.cached.tokens == 48 * 2
    assert found.streaming.slow_bytes > found.cached.slow_bytes
    assert found.elastic.tokens == pytest.approx(48 * 2 * 3.0)


def test_elastic_gains_with_acceptance() -> None:
    gains = [
        gain(slow_host(), LARGER, profile(), BUDGET, Shape(1, 50, 1, 4, 4, accepted)).elastic_gain
        for accepted in (0.0, 2.0, 4.0)
    ]
    assert gains == sorted(gains)
    assert gains[0] < 1 < gains[-1]


def test_the_best_split_is_no_worse_than_any_other() -> None:
    shape = Shape(2, 50, 1, 3, 3, 2.0)
    best = gain(slow_host(), LARGER, profile(), BUDGET, shape)
    whole = run_profile(slow_host(), LARGER, profile(), replace(BUDGET, lsb_share=1.0), shape)
    assert best.elastic.tokens_per_s >= whole.tokens_per_s
    assert 0 <= best.lsb_share <= 1


def test_skew_and_reuse_make_caches_better() -> None:
    plain = Shape(1, 50)
    rates = [
        run_profile(slow_host(), LARGER, each, BUDGET, plain).tokens_per_s
        for each in (profile(0.0, 0.0), profile(1.5, 0.0), profile(1.5, 0.7))
    ]
    assert rates == sorted(rates)


def test_the_same_seed_gives_the_same_numbers() -> None:
    one, same, other = (
        run_profile(slow_host(), LARGER, profile(), BUDGET, Shape(1, 50), Span(10, 10, seed)) for seed in (1, 1, 2)
    )
    assert one == same
    assert one.slow_bytes != other.slow_bytes


def test_drafts_use_the_pool_only() -> None:
    found = run_profile(slow_host(), LARGER, profile(), BUDGET, Shape(2, 50, 3, 4, 6, 1.0))
    assert found.phases["draft"].slow_bytes == 0
    assert found.counts == {"draft": 4 * 48, "verify": 48}


@pytest.mark.parametrize(("chance", "expected"), [(0.0, 0.0), (1.0, 3.0), (0.5, 0.875)])
def test_accepted_length_of_a_chain(chance: float, expected: float) -> None:
    assert accepted_length(chance, 3, 5) == expected
    assert accepted_length(chance, 5, 3) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": 0}, "batch and context must be at least 1"),
        ({"depth": 2}, "a tree needs width and verify"),
        ({"width": 1, "depth": 2, "verify": 2, "accepted_length": 3.0}, "3 accepted tokens of a tree of depth 2"),
        ({"accepted_length": 1.0}, "1 accepted tokens of a tree of depth 0"),
    ],
)
def test_shapes_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Shape(**({"batch": 1, "context": 1} | values))
