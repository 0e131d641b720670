from __future__ import annotations

import numpy as np
import pytest

from elmoe.sim.headline import OURS, PRIOR, Gain, best_mode, headline
from elmoe.sim.spec import SYSTEMS


@pytest.fixture(scope="module")
def at_8_gb():
    return headline(8.0, batches=(1, 4, 16))


def test_gains_are_over_all_points() -> None:
    gain = Gain.of([np.array([1.0, 3.0]), np.array([2.0])])
    assert (gain.mean, gain.largest, gain.smallest) == (2.0, 3.0, 1.0)


def test_every_system_is_compared_and_the_baseline_is_one(at_8_gb) -> None:
    assert set(at_8_gb.system_speedup) == set(SYSTEMS)
    xpu = at_8_gb.system_speedup["xpu"]
    assert (xpu.mean, xpu.smallest, xpu.largest) == (1.0, 1.0, 1.0)
    assert at_8_gb.system_speedup[OURS] == at_8_gb.speedup_vs_xpu


def test_the_best_prior_is_at_least_as_fast_as_each_prior(at_8_gb) -> None:
    assert at_8_gb.speedup_vs_best_prior.mean <= at_8_gb.speedup_vs_xpu.mean
    for name in PRIOR:
        assert at_8_gb.system_speedup[name].smallest >= 1.0, "a scheduler never takes the slower unit"


def test_more_hb_is_faster_on_average(at_8_gb) -> None:
    assert headline(4.0, batches=(1, 4, 16)).speedup_vs_xpu.mean < at_8_gb.speedup_vs_xpu.mean


def test_the_better_mode_is_chosen_point_by_point() -> None:
    best = best_mode(OURS, 4.0, "deepseek-v2-lite", "mt-bench", (1, 16))
    assert best.speculative.tolist() == [False, True]
    assert (best.latency_ms > 0).all()
    assert not best_mode("xpu", 4.0, "deepseek-v2-lite", "mt-bench", (1,)).speculative.any()
