import json
from itertools import pairwise, repeat

import pytest
from simulated_machine import Machine, decode, linear, moe

from elmoe.backend.protocol import DraftQuality
from elmoe.engine.controller import Controller, Mode, Plan, Speculation
from elmoe.errors import ConfigError

W2 = Speculation(width=2, depth=4, verify=8)
W1 = Speculation(width=1, depth=8, verify=8)
CURVES = {"flat": linear(0.02), "0.1": linear(0.1), "0.3": linear(0.3), "compute": linear(1.0), "moe": moe}


# --- settings ---


@pytest.mark.parametrize(("mode", "depths"), [(Mode.AR, [0, 0, 0]), (Mode.SD, [3, 3, 3]), (Mode.AUTO, [0, 0, 3])])
def test_depth_by_mode_and_batch_with_a_threshold(mode, depths):
    speculation = Speculation(mode=mode, depth=3, tau=4)
    assert [speculation.fixed_depth(batch) for batch in (1, 3, 4)] == depths
    assert [Controller().plan(speculation, batch) for batch in (1, 3, 4)] == [Plan(depth, 8) for depth in depths]


def test_without_a_threshold_measurements_decide():
    assert Speculation(mode=Mode.AUTO).fixed_depth(16) is None
    assert Speculation(mode=Mode.AUTO, depth=0).fixed_depth(16) == 0


def test_a_shallower_tree_verifies_in_proportion():
    assert [W2.verify_at(depth) for depth in range(1, 5)] == [2, 4, 6, 8]
    assert [Speculation(depth=3, verify=4).verify_at(depth) for depth in range(1, 4)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"width": 0}, "speculation width must be a whole number from 1 to 64, not 0"),
        ({"depth": -1}, "speculation depth must be a whole number from 0 to 64, not -1"),
        ({"verify": 0}, "speculation verify must be a whole number from 1 to 1024, not 0"),
        ({"tau": 0}, "speculation tau must be a whole number from 1 to 1024, not 0"),
        ({"width": 10**9}, "speculation width must be a whole number from 1 to 64, not 1000000000"),
        ({"width": None}, "speculation width must be a whole number from 1 to 64, not None"),
        ({"depth": 2.0}, "speculation depth must be a whole number from 0 to 64, not 2.0"),
        ({"mode": "sd"}, "speculation mode must be Mode.AR, Mode.SD or Mode.AUTO, not 'sd'"),
    ],
)
def test_impossible_speculation_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Speculation(**settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bits": 1}, "draft bits must be 2 to 7, or 8 for undegraded weights, not 1"),
        ({"bits": 9}, "draft bits must be 2 to 7, or 8 for undegraded weights, not 9"),
        ({"experts_per_tok": 0}, "draft experts per token must be at least 1, not 0"),
    ],
)
def test_impossible_draft_quality_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        DraftQuality(**settings)


# --- decisions on a simulated machine ---


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("draft", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("batch", [1, 16])
def test_never_slower_than_plain_decoding_and_near_the_best_depth(curve, draft, batch):
    """2,000 tokens per sequence, 10 % noise, every hundredth pass five times as long."""
    for speculation, chance in ((W2, 0.3), (W2, 0.85), (W1, 0.6), (W1, 0.95)):
        machine, controller = Machine(CURVES[curve], draft, chance, seed=3), Controller()
        run = decode(controller, machine, speculation, repeat(batch), tokens=2000)
        plain, (best, depth) = machine.rate(speculation, 0, batch), machine.best(speculation, batch)
        case = f"width {speculation.width}, chance {chance}, best depth {depth}, steps {run.steps_by_depth}"
        assert run.rate >= 0.97 * plain, case
        if best > 1.1 * plain:
            assert run.rate >= 0.95 * best, case
        assert controller.switches <= 20, case


def test_where_speculation_loses_by_far_its_trials_become_rare():
    controller, machine = Controller(), Machine(linear(1.0), 1.0, 0.2)
    first = decode(controller, machine, W2, repeat(4, 500)).steps_by_depth
    later = decode(controller, machine, W2, repeat(4, 4000)).steps_by_depth
    assert controller.switches == 0
    assert 1 <= first.total() - first[0] <= 10
    assert later.total() - later[0] <= 10


def test_a_short_generation_of_a_new_engine_is_not_spent_on_trials():
    for curve in CURVES.values():
        machine = Machine(curve, 1.0, 0.2)
        run = decode(Controller(), machine, W2, repeat(1), tokens=128)
        assert run.rate >= 0.95 * machine.rate(W2, 0, 1)


def test_it_follows_the_batch():
    """Speculation wins alone, and loses in a batch."""
    machine, controller = Machine(linear(0.15), 0.2, 0.9, seed=5), Controller()
    assert machine.best(W2, 1)[0] > 1.2 * machine.rate(W2, 0, 1)
    assert machine.best(W2, 16)[1] == 0
    decode(controller, machine, W2, repeat(1), tokens=500)
    decode(controller, machine, W2, repeat(16), tokens=500)
    for batch in (1, 16, 1):
        run = decode(controller, machine, W2, repeat(batch), tokens=500)
        assert run.rate > 0.95 * machine.best(W2, batch)[0], (batch, run.steps_by_depth)


def test_it_does_not_thrash_while_requests_come_and_go():
    machine, controller = Machine(moe, 0.2, 0.8, seed=6), Controller()
    batches = [13 + (step // 3) % 4 for step in range(2000)]
    run = decode(controller, machine, W2, batches)
    changes = sum(before != after for before, after in pairwise(run.depths))
    assert controller.switches <= 40
    assert changes <= 0.2 * len(run.depths)
    plain = sum(machine.step_seconds(W2, Plan(0, 2), batch) for batch in batches) / len(batches)
    assert run.rate >= 0.97 / plain


@pytest.mark.parametrize("batch", [1, 8])
def test_it_follows_the_acceptance(batch):
    machine, controller = Machine(linear(0.05), 0.3, 0.95, seed=8), Controller()
    rates = []
    for chance in (0.95, 0.05, 0.95):
        machine.chance = chance
        before = decode(controller, machine, W2, repeat(batch), tokens=1000)
        after = decode(controller, machine, W2, repeat(batch), tokens=1000)
        rates.append((chance, before.rate / machine.rate(W2, 0, batch), after.rate / machine.best(W2, batch)[0]))
    assert all(against_plain > 0.97 and against_best > 0.95 for _, against_plain, against_best in rates), rates


@pytest.mark.parametrize(
    ("draft", "growth", "chance"), [(0.3, 0.1, 0.9), (0.9, 0.1, 0.3), (0.9, 0.4, 0.95), (0.9, 0.02, 0.7)]
)
def test_a_machine_that_slows_down_again_and_again_changes_little(draft, growth, chance):
    """Every second 150 tokens everything takes 2.5 times as long; what was measured before stays comparable."""
    machine, controller = Machine(linear(growth), draft, chance, seed=9), Controller()
    spent = best = plain = 0.0
    for speed in [1.0, 0.4] * 10:
        machine.speed = speed
        run = decode(controller, machine, W2, repeat(1), tokens=150)
        spent += run.seconds
        best += run.tokens / machine.best(W2, 1)[0]
        plain += run.tokens / machine.rate(W2, 0, 1)
    assert spent < 1.03 * plain
    assert spent < 1.06 * best


def test_slow_first_passes_do_not_condemn_speculation():
    """The first pass of each kind takes 200 times as long: weights are decoded, pages touched."""
    machine, seen = Machine(linear(0.05), 0.2, 0.9, seed=10), set()
    usual = machine.measured

    def cold(one):
        first = one.kind not in seen
        seen.add(one.kind)
        return usual(one) * (200 if first else 1)

    machine.measured = cold
    run = decode(Controller(), machine, W2, repeat(1), tokens=1000)
    assert run.rate > 0.95 * machine.best(W2, 1)[0]


def test_what_was_learnt_in_other_modes_is_used():
    machine, controller = Machine(linear(0.02), 0.2, 0.9, seed=11), Controller()
    for mode in (Mode.AR, Mode.SD):
        decode(controller, machine, Speculation(mode, 2, 4, 8), repeat(1, 50))
    run = decode(controller, machine, W2, repeat(1, 100))
    assert sum(depth >= 3 for depth in run.depths[:20]) >= 18


def test_another_draft_is_learnt_anew_and_the_old_one_remembered():
    machine, controller = Machine(linear(0.02), 0.2, 0.9, seed=12), Controller()
    decode(controller, machine, W2, repeat(1, 200))
    narrow = Speculation(width=2, depth=4, verify=8, quality=DraftQuality(2))
    bad = Machine(linear(0.02), 0.2, 0.05, seed=13)
    assert decode(controller, bad, narrow, repeat(1, 300)).steps_by_depth[0] > 200
    assert decode(controller, machine, W2, repeat(1, 100)).steps_by_depth[0] < 20


def test_depths_stay_within_the_settings_when_they_change():
    machine, controller = Machine(linear(0.02), 0.1, 0.98, seed=14), Controller()
    deep = decode(controller, machine, Speculation(width=1, depth=40, verify=40), repeat(1, 300))
    assert max(deep.depths) > 16
    shallow = decode(controller, machine, Speculation(width=1, depth=3, verify=3), repeat(1, 100))
    assert max(shallow.depths) == 3


def test_what_it_knows_is_plain_data():
    machine, controller = Machine(linear(0.1), 0.3, 0.9, seed=15), Controller()
    decode(controller, machine, W2, repeat(2, 200))
    known = json.loads(json.dumps(controller.as_dict()))
    assert {(row["kind"], row["rows"]) for row in known["costs"]} >= {("ar", 2), ("draft", 2), ("draft", 4)}
    for row in known["costs"]:
        if row["measured"] > 5:
            share = 0.3 if row["kind"] == "draft" else 1.0
            assert row["seconds"] == pytest.approx(share * (1 + 0.1 * (row["rows"] - 1)), rel=0.15)
    (acceptance,) = known["acceptance"]
    assert acceptance["width"] == 2
    assert acceptance["quality"] == DraftQuality().as_dict()
    assert acceptance["chances"][0] == pytest.approx(0.9, abs=0.1)
    assert set(known["gains"]["2"]) == {"1", "2", "3", "4"}
    assert known["trials"] > 0
