from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.engine.engine import EngineOptions
from elmoe.engine.expert_pool import ExpertPool
from elmoe.errors import ConfigError
from elmoe.trace.parquet import read_trace
from elmoe.trace.replay import (
    DECAY,
    Accesses,
    Policy,
    miss_curve,
    recorded_accesses,
    regrouped,
    replay,
    request_streams,
    residents,
)
from elmoe.trace.schema import PassKind

Bool = npt.NDArray[np.bool_]


def reads_of(*passes: set[int], experts: int) -> Bool:
    """[P, 1, E]."""
    return np.array([[[expert in read for expert in range(experts)]] for read in passes], dtype=np.bool_)


@st.composite
def some_reads(draw: Any, most_passes: int = 30, most_experts: int = 8) -> Bool:
    """[P, L, E] with hot and cold experts; a pass may read none or all."""
    passes, layers = draw(st.integers(1, most_passes)), draw(st.integers(1, 3))
    experts = draw(st.integers(1, most_experts))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.random((passes, layers, experts)) < rng.random((layers, experts))


def some_accesses(reads: Bool, seed: int) -> Accesses:
    """With drafts and steps of several passes, as recorded ones have."""
    rng = np.random.default_rng(seed)
    return Accesses(
        reads=reads,
        hints=rng.integers(0, 4, reads.shape).astype(np.uint16),
        seen=(reads * rng.integers(0, 4, reads.shape)).astype(np.uint16),
        steps=np.cumsum(rng.integers(0, 3, len(reads))),
    )


# --- by hand ---


def test_hits_are_counted_against_the_content_before_the_pass() -> None:
    """The second pass finds 0 and 1, although reading 0, 1, 2 one after the other would push 1 out first."""
    reads = reads_of({0, 1}, {0, 1, 2}, {0, 1, 2}, experts=3)
    found = replay(Accesses.of(reads), 2, Policy.LRU)
    assert (found.hits.tolist(), found.misses.tolist()) == ([4], [4])
    assert found.miss_rate == 0.5


def test_ascending_numbers_within_a_pass() -> None:
    """A pass of four experts leaves its two highest in a cache of two."""
    reads = reads_of({0, 1, 2, 3}, {2, 3}, experts=4)
    assert replay(Accesses.of(reads), 2, Policy.LRU).hits.tolist() == [2]
    assert replay(Accesses.of(reads), 2, Policy.LFU).hits.tolist() == [2]


def test_lfu_keeps_the_frequent_and_breaks_ties_by_recency() -> None:
    reads = reads_of({0}, {0}, {1}, {2}, {0, 1}, {2}, {1}, experts=3)
    # held after each pass: 0, 0, 01, 02 (1 and 2 once, 2 later), 01 (1 twice), 02 (both twice, 2 later), 01
    assert replay(Accesses.of(reads), 2, Policy.LFU).hits.tolist() == [2]  # 0 in the second and in the fifth pass
    colder = reads_of({0}, {0}, {1}, {0}, experts=2)
    assert replay(Accesses.of(colder), 1, Policy.LFU).hits.tolist() == [2], "1 is colder than 0 and does not enter"


def test_belady_keeps_what_is_needed_soonest() -> None:
    reads = reads_of({0}, {1}, {2}, {0}, {1}, {2}, experts=3)
    assert replay(Accesses.of(reads), 2, Policy.LRU).hits.tolist() == [0]
    assert replay(Accesses.of(reads), 2, Policy.BELADY).hits.tolist() == [2]


def test_hot_enters_only_what_was_chosen_before_the_pass() -> None:
    """Nothing is hot before the first pass, so the lowest numbers are chosen; 2 enters when it is read again."""
    reads = reads_of({2}, {2}, {2}, experts=3)
    assert replay(Accesses.of(reads), 1, Policy.HOT).hits.tolist() == [1]


def test_layers_have_caches_of_their_own() -> None:
    reads = np.concatenate([reads_of({0}, {0}, {0}, experts=2), reads_of({0}, {1}, {0}, experts=2)], axis=1)
    found = replay(Accesses.of(reads), 1, Policy.LRU)
    assert found.hits.tolist() == [2, 0]
    np.testing.assert_allclose(found.layer_miss_rate, [1 / 3, 1])
    assert found.miss_rate == pytest.approx(4 / 6)


def test_warm_up_fills_the_cache_and_is_not_counted() -> None:
    reads = reads_of({0, 1}, {0, 1}, {0, 2}, experts=3)
    for policy in (Policy.LRU, Policy.LFU, Policy.BELADY):
        found = replay(Accesses.of(reads), 2, policy, warm_up=1)
        assert (found.hits.tolist(), found.misses.tolist()) == ([3], [1])


def test_nothing_read() -> None:
    for policy in Policy:
        found = replay(Accesses.of(np.zeros((0, 2, 4), dtype=np.bool_)), 2, policy)
        assert (found.hits.tolist(), found.misses.tolist()) == ([0, 0], [0, 0])
        assert found.miss_rate == 0.0


def test_a_negative_capacity() -> None:
    with pytest.raises(ConfigError, match="an expert cache of -1 per layer is impossible; give 0 or more"):
        miss_curve(Accesses.of(reads_of({0}, experts=2)), Policy.LRU, [2, -1])


# --- naive models ---


def naive_lru(reads: Bool, capacity: int) -> list[int]:
    """Hits per layer."""
    hits = []
    for layer in range(reads.shape[1]):
        stack: OrderedDict[int, None] = OrderedDict()
        count = 0
        for read in reads[:, layer]:
            experts = np.flatnonzero(read).tolist()
            count += sum(expert in stack for expert in experts)
            for expert in experts:
                stack[expert] = None
                stack.move_to_end(expert)
                if len(stack) > capacity:
                    stack.popitem(last=False)
        hits.append(count)
    return hits


def naive_lfu(reads: Bool, capacity: int) -> list[int]:
    hits = []
    for layer in range(reads.shape[1]):
        cached, times, count = set[int](), dict[int, int](), 0
        latest = dict[int, tuple[int, int]]()
        for index, read in enumerate(reads[:, layer]):
            experts = np.flatnonzero(read).tolist()
            count += len(cached & set(experts))
            for expert in experts:
                times[expert] = times.get(expert, 0) + 1
                latest[expert] = (index, expert)
            cached |= set(experts)
            while len(cached) > capacity:
                cached.remove(min(cached, key=lambda expert: (times[expert], latest[expert])))
        hits.append(count)
    return hits


def best_possible(reads: Bool, capacity: int) -> list[int]:
    """The most hits that any choice of contents gives, by trying all of them."""

    def most(layer: int) -> int:
        passes = [frozenset(np.flatnonzero(read).tolist()) for read in reads[:, layer]]

        @cache
        def from_here(index: int, cached: frozenset[int]) -> int:
            if index == len(passes):
                return 0
            at_hand = cached | passes[index]
            kept = combinations(sorted(at_hand), min(capacity, len(at_hand)))
            return len(cached & passes[index]) + max(from_here(index + 1, frozenset(some)) for some in kept)

        return from_here(0, frozenset())

    return [most(layer) for layer in range(reads.shape[1])]


def engine_pool(accesses: Accesses, capacity: int, decay: float) -> list[int]:
    """The engine's own pool, emptied at the start."""
    _, layers, experts = accesses.reads.shape
    pool = ExpertPool(layers, experts, experts_per_tok=1, slots=capacity, decay=decay)
    pool.resident = np.zeros((layers, experts), dtype=np.bool_)
    hits, before = np.zeros(layers, dtype=np.int64), accesses.steps[0]
    for read, hints, seen, step in zip(accesses.reads, accesses.hints, accesses.seen, accesses.steps, strict=True):
        for _ in range(step - before):
            pool.fade()
        before = step
        pool.hotness += hints
        wanted = pool.choose()
        hits += (pool.resident & read).sum(axis=1)
        pool.hotness += seen
        pool.fill(wanted, read)
    return hits.tolist()


@given(some_reads(), st.integers(0, 9))
def test_lru_is_the_naive_one(reads: Bool, capacity: int) -> None:
    assert replay(Accesses.of(reads), capacity, Policy.LRU).hits.tolist() == naive_lru(reads, capacity)


@given(some_reads(), st.integers(0, 9))
def test_lfu_is_the_naive_one(reads: Bool, capacity: int) -> None:
    assert replay(Accesses.of(reads), capacity, Policy.LFU).hits.tolist() == naive_lfu(reads, capacity)


@given(some_reads(most_passes=7, most_experts=5), st.integers(0, 5))
def test_belady_is_the_best_possible(reads: Bool, capacity: int) -> None:
    assert replay(Accesses.of(reads), capacity, Policy.BELADY).hits.tolist() == best_possible(reads, capacity)


@given(some_reads(), st.integers(1, 8), st.sampled_from([0.0, 0.5, 0.8, 1.0]), st.integers(0, 99))
def test_hot_is_the_engines_pool(reads: Bool, capacity: int, decay: float, seed: int) -> None:
    accesses, slots = some_accesses(reads, seed), min(capacity, reads.shape[2])
    found = replay(accesses, slots, Policy.HOT, decay=decay)
    assert found.hits.tolist() == engine_pool(accesses, slots, decay)


def test_the_decay_is_the_engines_default() -> None:
    assert EngineOptions().hotness_decay == DECAY


def likeliest(reads: Bool, capacity: int) -> list[int]:
    """What the rule of `Policy.BENEFIT` says, record by record."""
    hits = []
    for layer in range(reads.shape[1]):
        quick, slow = np.zeros(reads.shape[2]), np.zeros(reads.shape[2])
        cached, count = set[int](), 0
        for read in reads[:, layer]:
            experts = np.flatnonzero(read).tolist()
            count += len(cached & set(experts))
            before = (quick + slow) / 2
            quick, slow = 0.8 * quick + 0.2 * read, 0.98 * slow + 0.02 * read
            worth = {e: float((quick[e] + slow[e]) / 2 if read[e] else before[e]) for e in range(len(read))}
            cached = set(sorted(cached | set(experts), key=lambda e: (-worth[e], e))[:capacity])
        hits.append(count)
    return hits


@given(some_reads(), st.integers(0, 9))
def test_benefit_keeps_the_likeliest(reads: Bool, capacity: int) -> None:
    assert replay(Accesses.of(reads), capacity, Policy.BENEFIT).hits.tolist() == likeliest(reads, capacity)


# --- what caches hold ---


@given(some_reads(), st.integers(0, 9), st.sampled_from(list(Policy)), st.integers(0, 9))
def test_residents_are_what_hits_are_counted_against(reads: Bool, capacity: int, policy: Policy, seed: int) -> None:
    accesses = some_accesses(reads, seed)
    held = list(residents(accesses, capacity, policy))
    hits = sum(((each & read).sum(axis=1) for each, read in zip(held, reads, strict=True)), start=np.zeros(1, int))
    assert np.broadcast_to(hits, reads.shape[1:2]).tolist() == replay(accesses, capacity, policy).hits.tolist()
    assert all((each.sum(axis=1) <= capacity).all() for each in held)


def test_a_shrinking_cache_lets_the_lowest_ranked_go_before_the_pass() -> None:
    reads = reads_of({0, 1, 2}, {2}, {1}, {0}, experts=4)
    held = [
        np.flatnonzero(each[0]).tolist() for each in residents(Accesses.of(reads), np.array([3, 3, 2, 1]), Policy.LRU)
    ]
    assert held == [[], [0, 1, 2], [1, 2], [1]]


def test_a_negative_capacity_of_one_pass() -> None:
    with pytest.raises(ConfigError, match="an expert cache of -1 per layer is impossible"):
        residents(Accesses.of(reads_of({0}, {1}, experts=2)), np.array([1, -1]), Policy.LRU)


# --- properties ---


@given(some_reads(), st.integers(0, 99), st.integers(0, 5))
def test_bounds_of_every_policy(reads: Bool, seed: int, warm_up: int) -> None:
    accesses, experts = some_accesses(reads, seed), reads.shape[2]
    capacities = range(experts + 3)
    curves = {policy: miss_curve(accesses, policy, capacities, warm_up=warm_up) for policy in Policy}
    counted = reads[warm_up:].sum(axis=(0, 2))
    first_reads = reads.any(axis=0).sum(axis=1) - reads[:warm_up].any(axis=0).sum(axis=1)
    for policy, curve in curves.items():
        assert (curve.hits + curve.misses == counted).all()
        assert (curve.misses[0] == counted).all(), "nothing fits"
        assert (curve.misses[experts:] == first_reads).all(), f"{policy}: everything fits"
        assert curve.miss_rate.shape == (experts + 3,)
        if policy is not Policy.HOT:
            assert (np.diff(curve.misses, axis=0) <= 0).all(), f"{policy} has the stack property"
    if not warm_up:  # the optimum is one of the whole run
        for curve in curves.values():
            assert (curves[Policy.BELADY].misses <= curve.misses).all()


@pytest.mark.parametrize("policy", Policy)
def test_a_curve_is_made_of_replays(policy: Policy) -> None:
    reads = np.random.default_rng(1).random((50, 2, 6)) < 0.4
    accesses = some_accesses(reads, 2)
    curve = miss_curve(accesses, policy, [5, 0, 2], warm_up=3)
    for index, capacity in enumerate([5, 0, 2]):
        one = replay(accesses, capacity, policy, warm_up=3)
        assert one.misses.tolist() == curve.misses[index].tolist()
        assert one.miss_rate == curve.miss_rate[index]


def test_a_long_trace_of_a_large_model_takes_seconds() -> None:
    """10,000 passes of 48 layers with 128 experts took 0.9 s where this was written; six times that fails."""
    reads = np.random.default_rng(1).random((500, 48, 128)) < 0.1
    started = time.process_time()
    replay(Accesses.of(reads), 32, Policy.LRU)
    assert time.process_time() - started < 0.3


# --- from traces ---


def test_recorded_accesses(make_record: Any, write_trace: Any) -> None:
    """Prompts and drafts are hints for the pass after them; drafted sequences add nothing of their own."""
    prefill = replace(make_record(0, PassKind.PREFILL, 1), experts=routing([[0, 1], [4, 3]]))
    draft = replace(make_record(0, PassKind.DRAFT, 1), experts=routing([[1, 2], [0, 1]]))
    verify = replace(
        make_record(0, PassKind.VERIFY, 3),
        sequences=np.array([7, 8, 7], dtype=np.int32),
        experts=routing([[0, 2], [4, 0]], [[0, 1], [4, 3]], [[0, 1], [0, 1]]),
    )
    plain = replace(make_record(4, PassKind.AR, 1), experts=routing([[3, 4], [3, 4]]))
    trace = read_trace(write_trace([prefill, draft, verify, plain]))
    found = recorded_accesses(trace)
    assert found.reads.astype(int).tolist() == [
        [[1, 1, 1, 0, 0], [1, 1, 0, 1, 1]],
        [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]],
    ]
    assert found.hints.tolist() == [[[1, 2, 1, 0, 0], [1, 1, 0, 1, 1]], [[0] * 5] * 2]
    assert found.seen.tolist() == [[[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]], [[0, 0, 0, 1, 1]] * 2]
    assert found.steps.tolist() == [0, 4]
    everything = recorded_accesses(trace, [PassKind.PREFILL, PassKind.AR, PassKind.VERIFY])
    assert everything.hints[:2].tolist() == [[[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]], [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]]
    assert not everything.seen[0].any()


def test_long_prompts_do_not_overflow_the_hints(make_record: Any, write_trace: Any) -> None:
    prompt = replace(make_record(0, PassKind.PREFILL, 4096), experts=np.zeros((4096, 2, 2), dtype=np.int16))
    found = recorded_accesses(read_trace(write_trace([prompt] * 10 + [make_record(0, PassKind.AR, 1)])))
    assert found.hints[0, 0, 0] == 65535


def test_request_streams(make_record: Any, write_trace: Any) -> None:
    """Kept rows by request and position."""
    prefill = replace(
        make_record(0, PassKind.PREFILL, 1), experts=routing([[4, 4], [4, 4]]), **rows_of([3], [0], [True])
    )
    verify = replace(
        make_record(1, PassKind.VERIFY, 4),
        experts=routing([[0, 1], [0, 1]], [[1, 2], [1, 2]], [[2, 3], [2, 3]], [[3, 4], [3, 4]]),
        **rows_of([3, 3, 3, 9], [1, 2, 2, 5], [True, False, True, True]),
    )
    trace = read_trace(write_trace([prefill, verify]))
    found = request_streams(trace)
    assert list(found) == [3, 9]
    assert found[3].tolist() == [[[0, 1], [0, 1]], [[2, 3], [2, 3]]]
    assert found[9].tolist() == [[[3, 4], [3, 4]]]
    assert request_streams(trace, prompts=True)[3][0].tolist() == [[4, 4], [4, 4]]


def test_an_empty_trace(write_trace: Any) -> None:
    trace = read_trace(write_trace([]))
    assert recorded_accesses(trace).reads.shape == (0, 2, 5)
    assert request_streams(trace) == {}


def test_regrouped_streams_keep_the_batch_full() -> None:
    """Requests of 3, 1 and 2 tokens; token i of request r reads expert 10 r + i."""
    streams = [np.arange(size, dtype=np.int16).reshape(-1, 1, 1) + 10 * r for r, size in enumerate([3, 1, 2])]
    read = [set(np.flatnonzero(layer).tolist()) for layer in regrouped(streams, 32, 2).reads[:, 0]]
    assert read == [{0, 10}, {1, 20}, {2, 21}]
    read = [set(np.flatnonzero(layer).tolist()) for layer in regrouped(streams, 32, 1, tokens=2).reads[:, 0]]
    assert read == [{0, 1}, {2}, {10}, {20, 21}]
    with pytest.raises(ConfigError, match="a batch of 4 needs as many requests; the trace has 3"):
        regrouped(streams, 32, 4)


def routing(*rows: list[list[int]]) -> npt.NDArray[np.int16]:
    return np.array(rows, dtype=np.int16)


def rows_of(sequences: list[int], positions: list[int], kept: list[bool]) -> dict[str, Any]:
    return {
        "sequences": np.array(sequences, dtype=np.int32),
        "positions": np.array(positions, dtype=np.int32),
        "kept": np.array(kept),
    }
