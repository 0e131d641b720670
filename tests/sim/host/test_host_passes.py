"""Closed forms: a host on which all but one thing is free takes exactly the time of that thing."""

from __future__ import annotations

from typing import Any

import host_files
import numpy as np
import numpy.typing as npt
import pytest
from host_files import MODEL, host
from hypothesis import given
from hypothesis import strategies as st

from elmoe.sim.host.passes import PassClock, PassLoad
from elmoe.sim.model import BYTES_FULL, BYTES_LSB, BYTES_MSB

LAYERS, EXPERTS = MODEL.moe_layers, MODEL.experts
EXPERT = MODEL.expert_params


def chosen(*rows: float) -> npt.NDArray[np.float64]:
    """The same rows of each expert in both layers."""
    return np.tile(np.array([*rows, *([0.0] * (EXPERTS - len(rows)))]), (LAYERS, 1))


def missing(*experts: int) -> npt.NDArray[np.bool_]:
    return np.tile(np.isin(np.arange(EXPERTS), experts), (LAYERS, 1))


def seconds(load: PassLoad, **changes: dict[str, Any]) -> float:
    return PassClock(host(**changes), MODEL).time(load).seconds


def load(rows: int = 1, experts: npt.NDArray[np.float64] | None = None, **more: Any) -> PassLoad:
    cells = more.pop("cells", 10.0)
    return PassLoad(rows, cells, cells, chosen(1, 1) if experts is None else experts, **more)


def test_weights_stream_from_memory_once_whatever_the_rows() -> None:
    dense = MODEL.dense_params * BYTES_FULL + 2 * EXPERT * LAYERS * BYTES_FULL
    for rows in (1, 8):
        found = seconds(load(rows, chosen(rows, rows)), fast={"gb_per_s": 0.001})
        assert found == pytest.approx(dense / 0.001 * 1e-9, rel=1e-3)


def test_a_draft_streams_msb_planes() -> None:
    weights = MODEL.dense_params + 2 * EXPERT * LAYERS
    found = seconds(load(is_draft=True), fast={"gb_per_s": 0.001})
    assert found == pytest.approx(weights * BYTES_MSB / 0.001 * 1e-9, rel=1e-3)


def test_products_take_the_time_of_their_own_rows() -> None:
    rates = {f"rows_{rows}": 0.001 for rows in (1, 2, 4, 8, 16, 32, 64)}
    macs = 4 * MODEL.dense_params + (3 + 1) * EXPERT * LAYERS
    assert seconds(load(4, chosen(3, 1)), target=rates) == pytest.approx(macs / 0.001 * 1e-9, rel=1e-3)
    assert seconds(load(4, chosen(3, 1)), draft=rates) == pytest.approx(0, abs=1e-9), "not of this pass"


def test_what_fits_the_cache_is_not_streamed() -> None:
    slow = {"gb_per_s": 0.001, "cache_mb": 100.0}
    assert seconds(load(), fast=slow) == pytest.approx(0, abs=1e-9)


def test_rows_are_dealt_out_whole() -> None:
    """One row keeps both threads as long as two do."""
    times = [seconds(load(rows), work={"row_us": 1.0}) for rows in (1, 2, 3)]
    assert times == pytest.approx([2 * 2e-6, 2 * 2e-6, 2 * 4e-6], rel=1e-3)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("pass_us", 5.0, 5e-6),
        ("layer_us", 5.0, 2 * 5e-6),
        ("expert_us", 5.0, 2 * 2 * 5e-6),
        ("hidden_ns", 1.0, 2 * 2 * 64e-9),
        ("choice_ns", 1.0, 2 * 2 * 8e-9),
        ("slot_ns", 1.0, 2 * 2 * (64 + 32) * 1e-9),
        ("logit_ns", 1.0, 128e-9),
        ("router_gmac_per_s", 0.001, 2 * 2 * 64 * 8 / 0.001 * 1e-9),
        ("attention_gmac_per_s", 0.001, 10 * MODEL.attention_macs / 0.001 * 1e-9),
        ("kv_gb_per_s", 0.001, 10 * MODEL.kv_elements * 2 / 0.001 * 1e-9),
    ],
)
def test_costs_of_rows(field: str, value: float, expected: float) -> None:
    assert seconds(load(), work={field: value}) == pytest.approx(expected, rel=1e-3)


def slow_at(gb_per_s: float, **more: Any) -> dict[str, Any]:
    return {f"read_{size}_gb_per_s": gb_per_s for size in ("16k", "64k", "256k", "1m", "4m")} | more


def test_missing_records_are_read_one_after_the_other() -> None:
    """Small records take the time of the smallest request."""
    request = 16384 / 0.001 * 1e-9
    both = load(missing_msb=missing(0, 1), missing_lsb=missing(0))
    assert seconds(both, slow=slow_at(0.001)) == pytest.approx(LAYERS * 3 * request, rel=1e-3)
    assert PassClock(host(), MODEL).time(both).slow_bytes == EXPERT * LAYERS * (2 * BYTES_MSB + BYTES_LSB)


def test_the_reader_gets_a_share_of_the_disks_rate() -> None:
    one = load(missing_msb=missing(0), missing_lsb=missing())
    whole, half = (seconds(one, slow=slow_at(0.001), engine={"read_efficiency": share}) for share in (1.0, 0.5))
    assert half == pytest.approx(2 * whole, rel=1e-3)


def test_a_draft_reads_nothing_slow() -> None:
    assert PassClock(host(), MODEL).time(load(is_draft=True)).slow_bytes == 0


def test_an_idle_disk_needs_its_latency_once_per_layer() -> None:
    nothing = load(missing_msb=missing(), missing_lsb=missing())
    some = load(missing_msb=missing(0, 1), missing_lsb=missing())
    assert seconds(nothing, slow={"latency_us": 50.0}) == pytest.approx(0, abs=1e-9)
    assert seconds(some, slow={"latency_us": 50.0}) == pytest.approx(LAYERS * 50e-6, rel=1e-3)


def test_experts_that_are_there_are_computed_while_others_are_read() -> None:
    """Computing both takes 2 * 10 us, reading the second 16: it is there when the first is done, or 6 us later."""
    busy = {"expert_us": 10.0}
    one = load(missing_msb=missing(1), missing_lsb=missing())
    for request_us, expected in ((4, 20), (10, 20), (16, 26)):
        slow = slow_at(16384 / (request_us * 1e3))
        assert seconds(one, work=busy, slow=slow) == pytest.approx(LAYERS * expected * 1e-6, rel=1e-3)


def test_prefetching_uses_the_time_before_the_experts_are_known() -> None:
    slow, work = slow_at(16384 / 16e3), {"layer_us": 10.0}
    one = load(missing_msb=missing(1), missing_lsb=missing())
    for share, expected in ((0.0, 26), (0.5, 21), (1.0, 16)):
        found = seconds(one, work=work, slow=slow, engine={"prefetch_share": share})
        assert found == pytest.approx(LAYERS * expected * 1e-6, rel=1e-3)


def test_records_are_checked_by_one_thread_each() -> None:
    one, two = load(missing_msb=missing(0), missing_lsb=missing()), load(missing_msb=missing(0, 1))
    work = {"check_gb_per_s": 0.001}
    record = EXPERT * BYTES_MSB / 0.001 * 1e-9
    assert seconds(one, work=work) == pytest.approx(LAYERS * record, rel=1e-3)
    assert seconds(two, work=work) == pytest.approx(LAYERS * record, rel=1e-3), "two at once"


def test_both_are_slower_while_both_go_on() -> None:
    """20 us of computing at half its speed beside 10 us of reading take 5 us more."""
    work, slow = {"expert_us": 10.0}, slow_at(16384 / 10e3)
    one = load(missing_msb=missing(0), missing_lsb=missing())
    found = seconds(one, work=work, slow=slow, engine={"compute_while_reading": 0.5})
    assert found == pytest.approx(LAYERS * 25e-6, rel=1e-3)


@given(
    rows=st.integers(1, 40),
    experts=st.lists(st.integers(0, 9), min_size=EXPERTS, max_size=EXPERTS),
    absent=st.sets(st.integers(0, EXPERTS - 1)),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_a_pass_is_bounded_by_its_parts(rows: int, experts: list[int], absent: set[int], share: float) -> None:
    """At least the longer of disk and computation, at most their sum and what comes before."""
    changes: dict[str, dict[str, Any]] = {
        "slow": slow_at(1.0, latency_us=3.0), "work": {"expert_us": 7.0, "layer_us": 5.0},
        "engine": {"prefetch_share": share},
    }  # fmt: skip
    counts = chosen(*experts)
    gone = missing(*absent) & (counts > 0)
    whole = PassLoad(rows, 1.0, 1.0, counts, gone, gone)
    there = PassLoad(rows, 1.0, 1.0, counts, missing(), missing())
    clock = PassClock(host(**changes), MODEL)
    found, without = clock.time(whole), clock.time(there)
    assert found.seconds >= without.seconds - 1e-12
    assert found.seconds <= without.seconds + found.disk_seconds + 1e-12
    assert found.seconds >= found.disk_seconds - share * LAYERS * 5e-6 - 1e-9


def test_sums() -> None:
    one = PassClock(host(work={"layer_us": 1.0}), MODEL).time(load(missing_msb=missing(0), missing_lsb=missing(0)))
    both = one + one
    assert (both.seconds, both.slow_bytes, both.kv_bytes) == (2 * one.seconds, 2 * one.slow_bytes, 2 * one.kv_bytes)
    assert one.fast_bytes == pytest.approx(MODEL.dense_bytes + LAYERS * 2 * EXPERT * BYTES_FULL - one.slow_bytes), (
        "what is not read from the slow tier"
    )


def test_the_small_model_is_what_the_tests_think() -> None:
    assert (host_files.SHAPE.hidden, host_files.SHAPE.expert_hidden, host_files.SHAPE.vocab) == (64, 32, 128)
