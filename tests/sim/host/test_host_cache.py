from __future__ import annotations

from dataclasses import replace
from typing import Any

import host_files
import numpy as np
import pytest
from host_files import MODEL, host
from hypothesis import given
from hypothesis import strategies as st

from elmoe.errors import CapacityError, ConfigError
from elmoe.sim.host.cache import PAGE, Arena, Budget, misses, slots
from elmoe.trace.replay import Accesses, Policy, miss_curve

LARGE = replace(MODEL, hidden=2048, expert_hidden=768, experts=128, experts_per_tok=8, moe_layers=8, layers=8)
"""Records of 2.5 MB."""
CELLS = np.array([100])


def test_an_arena_is_laid_out_as_the_engine_does() -> None:
    """Of eight layers of Qwen3-30B-A3B's experts, worked out by hand: pages, segments, and 16.8 MB in passing."""
    arena = Arena.of(host(engine={"in_flight_mb": 16.8}), LARGE)
    assert (arena.msb_bytes, arena.lsb_bytes) == (2048 * 768 * 3 * 9 // 16, 2048 * 768 * 3 // 2)
    assert arena.segment_bytes == 8 * arena.msb_bytes == 9 * arena.lsb_bytes
    assert arena.passing == 4
    assert arena.segments_for(8 * 20, 8 * 20) == -(-164 // 8) + -(-164 // 9)
    assert arena.records(40 * arena.segment_bytes, LARGE, 1.0) == (20, 20)
    assert arena.records(40 * arena.segment_bytes, LARGE, 0.0) == (38, 0), "LSB records still pass through"


def test_small_records_take_whole_pages() -> None:
    arena = Arena.of(host(), MODEL)
    assert (arena.msb_bytes, arena.lsb_bytes) == (PAGE, PAGE)
    assert arena.passing == 2


def fast_bytes(whole_experts: int) -> int:
    arena = Arena.of(host(), MODEL)
    kv = CELLS[0] * 2 * MODEL.kv_elements
    count = whole_experts * MODEL.moe_layers
    return int(MODEL.dense_bytes + kv) + arena.segments_for(count, count) * arena.segment_bytes + 1


@pytest.mark.parametrize("count", [2, 5, 8])
def test_what_is_left_beside_dense_weights_and_kv(count: int) -> None:
    found = slots(host(), MODEL, Budget(fast_bytes(count)), CELLS)
    assert found.msb[0] >= count
    assert found.lsb[0] <= found.msb[0] <= MODEL.experts
    less_kv = slots(host(), MODEL, Budget(fast_bytes(count)), CELLS // 10)
    assert less_kv.msb[0] >= found.msb[0], "the KV cache comes first"


def test_no_budget_holds_all() -> None:
    found = slots(host(), MODEL, Budget(), CELLS)
    assert (found.msb[0], found.lsb[0]) == (MODEL.experts, MODEL.experts)


@given(budget=st.integers(60_000, 400_000), share=st.sampled_from([0.0, 0.3, 1.0]), cells=st.integers(0, 100))
def test_a_budget_is_kept(budget: int, share: float, cells: int) -> None:
    arena = Arena.of(host(), MODEL)
    try:
        found = slots(host(), MODEL, Budget(budget, lsb_share=share), np.array([cells]))
    except CapacityError:
        return
    layers = MODEL.moe_layers
    used = arena.segments_for(int(found.msb[0]) * layers, int(found.lsb[0]) * layers) * arena.segment_bytes
    assert MODEL.dense_bytes + cells * 2 * MODEL.kv_elements + used <= budget
    assert found.lsb[0] <= found.msb[0]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(1000), "small: 1,000 bytes of fast memory are too few .*; give --fast-bytes at least"),
        (Budget(10**10), "test-host has 1 GB of fast memory; 10,000,000,000 bytes are beyond it"),
    ],
)
def test_budgets_that_cannot_be(budget: Budget, message: str) -> None:
    with pytest.raises(CapacityError, match=message):
        slots(host(), MODEL, budget, CELLS)


def test_the_least_budget_that_the_error_names_is_enough() -> None:
    with pytest.raises(CapacityError) as caught:
        slots(host(), MODEL, Budget(1000), CELLS)
    least = int(str(caught.value).rsplit(" ", 1)[1].replace(",", ""))
    assert slots(host(), MODEL, Budget(least), CELLS).msb[0] >= MODEL.experts_per_tok
    with pytest.raises(CapacityError):
        slots(host(), MODEL, Budget(least - 1), CELLS)


def test_a_model_beyond_all_memory_needs_a_budget() -> None:
    with pytest.raises(CapacityError, match=r"small: .* GB of weights do not fit .*; give a budget with --fast-bytes"):
        slots(host(fast={"capacity_gb": 1e-6}), MODEL, Budget(), CELLS)


@pytest.mark.parametrize(("change", "message"), [({"fast_bytes": 0}, "fast-bytes"), ({"lsb_share": 1.5}, "lsb-share")])
def test_settings_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**change)


def some_accesses(passes: int = 40) -> Accesses:
    rng = np.random.default_rng(3)
    popularity = np.arange(1, MODEL.experts + 1) ** -1.0
    draws = rng.random((passes, MODEL.moe_layers, MODEL.experts))
    return Accesses.of(draws < popularity)


@pytest.mark.parametrize("policy", [Policy.LRU, Policy.LFU, Policy.BELADY, Policy.HOT])
def test_misses_are_the_replays(policy: Policy) -> None:
    accesses = some_accesses()
    budget = Budget(fast_bytes(4), policy)
    held = slots(host(), MODEL, budget, np.full(len(accesses.reads), CELLS[0]))
    found = list(misses(accesses, held, budget))
    for plane, records in enumerate((held.msb, held.lsb)):
        expected = miss_curve(accesses, policy, [int(records[0])]).misses.sum()
        assert sum(np.count_nonzero(each[plane]) for each in found) == expected


def test_benefit_shares_one_arena_among_the_layers() -> None:
    """A layer that always reads the same two experts needs no more room; the other gets it."""
    reads = np.zeros((60, 2, 8), dtype=np.bool_)
    reads[:, 0, :2] = True
    rng = np.random.default_rng(0)
    for number in range(60):
        reads[number, 1, rng.choice(5, 2, replace=False)] = True
    budget = Budget(fast_bytes(4), Policy.BENEFIT)
    held = slots(host(), MODEL, budget, np.full(60, CELLS[0]))
    late = list(misses(Accesses.of(reads), held, budget))[30:]
    assert not any(msb.any() for msb, _ in late), "2 + 5 of 2 * 4 records"


def test_nothing_stays_without_a_policy_and_nothing_is_missing_without_a_budget() -> None:
    accesses = some_accesses(5)
    held = slots(host(), MODEL, Budget(), np.full(5, 1))
    for (msb, lsb), read in zip(misses(accesses, held, Budget(policy=None)), accesses.reads, strict=True):
        assert (msb == read).all()
        assert (lsb == read).all()
    assert not any(each.any() for pair in misses(accesses, held, Budget()) for each in pair)


def test_the_model_is_small() -> None:
    assert host_files.SHAPE.experts == MODEL.experts == 8
