"""What stays in the fast tier: values, divisions of the arena, the cost of reading."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.backend.tiers import LSB, MSB, TierCounters, TierLayout
from elmoe.engine.tiered_pool import REVIEW, CachePolicy, ReadCost, TieredPool, records_per_layer
from elmoe.models.footprint import Footprint

LAYERS, EXPERTS = 3, 16
SIZES = Footprint(
    dense=1 << 20,
    dense_msb=1 << 19,
    experts_msb=LAYERS * EXPERTS * 57344,
    experts_lsb=LAYERS * EXPERTS * 49152,
    scales=0,
    kv_per_token=64,
    windows=(),
    expert_msb=57344,
    expert_lsb=49152,
    moe_layers=LAYERS,
    experts=EXPERTS,
    experts_per_tok=2,
)
LAYOUT = TierLayout.of(SIZES)


class FakeTiers:
    """Remembers how it was divided; keeps the first experts of each layer."""

    layout = LAYOUT
    reader = "none"

    def __init__(self) -> None:
        self.quotas: list[npt.NDArray[np.int32]] = []

    def activation_bytes(self, rows: int, logits: int) -> int:
        return rows + logits

    def arrange(self, quotas: npt.NDArray[np.int32]) -> None:
        self.quotas.append(quotas.copy())

    def kept(self) -> npt.NDArray[np.bool_]:
        return np.arange(EXPERTS) < self.quotas[-1][:, :, None]

    def counters(self) -> TierCounters:
        return TierCounters()


def pool_of(policy: CachePolicy = CachePolicy.BENEFIT, segments: int = 6) -> TieredPool:
    return TieredPool(FakeTiers(), SIZES, segments, policy, decay=0.8)


def routing(*experts: int) -> npt.NDArray[np.int16]:
    """One row that chooses these in every layer."""
    return np.tile(np.array(experts, dtype=np.int16), (1, LAYERS, 1))


def reads(*experts: int) -> npt.NDArray[np.bool_]:
    return np.tile(np.isin(np.arange(EXPERTS), experts), (LAYERS, 1))


# --- divisions ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.booleans())
def test_divisions_fill_the_arena_and_no_more(segments: int, whole: bool) -> None:
    least = LAYOUT.least_bytes(SIZES) // LAYOUT.segment_bytes
    msb, lsb = records_per_layer(SIZES, LAYOUT, segments, whole)
    assert SIZES.experts_per_tok <= msb <= EXPERTS
    assert lsb <= msb
    if segments >= least:
        assert LAYOUT.segments_for(msb * LAYERS, lsb * LAYERS) <= segments
    if not whole:
        assert lsb == 0
    elif msb < EXPERTS and segments >= LAYOUT.segments_for((msb + 1) * LAYERS, (msb + 1) * LAYERS):
        pytest.fail("one more whole expert would have fitted")


@given(st.integers(3, 20), st.integers(0, 2**31), st.floats(0, 1e9))
def test_reviews_stay_within_the_arena(segments: int, seed: int, draft_bytes: float) -> None:
    pool, rng = pool_of(segments=segments), np.random.default_rng(seed)
    for _ in range(REVIEW):
        pool.draft_bytes = draft_bytes
        pool.observe(rng.integers(EXPERTS, size=(4, LAYERS, 2)).astype(np.int16))
        pool.fill(pool.choose(), rng.random((LAYERS, EXPERTS)) < rng.random((LAYERS, EXPERTS)))
    msb, lsb = pool.quotas.sum(axis=1)
    assert LAYOUT.segments_for(int(msb), int(lsb)) <= segments
    assert (pool.quotas[MSB] >= SIZES.experts_per_tok).all()
    assert (pool.quotas <= EXPERTS).all()


def test_where_drafts_are_worth_much_the_arena_holds_msb_records() -> None:
    shares = []
    for worth in (0.0, 1e9):
        pool = pool_of(segments=5)
        for _ in range(REVIEW):
            pool.draft_bytes = worth
            pool.observe(routing(*range(EXPERTS)))
            pool.fill(pool.choose(), reads(1, 2, 3, 9))
        msb, lsb = pool.quotas.sum(axis=1)
        shares.append(msb / (msb + lsb))
    assert shares[1] > shares[0]


def test_policies_divide_as_they_say() -> None:
    assert (pool_of(CachePolicy.NONE).quotas == 0).all()
    assert (pool_of(CachePolicy.HOTNESS).quotas[LSB] == 0).all()
    for policy in (CachePolicy.LRU, CachePolicy.LFU):
        quotas = pool_of(policy).quotas
        assert (quotas[MSB] == quotas[LSB]).all()
    assert not pool_of(CachePolicy.NONE).ready
    assert pool_of().ready


# --- values ---------------------------------------------------------------------------------------------------------


def test_what_is_read_often_is_worth_more_and_a_read_adds_to_it() -> None:
    pool = pool_of()
    for _ in range(5):
        pool.fill(pool.choose(), reads(1, 2))
    pool.fill(pool.choose(), reads(1, 3))
    values = pool.keep(1, None).values
    for plane in (MSB, LSB):
        now = values[0, plane, 0]
        assert now[1] > now[2] > now[3] > now[4]
        assert (values[1, plane, 0] > now).all()


def test_recency_and_frequency_break_ties_as_replays_do() -> None:
    lru, lfu = pool_of(CachePolicy.LRU), pool_of(CachePolicy.LFU)
    for pool in (lru, lfu):
        for experts in ((1, 2), (1, 2), (5, 7)):
            pool.fill(pool.choose(), reads(*experts))
    recent, frequent = (pool.keep(1, None).values[:, MSB, 0] for pool in (lru, lfu))
    assert recent[0, 7] > recent[0, 5] > recent[0, 2] > recent[0, 1] > recent[0, 3]
    assert recent[1].min() > recent[0].max()
    assert recent[1, 9] > recent[1, 8]
    assert frequent[0, 2] > frequent[0, 1] > frequent[0, 7] > frequent[0, 5] > frequent[0, 3]
    assert frequent[0, 2] > frequent[1, 3], "read once is less than read twice"


def test_hotness_values_count_routing_decisions() -> None:
    pool = pool_of(CachePolicy.HOTNESS)
    pool.observe(routing(4, 6))
    pool.observe(routing(4, 8))
    values = pool.keep(1, None).values
    assert (values[0] == values[1]).all()
    assert values[0, MSB, 0, 4] > values[0, MSB, 0, 6] > values[0, MSB, 0, 5]
    before = pool.hotness[0, 4]
    pool.fade()
    assert pool.hotness[0, 4] == pytest.approx(0.8 * before)


def test_what_the_draft_announced_is_expected_first() -> None:
    pool = pool_of()
    for _ in range(200):
        pool.fill(pool.choose(), reads(1, 2))
    announced = np.zeros((LAYERS, EXPERTS), dtype=np.int64)
    announced[:, 9], announced[:, 10] = 3, 1000
    expected = pool.keep(64, announced).expected
    assert expected is not None
    assert expected[0, 10] == 255
    assert expected[0, 10] > expected[0, 9] > expected[0, 1] > 0 == expected[0, 5]
    assert pool.keep(2, None).expected is None, "the backend's router knows better"
    assert pool.keep(64, None).expected is not None


# --- what reading costs ---------------------------------------------------------------------------------------------


def test_costs_are_those_of_the_passes() -> None:
    cost = ReadCost()
    assert cost.costs() == (0.0, 0.0)
    for slow_bytes in (1e6, 5e6, 2e6, 8e6) * 5:
        cost.observe(slow_bytes, 0.002 + slow_bytes / 2e9)
    fixed, per_byte = cost.costs()
    assert fixed == pytest.approx(0.002, rel=0.02)
    assert per_byte == pytest.approx(1 / 2e9, rel=0.02)


def test_passes_that_read_alike_cost_by_the_byte_and_never_below_zero() -> None:
    cost = ReadCost()
    for _ in range(10):
        cost.observe(4e6, 0.004)
    assert cost.costs() == (pytest.approx(0.0, abs=1e-9), pytest.approx(1e-9))
    for slow_bytes, seconds in ((1e6, 0.009), (8e6, 0.004)) * 10:  # fewer bytes, slower: others were at work
        cost.observe(slow_bytes, seconds)
    fixed, per_byte = cost.costs()
    assert fixed >= 0
    assert per_byte > 0


def test_more_coverage_is_worth_what_target_passes_read() -> None:
    pool = pool_of()
    pool.observe(routing(1, 2))
    pool.count_read(0.01, 1_000_000)
    for _ in range(400):
        pool.value_drafts(0.5)
    assert pool.draft_bytes == pytest.approx(0.5 * 1_000_000 / pool.coverage(), rel=0.01)
    for _ in range(400):
        pool.value_drafts(0.0)
    assert pool.draft_bytes < 1000
