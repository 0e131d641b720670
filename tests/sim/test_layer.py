from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.sim.cycle import simulate_layer
from elmoe.sim.dataflow import tile_cycles
from elmoe.sim.layer import ExpertWork, Resources, expert_resources, layer_ns
from elmoe.sim.layer_pass import draw_layer
from elmoe.sim.model import BYTES_FULL, BYTES_LSB, BYTES_MSB, load_model
from elmoe.sim.spec import load_machine

Floats = npt.NDArray[np.float64]

EXT, HB = 101.4, 794.6
D, F = 2048, 768
WEIGHTS = 3 * D * F
XPU, HB_XPU, ELMOE = (load_machine(name) for name in ("xpu", "hb-xpu", "elmoe-3d"))


def work(hits: float, misses: float, rows: float, tokens: float, split: bool = False) -> ExpertWork:
    planes = BYTES_MSB if split else BYTES_FULL
    return ExpertWork(
        hits=np.array([hits]),
        misses=np.array([misses]),
        rows=np.array([rows]),
        tokens=np.array([tokens]),
        hidden=D,
        expert_hidden=F,
        hb_bytes=WEIGHTS * planes,
        hit_ext_bytes=WEIGHTS * BYTES_LSB if split else 0.0,
        miss_bytes=WEIGHTS * BYTES_FULL,
        hb_bits=4 if split else 8,
        miss_bits=8,
    )


def stacked(works: list[ExpertWork]) -> ExpertWork:
    """The same points as arrays of one call."""
    names = ("hits", "misses", "rows", "tokens")
    return replace(works[0], **{name: np.concatenate([getattr(item, name) for item in works]) for name in names})


points = st.tuples(st.floats(0, 64), st.floats(0, 64), st.floats(0.1, 40), st.floats(1, 256), st.booleans()).map(
    lambda p: work(p[0], p[1], (p[0] + p[1]) * p[2], p[3], p[4])
)


# closed forms


def test_tiles_are_whole_in_all_directions() -> None:
    compute = ELMOE.compute
    rows = np.array([1.0, 16.0, 17.0])
    assert tile_cycles(compute, rows, np.array(33.0), 31, 8).tolist() == [4, 4, 8]
    assert tile_cycles(compute, rows, np.array(32.0), 64, 4).tolist() == [2, 2, 4]


def test_misses_take_their_bytes() -> None:
    found = expert_resources(XPU, work(0, 8, 8, 1), EXT, 1.0)
    assert found.ext_ns[0] == pytest.approx(8 * WEIGHTS * BYTES_FULL / EXT)
    assert found.hb_ns[0] == found.link_ns[0] == 0
    assert layer_ns(found)[0] == pytest.approx(found.ext_ns[0], rel=1e-3)


def test_split_hits_take_their_lsb_planes() -> None:
    found = expert_resources(ELMOE, work(8, 0, 64, 8, split=True), EXT, HB)
    assert found.ext_bytes[0] == 8 * WEIGHTS * BYTES_LSB
    assert found.hb_bytes[0] == 8 * WEIGHTS * BYTES_MSB
    assert found.macs_w4[0] == 2 * 64 * WEIGHTS
    assert found.macs[0] == 0
    assert layer_ns(found)[0] == pytest.approx(found.ext_ns[0], rel=5e-3)


def test_whole_hits_and_misses_use_both_memories_at_once() -> None:
    found = expert_resources(ELMOE, work(8, 1, 9, 1), EXT, HB)
    assert layer_ns(found)[0] < 0.6 * (found.ext_ns[0] + found.hb_ns[0])
    assert layer_ns(found)[0] == pytest.approx(max(found.ext_ns[0], found.hb_ns[0]), rel=0.01)


def test_exchanges_are_counted_at_every_port() -> None:
    found = expert_resources(ELMOE, work(1, 0, 16, 16), EXT, HB)
    activations, result = 16 * F * 15 / 16, 16 * D * 15 / 16
    assert found.link_bytes[0] == pytest.approx(16 * (activations + result))
    assert found.link_ns[0] == pytest.approx((activations + result) / 32)


def test_an_xpu_exchanges_nothing() -> None:
    found = expert_resources(XPU, work(0, 8, 64, 8), EXT, 1.0)
    assert found.link_bytes[0] == found.link_ns[0] == 0


def test_nothing_to_do_takes_no_time() -> None:
    assert layer_ns(expert_resources(ELMOE, work(0, 0, 0, 1), EXT, HB))[0] == 0


# invariants


@given(st.lists(points, min_size=2, max_size=5).map(lambda p: [item for item in p if item.hb_bits == p[0].hb_bits]))
def test_points_do_not_see_each_other(works: list[ExpertWork]) -> None:
    together = expert_resources(ELMOE, stacked(works), EXT, HB)
    for index, item in enumerate(works):
        alone = expert_resources(ELMOE, item, EXT, HB)
        for field in fields(Resources):
            both = getattr(together, field.name), getattr(alone, field.name)
            assert np.asarray(both[0])[index] == pytest.approx(np.asarray(both[1])[0], rel=1e-9), field.name


@given(points)
def test_no_time_is_below_its_slowest_resource(item: ExpertWork) -> None:
    found = expert_resources(ELMOE, item, EXT, HB)
    slowest = max(found.ext_ns[0], found.hb_ns[0], found.pe_ns[0], found.link_ns[0])
    assert slowest <= layer_ns(found)[0]
    assert np.all(np.isfinite(layer_ns(found)))
    assert np.asarray(found.exposed_ns).min() >= 0


@given(points, st.floats(1, 4), st.floats(1, 4))
def test_more_bandwidth_is_never_slower(item: ExpertWork, ext: float, hb: float) -> None:
    """But for the half that is read last: a faster memory leaves the array more of it to do alone."""
    slow, fast = (expert_resources(ELMOE, item, EXT * a, HB * b) for a, b in ((1, 1), (ext, hb)))
    assert layer_ns(fast)[0] <= layer_ns(slow)[0] * 1.001 + 100


def test_equal_experts_are_the_same_by_either_form() -> None:
    """The closed form and the walk from expert to expert."""
    for hits, rows, split in itertools.product((1, 2, 8), (1, 16, 100, 250), (False, True)):
        even = work(hits, 0, hits * rows, rows, split)
        ragged = replace(even, hit_rows=np.full((1, hits), float(rows)), miss_rows=np.zeros((1, 1)))
        times = [layer_ns(expert_resources(ELMOE, item, EXT, HB))[0] for item in (even, ragged)]
        assert times[0] == pytest.approx(times[1], rel=0.005)


def test_zeros_behind_the_last_expert_change_nothing() -> None:
    even = work(3, 2, 50, 20)
    rows, misses = np.array([[20.0, 5.0, 10.0]]), np.array([[5.0, 10.0]])
    padded = [np.pad(item, ((0, 0), (0, 4))) for item in (rows, misses)]
    found = [
        expert_resources(ELMOE, replace(even, hit_rows=hits, miss_rows=rest), EXT, HB)
        for hits, rest in ((rows, misses), (padded[0], padded[1]))
    ]
    assert layer_ns(found[0])[0] == pytest.approx(layer_ns(found[1])[0], rel=1e-12)


# agreement with the cycle mode

GRID = [
    (machine, hb_gb, model, kind, tokens, cached)
    for machine, hb_gb, model, kind in (
        ("elmoe-3d", 4, "qwen3-30b-a3b", "verify"),
        ("elmoe-3d", 8, "glm-4.7-flash", "verify"),
        ("elmoe-3d", 4, "deepseek-v2-lite", "draft"),
        ("elmoe-3d", 8, "gpt-oss-20b", "draft"),
        ("elmoe-3d", 4, "gpt-oss-20b", "ar"),
        ("hb-xpu", 4, "qwen3-30b-a3b", "ar"),
        ("hb-xpu", 8, "gpt-oss-20b", "ar"),
    )
    for tokens, cached in ((1, 0.5), (8, 0.25), (32, 0.9), (128, 0.1), (256, 1.0))
] + [("xpu", 4, "qwen3-30b-a3b", "ar", tokens, 0.0) for tokens in (1, 16, 256)]


@pytest.mark.parametrize(("machine", "hb_gb", "model", "kind", "tokens", "cached"), GRID)
def test_the_formula_agrees_with_the_cycle_mode(
    machine: str, hb_gb: float, model: str, kind: str, tokens: int, cached: float
) -> None:
    """Within 2 %, the larger grid is bench/cycle_agreement.py's."""
    die = load_machine(machine).with_hb_gb(hb_gb)
    hb_gb_per_s = 0.97 * die.hb.gb_per_s if die.hb is not None else 1.0
    layer = draw_layer(load_model(model), kind, tokens, cached, seed=tokens)
    played = simulate_layer(die, layer, EXT, hb_gb_per_s)
    found = expert_resources(die, layer.work(), EXT, hb_gb_per_s)
    assert layer_ns(found)[0] == pytest.approx(played.total_ns, rel=0.02)
    assert (found.ext_bytes[0], found.hb_bytes[0]) == (played.ext_bytes, played.hb_bytes)
    assert (found.macs[0], found.macs_w4[0]) == (played.macs_w8, played.macs_w4)
    assert found.link_bytes[0] == pytest.approx(played.link_bytes)
    for mine, name in ((found.pe_ns, "PE"), (found.link_ns, "LINK"), (found.ext_ns, "EXT"), (found.hb_ns, "HB")):
        assert mine[0] == pytest.approx(played.busy_ns[name])
