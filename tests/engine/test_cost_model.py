import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.backend.protocol import DraftQuality
from elmoe.engine.cost_model import FIRST, CostModel, Pass, StepLog, interpolated, rising, sized
from elmoe.trace.schema import PassKind

AR, DRAFT, VERIFY = PassKind.AR, PassKind.DRAFT, PassKind.VERIFY


def model_of(*measured):
    costs = CostModel()
    for kind, rows, seconds in measured:
        costs.observe(Pass(kind, rows), seconds)
    return costs


def test_a_measured_size_is_quoted_as_measured():
    costs = model_of((AR, 4, 2.0), (AR, 4, 2.0), (AR, 5, 1.0), (AR, 5, 1.0))
    for rows, seconds in ((4, 2.0), (5, 1.0)):  # measurements are believed more than the rule that more rows cost more
        quote = costs.quote(Pass(AR, rows))
        assert (quote.seconds, quote.most, quote.measured, quote.known) == (seconds, seconds, 2, True)
        assert 0.8 * seconds < quote.least < seconds


def test_a_size_measured_once_may_cost_as_little_as_the_smaller():
    costs = model_of((VERIFY, 3, 1.0), (VERIFY, 3, 1.0), (VERIFY, 5, 4.0))
    assert costs.quote(Pass(VERIFY, 5)) == (4.0, 1.0, 4.0, 1)


def test_spikes_do_not_count():
    random_ = random.Random(1)
    values = [random_.lognormvariate(0, 0.1) * (5 if random_.random() < 0.1 else 1) for _ in range(400)]
    costs = model_of(*((AR, 1, value) for value in values))
    assert costs.quote(Pass(AR, 1)).seconds == pytest.approx(1, abs=0.15)
    assert costs.measured(Pass(AR, 1)) == 400
    assert FIRST < 400


@pytest.mark.parametrize(
    ("values", "seconds"),
    [([3], 3), ([9, 3], 3), ([3, 4], 3.5), ([3, 9, 4], 4), ([9, 1, 3, 4], 3.5), ([1, 2, 3, 4, 50], 3)],
)
def test_of_few_measurements_the_median_counts_or_the_one_that_is_no_outlier(values, seconds):
    costs = model_of(*((AR, 1, value) for value in values))
    (row,) = costs.table()
    assert row == {"kind": "ar", "quality": None, "rows": 1, "seconds": seconds, "measured": len(values)}


def test_a_lasting_change_of_one_size_is_learnt_without_blaming_the_machine():
    """AR passes get dearer (a longer context), drafts do not."""
    costs, draft = CostModel(), Pass(DRAFT, 2, DraftQuality())
    for step in range(600):
        costs.observe(Pass(AR, 1), 1.0 if step < 300 else 1.3)
        costs.observe(draft, 0.2)
    assert costs.quote(Pass(AR, 1)).seconds == pytest.approx(1.3, rel=0.03)
    assert costs.quote(draft).seconds == pytest.approx(0.2, rel=0.03)


def test_what_was_measured_on_a_slow_machine_is_compared_at_the_pace_of_now():
    random_, draft = random.Random(2), Pass(DRAFT, 2, DraftQuality())
    costs, slow = CostModel(), 1.0

    def run(one, seconds, count):
        for _ in range(count):
            costs.observe(one, slow * seconds * random_.lognormvariate(0, 0.1))

    run(Pass(AR, 1), 1.0, 100)
    run(draft, 0.2, 20)
    for _ in range(20):
        slow = 3.0 if slow == 1.0 else 1.0
        run(Pass(AR, 1), 1.0, 100)
        assert costs.pace == pytest.approx(slow, rel=0.25)
        assert costs.quote(draft).seconds == pytest.approx(slow * 0.2, rel=0.25), "though it was not run again"
    run(Pass(AR, 1), 1.0, 20_000)
    assert costs.quote(draft).seconds == pytest.approx(slow * 0.2, rel=0.25), "the pace does not drift"


def test_a_size_that_lay_idle_is_corrected_faster():
    fresh, idle = (model_of(*[(AR, 1, 1.0)] * 100, *[(VERIFY, 9, 5.0)] * passes) for passes in (0, 3000))
    for costs in (fresh, idle):
        for _ in range(4):
            costs.observe(Pass(AR, 1), 0.7)
    assert idle._sizes[Pass(AR, 1)].seconds < fresh._sizes[Pass(AR, 1)].seconds - 0.05


def test_kinds_and_draft_qualities_are_apart():
    costs, narrow = CostModel(), DraftQuality(2)
    costs.observe(Pass(DRAFT, 2, DraftQuality()), 1.0)
    costs.observe(Pass(DRAFT, 2, narrow), 0.5)
    assert costs.quote(Pass(DRAFT, 2, DraftQuality())).seconds == 1.0
    assert costs.quote(Pass(DRAFT, 2, narrow)).seconds == 0.5
    assert not costs.knows(AR)
    assert not costs.knows(VERIFY)
    assert not costs.knows(DRAFT, DraftQuality(3))
    assert [row["quality"]["bits"] for row in costs.table()] == [4, 2]


def test_sizes_between_are_interpolated_and_may_cost_as_little_as_the_smaller():
    costs = model_of((VERIFY, 4, 2.0), (VERIFY, 12, 4.0))
    assert costs.quote(Pass(VERIFY, 6)) == (2.5, 2.0, 2.5, 0)
    assert costs.quote(Pass(VERIFY, 24)) == (7.0, 4.0, 8.0, 0), "goes on as it ended"
    assert costs.quote(Pass(VERIFY, 2)) == (1.5, 1.5, 1.5, 0)
    assert [costs.quote(Pass(VERIFY, rows)).known for rows in (2, 6, 12, 24)] == [True, True, True, False]


def test_a_curve_that_was_flat_is_not_trusted_to_stay_so():
    costs = model_of((VERIFY, 4, 2.0), (VERIFY, 8, 2.0))
    assert costs.quote(Pass(VERIFY, 16)) == (3.0, 2.0, 4.0, 0)


def test_ar_passes_stand_in_for_small_verify_passes():
    costs = model_of((AR, 1, 1.0), (AR, 16, 9.0))
    assert costs.quote(Pass(VERIFY, 1)).seconds == 1.0
    assert costs.knows(VERIFY)
    costs.observe(Pass(VERIFY, 9), 3.0)
    assert costs.quote(Pass(VERIFY, 5)).seconds == 2.0
    assert costs.quote(Pass(VERIFY, 17)).seconds == 5.0, "the AR pass above is not used once verify passes are known"


@pytest.mark.parametrize(
    ("rows", "of"), [(1, 1), (31, 31), (32, 32), (33, 32), (35, 34), (144, 144), (151, 144), (152, 152)]
)
def test_similar_sizes_are_measured_together(rows, of):
    assert sized(Pass(AR, rows)) == Pass(AR, of)


points = st.lists(
    st.tuples(st.integers(1, 300), st.floats(0.01, 100)), min_size=1, max_size=12, unique_by=lambda point: point[0]
)


@given(points, st.integers(1, 400), st.integers(1, 400))
def test_interpolation_rises_with_the_rows_and_less_than_in_proportion_beyond_the_end(measured, rows, more):
    curve = rising(sorted(measured))
    low, high = sorted((rows, rows + more))
    assert 0 < interpolated(curve, low) <= interpolated(curve, high) * (1 + 1e-9)
    last, seconds = curve[-1]
    if high > last:
        assert seconds * (1 - 1e-9) <= interpolated(curve, high) <= seconds * high / last * (1 + 1e-9)


@given(points)
def test_rising_changes_nothing_that_rises_and_keeps_the_mean(measured):
    measured = sorted(measured)
    curve = rising(measured)
    seconds = [cost for _, cost in curve]
    assert seconds == sorted(seconds)
    assert sum(seconds) == pytest.approx(sum(cost for _, cost in measured))
    assert [cost for _, cost in rising(curve)] == pytest.approx(seconds)


def test_a_step_log_counts_all_the_time_between_two_passes(monkeypatch):
    clock = iter([10.0, 12.0, 15.0])
    monkeypatch.setattr("elmoe.engine.cost_model.time.perf_counter", lambda: next(clock))
    log = StepLog(2)
    log.end_pass(Pass(DRAFT, 2))
    log.end_pass(Pass(VERIFY, 6))
    assert log.passes == [(Pass(DRAFT, 2), 2.0), (Pass(VERIFY, 6), 3.0)]
