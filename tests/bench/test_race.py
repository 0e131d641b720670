"""Rounds take turns, ratios are taken inside a round, medians over rounds. The arms are scripted."""

import pytest

from elmoe.bench.arms import Sample
from elmoe.bench.race import race, rows
from elmoe.bench.workload import RacePlan
from elmoe.errors import ConfigError

PLAN = RacePlan(batches=(1, 2), prefill=4, steps=3, rounds=3, context=2)


class Scripted:
    """Runs at the speeds it is given, and says when."""

    def __init__(self, name, speeds, diary, baseline="ar", bytes_per_token=None, counters=None):
        self.name, self.baseline, self.diary = name, baseline, diary
        self.speeds, self.bytes_per_token, self.counters = iter(speeds), bytes_per_token, counters

    def decode(self, work):
        if len(work.steps) == PLAN.steps:
            self.diary.append((self.name, work.batch))
            speed = next(self.speeds)
            read = None if self.bytes_per_token is None else speed * self.bytes_per_token
            return Sample(speed, read, self.counters)
        self.diary.append((self.name, "warm"))
        return Sample(1.0)

    def prefill(self, prompt):
        self.diary.append((self.name, "prefill"))
        return 100.0 * len(prompt)


@pytest.fixture
def raced(small):
    """A machine whose rounds run at 1, 1/2 and 2 times the speed; the peer stumbles once."""
    diary = []
    ar = Scripted("ar", [10, 20, 5, 10, 20, 40], diary, bytes_per_token=1e9)
    peer = Scripted("peer", [5, 10, 2.5, 5, 40, 20], diary)
    sd = Scripted("sd", [15, 30, 7.5, 15, 30, 60], diary, counters={"acceptance_rate": 0.5})
    arms = [ar, peer, sd]
    rates = iter([40.0, 40.0, 20.0, 20.0, 80.0, 80.0])

    def probe():
        diary.append(("probe", ""))
        return next(rates)

    ticks = []
    timings = race(arms, PLAN, small.shape, probe, lambda done, total: ticks.append((done, total)))
    return diary, ticks, rows(arms, PLAN, timings, "peer"), rows(arms, PLAN, timings, None)


def test_rounds_take_turns(raced):
    diary, ticks, _, _ = raced
    assert diary[:6] == [(n, what) for n in ("ar", "peer", "sd") for what in ("prefill", "warm")]
    turn = ["ar", "peer", "sd"]
    expected = []
    for _ in range(3):
        expected += [(name, "prefill") for name in turn]
        for batch in (1, 2):
            expected += [("probe", ""), *((name, batch) for name in turn)]
        turn = [*turn[1:], turn[0]]
    assert diary[6:] == expected
    assert ticks == [(i + 1, 27) for i in range(27)]


def test_ratios_are_those_of_the_median_round(raced):
    _, _, found, _ = raced
    by_arm = {(row["arm"], row["batch"]): row for row in found}
    assert list(by_arm) == [(arm, batch) for batch in (1, 2) for arm in ("ar", "peer", "sd")]
    plain = by_arm["ar", 1]
    assert (plain["decode_tok_s"], plain["decode_tok_s_by_round"]) == (10, [10, 5, 20])
    assert plain["prefill_tok_s"] == 400
    assert plain["ratio_to_ar"] == 1
    assert plain["ratio_to_peer"] == 2, "2, 2 and 0.5"
    assert by_arm["sd", 2]["ratio_to_ar"] == 1.5
    assert by_arm["peer", 2]["ratio_to_peer"] == 1
    assert by_arm["sd", 1]["acceptance_rate"] == 0.5
    assert "acceptance_rate" not in plain


def test_bandwidth_is_compared_inside_a_round(raced):
    _, _, found, _ = raced
    assert found[0]["fraction_of_bandwidth"] == 0.25
    assert found[0]["read_gb_per_s_by_round"] == [40, 20, 80]
    assert found[1]["fraction_of_bandwidth"] is None


def test_without_a_peer_there_is_no_ratio_to_it(raced):
    assert {row["ratio_to_peer"] for row in raced[3]} == {None}


def test_a_plan_that_does_not_fit_is_refused_before_anything_runs(small):
    with pytest.raises(ConfigError, match="exceed the model's context"):
        race([], RacePlan(steps=127, context=2), small.shape, lambda: 1.0)
