from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.errors import ConfigError, TraceError
from elmoe.models.shape import ModelShape
from elmoe.sim.locality import (
    characteristic_time,
    fit_exponent,
    fit_reuse,
    hot_coverage,
    inclusion,
    lru_hit_rate,
    lru_miss_rate,
    measure,
    newcomer,
    power_law,
    unique_across,
    unique_experts,
    unique_inside,
)
from elmoe.trace.parquet import Trace, TraceWriter, read_trace
from elmoe.trace.replay import Accesses, Policy, miss_curve
from elmoe.trace.schema import PassKind, PassRecord

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

exponents = st.floats(0, 3)
reuses = st.floats(0, 0.95)


# --- popularity ---


def test_power_law() -> None:
    np.testing.assert_allclose(power_law(1.0, 3), np.array([6, 3, 2]) / 11)
    np.testing.assert_allclose(power_law([0.0, 2.0], 2), [[0.5, 0.5], [0.8, 0.2]])


@given(st.lists(exponents, min_size=1, max_size=4))
def test_the_exponent_is_found_again(true: list[float]) -> None:
    np.testing.assert_allclose(fit_exponent(power_law(true, 64)), true, atol=1e-3)
    np.testing.assert_allclose(fit_exponent(inclusion(power_law(true, 64), 6), 6), true, atol=1e-3)


def test_the_exponent_from_draws() -> None:
    """In any order of experts; few counts give too large an exponent, as documented."""
    rng = np.random.default_rng(1)
    counts = rng.multinomial(200_000, rng.permutation(power_law(0.8, 128)))
    assert fit_exponent(counts) == pytest.approx(0.8, abs=0.01)
    uniform = np.full(128, 1 / 128)
    assert fit_exponent(rng.multinomial(1_280, uniform)) == pytest.approx(0.25, abs=0.04)
    assert fit_exponent(rng.multinomial(128_000, uniform)) == pytest.approx(0.03, abs=0.01)


def test_the_exponent_of_nothing() -> None:
    with pytest.raises(ConfigError, match="counts that are all 0; record a longer trace"):
        fit_exponent([[1, 2], [0, 0]])


def test_hot_coverage() -> None:
    shares = np.array([0.2, 0.5, 0.3])
    np.testing.assert_allclose(hot_coverage(shares, [0, 1, 1.5, 3, 9]), [0, 0.5, 0.65, 1, 1])
    np.testing.assert_allclose(hot_coverage(np.full(8, 3.0), [2, 4]), [0.25, 0.5])
    assert hot_coverage(power_law([0.5, 1.0], 16)[:, None], [1, 2, 3]).shape == (2, 3)


# --- which experts passes read ---


def test_inclusion_of_uniform_weights_is_exact() -> None:
    np.testing.assert_allclose(inclusion(np.ones(32), [[1], [4], [32]])[:, 0, 0], [1 / 32, 4 / 32, 1])


@given(exponents, st.floats(0.5, 8))
def test_inclusion_sums_to_the_experts_of_a_token(exponent: float, per_token: float) -> None:
    share = inclusion(power_law(exponent, 24), per_token)
    assert share.sum() == pytest.approx(per_token)
    assert (np.diff(share) <= 0).all()
    assert share.max() <= 1


@given(st.integers(1, 32), st.integers(1, 40))
def test_unique_experts_of_uniform_popularity(per_token: int, tokens: int) -> None:
    """E (1 - (1 - k / E)^T), however the T tokens are grouped."""
    share = inclusion(np.ones(32), per_token)
    expected = 32 * (1 - (1 - per_token / 32) ** tokens)
    assert unique_experts(share, tokens) == pytest.approx(expected)
    assert unique_experts(share, 1, tokens) == pytest.approx(expected)


@given(exponents, st.integers(1, 9), st.integers(1, 9), reuses)
def test_unique_experts_between_its_limits(exponent: float, requests: int, tokens: int, reuse: float) -> None:
    """Independent tokens without reuse, one token per request when all is reused; more reuse, fewer experts."""
    share = inclusion(power_law(exponent, 32), 4)
    independent, single = unique_experts(share, requests * tokens), unique_experts(share, requests)
    assert unique_experts(share, requests, tokens) == pytest.approx(independent)
    assert unique_experts(share, requests, tokens, 1 - 1e-12) == pytest.approx(single)
    found = unique_experts(share, requests, tokens, [reuse, reuse + 0.05])
    assert single - 1e-6 <= found[1] <= found[0] + 1e-9 <= independent + 1e-6


@given(exponents, reuses)
def test_popularity_stays_what_it_is(exponent: float, reuse: float) -> None:
    """pi = pi P(again) + (1 - pi) P(newly picked)."""
    share = inclusion(power_law(exponent, 32), 4)
    new = newcomer(share, reuse)
    np.testing.assert_allclose(share * (reuse + (1 - reuse) * new) + (1 - share) * new, share)


def draws(weights: Float64, taken: Bool, count: npt.NDArray[Any], rng: np.random.Generator) -> Bool:
    """`count` [n] experts each, drawn without replacement by weight among those not `taken` [n, E]."""
    keys = np.where(taken, -np.inf, np.log(weights) + rng.gumbel(size=taken.shape))
    place = np.argsort(np.argsort(-keys, axis=1), axis=1)
    return place < count[:, None]


def decode(weights: Float64, per_token: int, requests: int, tokens: int, reuse: float, seed: int) -> Bool:
    """Routing [tokens, requests, E] of requests that repeat experts of the token before as `newcomer` says."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros((tokens, requests, len(weights)), dtype=np.bool_)
    for token in range(tokens):
        kept = chosen[token - 1] & (rng.random(chosen[0].shape) < reuse)
        chosen[token] = kept | draws(weights, kept, per_token - kept.sum(axis=1), rng)
    return chosen


SHUFFLED = np.random.default_rng(5).permutation(power_law(0.8, 64))
"""Expert numbers say nothing about popularity."""


@pytest.mark.parametrize(("exponent", "error"), [(0.0, 0.006), (0.5, 0.012), (1.0, 0.02), (2.0, 0.03)])
def test_inclusion_against_draws(exponent: float, error: float) -> None:
    """The time of the last arrival is not quite fixed: some hundredths at most, where weights differ much."""
    weights = power_law(exponent, 32)
    drawn = draws(weights, np.zeros((40_000, 32), dtype=np.bool_), np.full(40_000, 4), np.random.default_rng(1))
    assert np.abs(drawn.mean(axis=0) - inclusion(weights, 4)).max() < error


@pytest.mark.parametrize("reuse", [0.0, 0.4, 0.8])
def test_unique_experts_against_draws(reuse: float) -> None:
    """Within 2.5 % for up to 8 tokens of up to 4 requests."""
    chosen = decode(SHUFFLED, 6, requests=1600, tokens=28, reuse=reuse, seed=2)[20:]
    share = inclusion(SHUFFLED, 6)
    for requests in (1, 4):
        together = chosen.reshape(len(chosen), -1, requests, 64).any(axis=2)
        for tokens in (1, 2, 4, 8):
            drawn = together[:tokens].any(axis=0).sum(axis=1).mean()
            assert unique_experts(share, requests, tokens, reuse) == pytest.approx(drawn, rel=0.025)


# --- caches ---


@given(exponents, st.floats(1e-6, 127.999))
def test_the_characteristic_time_solves_its_equation(exponent: float, capacity: float) -> None:
    shares = power_law(exponent, 128)
    time_ = characteristic_time(shares, capacity)
    assert -np.expm1(-shares * time_[..., None]).sum() == pytest.approx(capacity, rel=1e-6, abs=1e-9)


def test_extreme_rates_converge() -> None:
    """Sixteen decades between the rates."""
    rates = np.logspace(0, -16, 128)
    capacity = np.linspace(0.5, 127.5, 50)
    found = -np.expm1(-rates * characteristic_time(rates, capacity)[:, None]).sum(axis=1)
    np.testing.assert_allclose(found, capacity, rtol=1e-9)


def test_no_capacity_and_all_of_it() -> None:
    """Experts that are never used need no room."""
    np.testing.assert_array_equal(characteristic_time([0.5, 0.5, 0.0], [-1, 0, 2, 3, 4]), [0, 0, *[np.inf] * 3])
    np.testing.assert_array_equal(lru_hit_rate([0.5, 0.5, 0.0], [-1, 0, 2, 3, 4]), [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(lru_miss_rate([0.5, 0.5, 0.0], [-1, 0, 2, 3, 4]), [1, 1, 0, 0, 0])


def test_uniform_popularity_hits_in_proportion() -> None:
    capacity = np.array([0, 3, 7.5, 16])
    np.testing.assert_allclose(lru_hit_rate(np.ones(16), capacity), capacity / 16)
    np.testing.assert_allclose(lru_miss_rate(inclusion(np.ones(16), 3), capacity, requests=5), 1 - capacity / 16)


def test_experts_of_every_pass_share_a_cache_that_is_too_small() -> None:
    np.testing.assert_allclose(lru_miss_rate(np.ones(8), [2, 4, 6, 8]), [0.75, 0.5, 0.25, 0], atol=1e-9)


@given(st.floats(0, 1.2), st.floats(0.1, 31), st.integers(1, 4))
def test_passes_without_reuse_follow_the_closed_form(exponent: float, capacity: float, requests: int) -> None:
    share = inclusion(power_law(exponent, 32), 4)
    q = 1 - (1 - share) ** requests
    tau = characteristic_time(-np.log1p(-q), capacity)
    expected = (q * (1 - q) ** tau).sum() / q.sum()
    assert lru_miss_rate(q, capacity) == pytest.approx(expected, abs=1e-9)
    assert lru_miss_rate(share, capacity, requests) == pytest.approx(expected, abs=1e-9)
    assert lru_miss_rate(share, capacity, 1, requests) == pytest.approx(expected, abs=1e-9)


@given(exponents, st.integers(1, 8), st.integers(1, 8), reuses)
def test_misses_fall_steadily_with_capacity_and_reuse(
    exponent: float, requests: int, tokens: int, reuse: float
) -> None:
    share = inclusion(power_law(exponent, 32), 4)
    curve = lru_miss_rate(share, np.linspace(0, 32, 129), requests, tokens, reuse)
    assert curve[0] == pytest.approx(1)
    assert curve[-1] == 0
    assert (np.diff(curve) <= 1e-9).all()
    assert np.abs(np.diff(curve)).max() < 0.12, "no jump where the cache holds just one pass"
    more = lru_miss_rate(share, np.linspace(0, 32, 129), requests, tokens, min(reuse + 0.05, 0.99))
    assert (more <= curve + 0.01).all()


CAPACITIES = np.array([8, 16, 24, 32, 48])


def test_che_against_replay_of_single_accesses() -> None:
    """Within one hundredth."""
    picks = np.random.default_rng(3).choice(64, 20_000, p=SHUFFLED)
    reads = (picks[:, None] == np.arange(64))[:, None]
    replayed = miss_curve(Accesses.of(reads), Policy.LRU, CAPACITIES, warm_up=1000).miss_rate
    np.testing.assert_allclose(1 - lru_hit_rate(SHUFFLED, CAPACITIES), replayed, atol=0.01)


@pytest.mark.parametrize("reuse", [0.0, 0.4, 0.8])
@pytest.mark.parametrize(("requests", "tokens"), [(1, 1), (4, 1), (1, 4), (4, 2)])
def test_passes_against_replay(requests: int, tokens: int, reuse: float) -> None:
    """Within 0.02; 0.05 where the cache holds little more or less than one pass."""
    chosen = decode(SHUFFLED, 6, requests, 1500 * tokens, reuse, seed=4)
    reads = chosen.reshape(1500, tokens * requests, 64).any(axis=1)
    replayed = miss_curve(Accesses.of(reads[:, None]), Policy.LRU, CAPACITIES, warm_up=100).miss_rate
    share = inclusion(SHUFFLED, 6)
    error = np.abs(lru_miss_rate(share, CAPACITIES, requests, tokens, reuse) - replayed)
    one_pass = unique_experts(share, requests, tokens, reuse)
    assert (error < np.where(np.abs(CAPACITIES - one_pass) < 16, 0.05, 0.02)).all()


def test_thousands_of_points_take_milliseconds() -> None:
    """Took 0.02 s where this was written."""
    exponent, capacity = np.linspace(0, 2, 50)[:, None], np.linspace(0, 128, 40)
    started = time.process_time()
    assert lru_hit_rate(power_law(exponent, 128), capacity).shape == (50, 40)
    assert lru_miss_rate(inclusion(power_law(exponent, 128), 8), capacity, 4, 2, 0.3).shape == (50, 40)
    assert time.process_time() - started < 0.5


@given(exponents, reuses)
def test_reuse_is_found_again(exponent: float, reuse: float) -> None:
    share = inclusion(power_law(exponent, 32), 4)
    unique = unique_experts(share, 1, np.arange(1, 9), reuse)
    assert fit_reuse(share, unique) == pytest.approx(reuse, abs=1e-6)
    assert fit_reuse(share, unique_experts(share, np.arange(1, 9)) + 0.1) == 0.0


# --- measured ---


def test_unique_inside_by_hand() -> None:
    """Requests of 3 and 1 tokens, one layer, two experts per token."""
    streams = [stream([0, 1], [1, 2], [1, 2]), stream([4, 3])]
    np.testing.assert_allclose(unique_inside(streams, 5, 8), [[2, (3 + 2) / 2, 3]])


def test_unique_across_by_hand() -> None:
    """All pairs of requests and tokens of theirs: 0 1 with 1 2 or 3 4, 0 1 with 0 1, 1 2 or 3 4 with 0 1."""
    streams = [stream([0, 1]), stream([1, 2], [3, 4]), stream([0, 1])]
    np.testing.assert_allclose(unique_across(streams, 5, 2), [[2, ((3 + 4) / 2 + 2 + (3 + 4) / 2) / 3]])
    assert unique_across(streams, 5, 9)[0, 2] == pytest.approx((3 + 4) / 2)


def stream(*rows: list[int]) -> npt.NDArray[np.int16]:
    return np.array(rows, dtype=np.int16)[:, None]


@pytest.fixture
def decoded(tmp_path: Path) -> Trace:
    """Plain decoding of 8 requests, 200 tokens each; 2 layers, reuse 0.5 in both, uniform popularity in the second."""
    shape = ModelShape(
        family="qwen3_moe",
        layers=2,
        moe_layers=(0, 1),
        hidden=32,
        heads=1,
        kv_heads=1,
        head_dim=32,
        experts=64,
        experts_per_tok=6,
        expert_hidden=32,
        dense_hidden=32,
        vocab=100,
        max_context=64,
        tied_head=True,
    )
    layers = [decode(weights, 6, 8, 200, 0.5, seed=6) for weights in (SHUFFLED, np.ones(64))]
    routing = [np.nonzero(layer)[2].reshape(200, 8, 6) for layer in layers]
    path = tmp_path / "t.parquet"
    with TraceWriter(path, shape, {}, "a test") as writer:
        for step, experts in enumerate(np.stack(routing, axis=2).astype(np.int16)):
            writer.record(plain_pass(step, experts))
    return read_trace(path)


def plain_pass(step: int, experts: npt.NDArray[np.int16]) -> PassRecord:
    """One token of each request; experts [R, L, A]."""
    rows, layers, per_token = experts.shape
    return PassRecord(
        step=step,
        kind=PassKind.AR,
        depth=0,
        sequences=np.arange(rows, dtype=np.int32),
        positions=np.full(rows, step, dtype=np.int32),
        tokens=np.zeros(rows, dtype=np.int32),
        kept=np.ones(rows, dtype=np.bool_),
        experts=experts,
        pool=np.zeros((layers, 64), dtype=np.bool_),
        distinct_experts=np.full(layers, per_token, dtype=np.int32),
        fast_bytes=0,
        slow_bytes=0,
        kv_bytes=0,
        seconds=0.0,
    )


def test_what_made_a_trace_is_measured_from_it(decoded: Trace) -> None:
    found = measure(decoded)
    assert found.tokens == 1600
    assert found.counts.sum(axis=1).tolist() == [1600 * 6] * 2
    np.testing.assert_allclose(found.exponent, [0.8, 0.0], atol=0.15)
    np.testing.assert_allclose(found.reuse, 0.5, atol=0.05)
    assert found.unique_inside.shape == found.unique_across.shape == (2, 8)
    share, tokens = found.inclusion[:, None], np.arange(1, 9)
    np.testing.assert_allclose(found.unique_inside, unique_experts(share, 1, tokens, found.reuse[:, None]), rtol=0.02)
    np.testing.assert_allclose(found.unique_across, unique_experts(share, tokens), rtol=0.03)
    assert found.capacities.tolist() == [0, 8, 16, 24, 32, 40, 48, 56, 64]
    assert set(found.replays) == set(Policy)
    modelled = lru_miss_rate(share, found.capacities, 8, 1, found.reuse[:, None]).mean(axis=0)
    np.testing.assert_allclose(modelled, found.replays[Policy.LRU].miss_rate, atol=0.05)


def test_what_is_measured_can_be_chosen(decoded: Trace) -> None:
    found = measure(decoded, longest=3, capacities=[5, 7], policies=[Policy.BELADY])
    assert found.unique_inside.shape == (2, 3)
    assert list(found.replays) == [Policy.BELADY]
    assert found.replays[Policy.BELADY].misses.shape == (2, 2)


def test_a_trace_without_decoded_tokens(decoded: Trace, tmp_path: Path) -> None:
    record = replace(next(decoded.passes()), kind=PassKind.PREFILL)
    path = tmp_path / "prompts.parquet"
    with TraceWriter(path, decoded.shape, {}, "") as writer:
        writer.record(record)
    with pytest.raises(TraceError, match=r"prompts\.parquet has no decoded tokens; record a longer trace$"):
        measure(read_trace(path))
