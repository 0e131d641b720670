from __future__ import annotations

import itertools
import re
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elmoe.errors import ConfigError
from elmoe.sim.cycle import RESOURCES, LayerTiming, simulate_layer
from elmoe.sim.dataflow import DOWN, GATE_UP, Dataflow
from elmoe.sim.layer_pass import LayerPass, draw_layer
from elmoe.sim.model import BYTES_FULL, BYTES_LSB, BYTES_MSB, load_model
from elmoe.sim.pe import HALVES, Event
from elmoe.sim.spec import Machine, load_machine

EXT, HB = 101.4, 794.6
D, F = 512, 256
WEIGHTS = 3 * D * F
XPU, HB_XPU, ELMOE = (load_machine(name) for name in ("xpu", "hb-xpu", "elmoe-3d"))
CLOCK = 1.0  # ns


def small(rows: list[int], hits: list[bool], kind: str = "verify", tokens: int | None = None) -> LayerPass:
    """A layer of small experts: the pass `kind` of `layer_pass.PASSES`."""
    planes = kind != "ar"
    return LayerPass(
        rows=tuple(rows),
        hits=tuple(hits),
        tokens=max(rows) if tokens is None else tokens,
        hidden=D,
        expert_hidden=F,
        hb_bytes=round(WEIGHTS * (BYTES_MSB if planes else BYTES_FULL)),
        hit_ext_bytes=round(WEIGHTS * BYTES_LSB) if kind == "verify" else 0,
        miss_bytes=round(WEIGHTS * BYTES_FULL),
        hb_bits=4 if planes else 8,
        miss_bits=8,
    )


@st.composite
def layers(draw: st.DrawFn) -> LayerPass:
    rows = draw(st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(any))
    kind = draw(st.sampled_from(["ar", "verify", "draft"]))
    hits = [True] * len(rows) if kind == "draft" else [draw(st.booleans()) for _ in rows]
    return small(rows, hits, kind)


def by(timing: LayerTiming, resource: str, source: str | None = None) -> list[Event]:
    found = [e for e in timing.events if e.resource == resource and source in (None, e.source)]
    return sorted(found, key=lambda event: event.start_ns)


# smoke


@pytest.mark.parametrize("order", ["grouped", "interleaved"])
@pytest.mark.parametrize(("machine", "kind"), [(ELMOE, "verify"), (ELMOE, "draft"), (ELMOE, "ar"), (HB_XPU, "ar")])
def test_a_layer_of_a_real_model_runs(machine: Machine, kind: str, order: str) -> None:
    timing = simulate_layer(machine, draw_layer(load_model("qwen3-30b-a3b"), kind, 4, 0.5), EXT, HB, order)
    assert timing.total_ns > 0
    assert set(timing.busy_ns) == set(RESOURCES)
    assert "events" not in timing.resolved()


def test_nothing_to_do_takes_no_time() -> None:
    timing = simulate_layer(ELMOE, small([0, 0], [True, False]), EXT, HB)
    assert timing.total_ns == 0
    assert timing.events == []


def test_runs_are_equal() -> None:
    layer = small([3, 40, 17, 1], [True, False, True, False])
    assert simulate_layer(ELMOE, layer, EXT, HB) == simulate_layer(ELMOE, layer, EXT, HB)


# closed forms


def last_chunk_ns(machine: Machine, tiles: int, size: float, tile_ns: float) -> float:
    per_half = Dataflow(machine, D, F).tiles_per_half(size / WEIGHTS * 1024)
    return ((tiles - 1) % per_half + 1) * tile_ns


def test_one_expert_from_ext_takes_its_bytes_and_its_last_half() -> None:
    layer = small([1], [False])
    machine = replace(XPU, compute=replace(XPU.compute, wmem_bytes=2 * 16 * 1088))  # halves of 16 whole tiles
    expected = layer.miss_bytes / EXT + 16 * 2
    assert simulate_layer(machine, layer, EXT).total_ns == pytest.approx(expected, abs=CLOCK)


def test_a_nearly_empty_half_makes_the_next_one_wait() -> None:
    """256 tiles of gate/up in halves of 15: the one tile left arrives before the half ahead of it has been read."""
    layer = small([1], [False])
    fetches, reads = (by(simulate_layer(XPU, layer, EXT), name) for name in ("EXT", "PE"))
    assert fetches[18].start_ns == reads[16].end_ns > fetches[17].end_ns + 15


def test_the_streamline_caps_ext() -> None:
    layer = small([1], [False])
    assert simulate_layer(ELMOE, layer, 1000.0, HB).total_ns >= layer.miss_bytes / 128.0


def test_one_expert_from_hb_takes_its_bytes_its_last_half_and_its_result() -> None:
    layer = small([1], [True], "draft")
    tiles = D // 16 // 32 * F // 32
    output = D * 15 / 16 / 32
    expected = layer.hb_bytes / HB + last_chunk_ns(ELMOE, tiles, layer.hb_bytes, 1) + output
    # The exchange (one vector cycle, 240 bytes) hides behind the two halves that fill meanwhile.
    assert simulate_layer(ELMOE, layer, EXT, HB).total_ns == pytest.approx(expected, abs=2 * CLOCK)


def test_with_many_rows_the_array_sets_the_pace() -> None:
    rows = 16384
    layer = small([rows], [False])
    timing = simulate_layer(XPU, layer, EXT)
    tile_ns, tiles = 2 * rows / 16 / 16, WEIGHTS / 1024
    vector_ns = rows / 16 * F / 32
    first_ns = by(timing, "EXT")[0].end_ns
    assert timing.total_ns == pytest.approx(first_ns + tiles * tile_ns + vector_ns, abs=2 * CLOCK)


def test_with_a_slow_link_exchanges_set_the_pace() -> None:
    assert ELMOE.links is not None
    machine = replace(ELMOE, links=replace(ELMOE.links, aggregation_gb_per_s=0.5))
    rows, count = 64, 5
    layer = small([rows] * count, [True] * count, "draft")
    timing = simulate_layer(machine, layer, EXT, HB)
    exchanges = count * rows * F * 15 / 16 / 0.5
    output = rows * D * 15 / 16 / 0.5
    lone = layer.hb_bytes / HB + rows * 1
    assert timing.total_ns == pytest.approx(exchanges + output + lone, rel=0.005)
    assert timing.total_ns >= exchanges + output


def test_a_split_expert_is_paced_by_its_lsb_plane() -> None:
    layer = small([8], [True])
    timing = simulate_layer(ELMOE, layer, EXT, HB)
    output = 8 * D * 15 / 16 / 32
    expected = layer.hit_ext_bytes / EXT + last_chunk_ns(ELMOE, D * F // 1024, layer.hit_ext_bytes, 1) + output
    assert timing.total_ns == pytest.approx(expected, abs=2 * CLOCK)


# tight gates


def ends(timing: LayerTiming, resource: str, source: str, step: int) -> dict[int, float]:
    found: dict[int, float] = defaultdict(float)
    for event in by(timing, resource, source):
        if event.step == step:
            found[event.expert] = max(found[event.expert], event.end_ns)
    return found


def starts(timing: LayerTiming, resource: str, source: str, step: int) -> dict[int, float]:
    found: dict[int, float] = {}
    for event in by(timing, resource, source):
        if event.step == step:
            found.setdefault(event.expert, event.start_ns)
    return found


@given(layers(), st.sampled_from(["grouped", "interleaved"]), st.floats(1, 64))
def test_down_waits_for_gate_and_up(layer: LayerPass, order: str, link_gb_per_s: float) -> None:
    assert ELMOE.links is not None
    machine = replace(ELMOE, links=replace(ELMOE.links, aggregation_gb_per_s=link_gb_per_s))
    timing = simulate_layer(machine, layer, EXT, HB, order)
    sums, gathers = ends(timing, "LINK", "sums", GATE_UP), ends(timing, "LINK", "gather", GATE_UP)
    assert set(sums) == {i for i, hit in enumerate(layer.hits) if hit and layer.rows[i] and layer.split}
    assert set(gathers) == {i for i, hit in enumerate(layer.hits) if hit and layer.rows[i]}
    activations = ends(timing, "VECTOR", "SiLU", GATE_UP)
    vector_starts = starts(timing, "VECTOR", "SiLU", GATE_UP)
    products = {source: ends(timing, "PE", source, GATE_UP) for source in ("EXT", "HB")}
    for source, earlier in (("EXT", activations), ("HB", gathers)):
        for expert, start in starts(timing, "PE", source, DOWN).items():
            assert start >= earlier[expert]
            assert start >= activations[expert] > vector_starts[expert]
            assert vector_starts[expert] >= max(products["EXT"][expert], products["HB"][expert], sums[expert])


def test_down_starts_at_the_very_edge_after_its_exchange() -> None:
    """Blocked before, ready then: with one expert nothing else keeps the array."""
    layer = small([200], [True], "draft")
    timing = simulate_layer(ELMOE, layer, EXT, HB)
    exchanged = ends(timing, "LINK", "gather", GATE_UP)[0]
    start = starts(timing, "PE", "HB", DOWN)[0]
    assert exchanged <= start < exchanged + CLOCK
    assert start == int(start)


@given(layers(), st.sampled_from(["grouped", "interleaved"]))
def test_a_half_of_wmem_is_read_after_it_is_full_and_filled_after_it_is_read(layer: LayerPass, order: str) -> None:
    timing = simulate_layer(ELMOE, layer, EXT, HB, order)
    for source in ("EXT", "HB"):
        fetches = by(timing, source)
        assert [event.chunk for event in fetches] == list(range(len(fetches)))
        first: dict[int, float] = {}
        last: dict[int, float] = {}
        for event in by(timing, "PE", source):
            first.setdefault(event.chunk, event.start_ns)
            last[event.chunk] = event.end_ns
        assert set(first) == set(range(len(fetches)))
        for fetch in fetches:
            assert first[fetch.chunk] >= fetch.end_ns - 1e-6
            if fetch.chunk >= HALVES:
                assert fetch.start_ns >= last[fetch.chunk - HALVES]


def test_a_half_is_filled_as_soon_as_it_is_free() -> None:
    timing = simulate_layer(XPU, small([16384], [False]), EXT)
    fetches, reads = by(timing, "EXT"), by(timing, "PE")
    for fetch in fetches[HALVES:]:
        assert fetch.start_ns == max(reads[fetch.chunk - HALVES].end_ns, fetches[fetch.chunk - 1].end_ns)


@given(layers(), st.sampled_from(["grouped", "interleaved"]))
def test_no_resource_does_two_things_at_once(layer: LayerPass, order: str) -> None:
    timing = simulate_layer(ELMOE, layer, EXT, HB, order)
    for resource in RESOURCES:
        events = by(timing, resource)
        for before, after in itertools.pairwise(events):
            assert after.start_ns >= before.end_ns - 1e-6
        assert timing.busy_ns[resource] == pytest.approx(sum(e.end_ns - e.start_ns for e in events))
        assert timing.busy_ns[resource] <= timing.total_ns * (1 + 1e-9)


def test_ext_takes_the_array_from_hb_at_a_tile_boundary() -> None:
    layer = small([300, 300], [True, False], "ar")
    timing = simulate_layer(HB_XPU, layer, EXT, HB)
    tile_ns = 2 * 19
    cut = [
        before
        for before, after in itertools.pairwise(by(timing, "PE", "HB"))
        if (before.chunk, before.expert) == (after.chunk, after.expert)
    ]
    assert cut
    assert all((event.end_ns - event.start_ns) % tile_ns == 0 for event in cut)


def test_everything_starts_at_a_clock_edge_of_the_array() -> None:
    timing = simulate_layer(ELMOE, small([5, 70], [True, False]), EXT, HB)
    assert all(event.start_ns == int(event.start_ns) for event in by(timing, "PE"))


# schedule


def fetched(timing: LayerTiming, source: str) -> list[tuple[int, int]]:
    return [step for step, _ in itertools.groupby((e.expert, e.step) for e in by(timing, source))]


def test_grouped_takes_hits_first_and_gate_up_before_the_down_of_the_expert_before() -> None:
    layer = small([2, 1, 0, 3], [False, True, True, True])
    timing = simulate_layer(ELMOE, layer, EXT, HB)
    hits = [(1, GATE_UP), (3, GATE_UP), (1, DOWN)]
    assert fetched(timing, "EXT") == [*hits, (0, GATE_UP), (3, DOWN), (0, DOWN)]
    assert fetched(timing, "HB") == [*hits, (3, DOWN)]


def test_interleaved_goes_by_index() -> None:
    layer = small([2, 1, 0, 3], [False, True, True, True])
    timing = simulate_layer(ELMOE, layer, EXT, HB, "interleaved")
    assert fetched(timing, "EXT") == [(0, GATE_UP), (1, GATE_UP), (0, DOWN), (3, GATE_UP), (1, DOWN), (3, DOWN)]


def test_order_matters_little_where_each_memory_has_its_own_list() -> None:
    for kind in ("ar", "verify"):
        layer = draw_layer(load_model("deepseek-v2-lite"), kind, 16, 0.5)
        grouped, mixed = (simulate_layer(ELMOE, layer, EXT, HB, order) for order in ("grouped", "interleaved"))
        assert mixed.total_ns == pytest.approx(grouped.total_ns, rel=1e-3)


# invariants


@given(layers(), st.sampled_from(["grouped", "interleaved"]))
def test_bytes_and_products_are_conserved(layer: LayerPass, order: str) -> None:
    timing = simulate_layer(ELMOE, layer, EXT, HB, order)
    chosen = list(zip(layer.rows, layer.hits, strict=True))
    hits, misses = sum(hit for rows, hit in chosen if rows), sum(not hit for rows, hit in chosen if rows)
    hit_macs = WEIGHTS * sum(rows for rows, hit in chosen if hit)
    miss_macs = WEIGHTS * sum(rows for rows, hit in chosen if not hit)
    assert timing.ext_bytes == hits * layer.hit_ext_bytes + misses * layer.miss_bytes
    assert timing.hb_bytes == hits * layer.hb_bytes
    w4 = hit_macs * (2 if layer.split else layer.hb_bits == 4)
    w8 = miss_macs + hit_macs * (layer.hb_bits == 8)
    assert (timing.macs_w4, timing.macs_w8) == (w4, w8)


@given(layers(), st.floats(20, 200), st.floats(200, 2000))
def test_no_time_is_below_a_roofline(layer: LayerPass, ext: float, hb: float) -> None:
    timing = simulate_layer(ELMOE, layer, ext, hb)
    compute = ELMOE.compute
    assert timing.total_ns >= timing.ext_bytes / min(ext, 128.0) * (1 - 1e-9)
    assert timing.total_ns >= timing.hb_bytes / hb * (1 - 1e-9)
    assert timing.total_ns >= timing.macs_w4 / compute.macs_per_ns(4) + timing.macs_w8 / compute.macs_per_ns(8)
    assert timing.total_ns >= timing.link_bytes / 32.0 / compute.pes * (1 - 1e-9)


@given(layers(), st.floats(1, 4), st.floats(1, 4), st.floats(1, 4))
def test_more_bandwidth_is_never_slower(layer: LayerPass, ext: float, hb: float, link: float) -> None:
    """But for the array that two streams share, see the next test."""
    assert ELMOE.links is not None
    faster = replace(ELMOE, links=replace(ELMOE.links, aggregation_gb_per_s=link * 32.0))
    slack = 1.01 if any(layer.hits) else 1 + 1e-9
    before = simulate_layer(ELMOE, layer, EXT / 4, HB / 4).total_ns
    assert simulate_layer(faster, layer, EXT / 4 * ext, HB / 4 * hb).total_ns <= before * slack + CLOCK


def test_a_faster_ext_can_take_the_array_when_hb_needs_it() -> None:
    """Not monotone, and why: EXT comes first on the array, so misses that arrive in a shorter time crowd HB's products.

    HB, which sets the pace here, then idles with full halves, and cannot make up for it when EXT is done.
    """
    model = load_model("qwen3-30b-a3b")
    planes = round(model.expert_draft_bytes)
    layer = LayerPass((150,) * 13, (True,) * 12 + (False,), 150, 2048, 768, planes, 0, planes, 4, 4)
    slow, fast = (simulate_layer(ELMOE, layer, ext, HB).total_ns for ext in (100.0, 128.0))
    assert slow < fast < 1.02 * slow


@given(layers())
def test_more_pes_are_never_slower(layer: LayerPass) -> None:
    """Twice the PEs have twice the banks; the all-gathers of activations grow by 1/32 of what they move."""
    small_die = simulate_layer(ELMOE.with_hb_gb(4), layer, EXT, HB)
    large_die = simulate_layer(ELMOE.with_hb_gb(8), layer, EXT, 2 * HB)
    assert large_die.total_ns <= small_die.total_ns + small_die.busy_ns["LINK"] / 30 + 100 * CLOCK


@settings(max_examples=30)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=8))
def test_more_cache_is_never_slower_in_verify(rows: list[int]) -> None:
    times = [
        simulate_layer(ELMOE, small(rows, [i < cached for i in range(len(rows))]), EXT, HB).total_ns
        for cached in range(len(rows) + 1)
    ]
    assert all(after <= before for before, after in itertools.pairwise(times))


def test_whole_experts_are_best_shared_between_both_memories() -> None:
    """AR reads hits from HB beside misses from EXT: past HB / (HB + EXT) = 89 % more cache leaves EXT idle."""
    model = load_model("qwen3-30b-a3b")
    times = {
        c: simulate_layer(ELMOE, draw_layer(model, "ar", 64, c, exponent=0.0), EXT, HB).total_ns
        for c in (0.0, 0.5, 0.88, 1.0)
    }
    assert times[0.0] > times[0.5] > times[0.88]
    assert times[1.0] > times[0.88]


# refusals


def test_hits_need_hb() -> None:
    with pytest.raises(ConfigError, match="xpu has no HB; every expert must be a miss"):
        simulate_layer(XPU, small([1], [True]), EXT)


def test_an_unknown_order_is_named() -> None:
    with pytest.raises(ConfigError, match=re.escape("unknown order 'group'; did you mean 'grouped'?")):
        simulate_layer(ELMOE, small([1], [True]), EXT, HB, "group")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("wmem_bytes", 2048, "compute.wmem_bytes = 2048: half a buffer is 512 bytes, a weight tile 1088"),
        ("iomem_bytes", 4096, "compute.iomem_bytes = 4096: two blocks of 16 rows with the inputs and sums of one"),
    ],
)
def test_too_small_buffers_are_named(field: str, value: int, message: str) -> None:
    machine = replace(ELMOE, compute=replace(ELMOE.compute, **{field: value}))
    with pytest.raises(ConfigError, match=re.escape(message)):
        simulate_layer(machine, small([1], [False]), EXT, HB)


def test_a_small_iomem_leaves_a_half_partly_filled() -> None:
    machine = replace(XPU, compute=replace(XPU.compute, iomem_bytes=2 * 16 * (32 * 4 + 5 * 32)))
    tiles = [event.end_ns - event.start_ns for event in by(simulate_layer(machine, small([1], [False]), EXT), "PE")]
    assert max(tiles) == 5 * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hits": (True,)}, "2 experts have rows and 1 are hits or misses"),
        ({"tokens": 1}, "rows of an expert must lie in 0..tokens = 1"),
        ({"hb_bits": 5}, "weights have 8 or 4 bits, not 5 and 8"),
    ],
)
def test_a_wrong_pass_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        replace(small([1, 2], [True, False]), **change)  # type: ignore[arg-type]


# drawn passes


def test_a_drawn_pass_gives_every_token_its_experts() -> None:
    model = load_model("qwen3-30b-a3b")
    layer = draw_layer(model, "verify", 10, 0.25, seed=3)
    assert sum(layer.rows) == 10 * model.experts_per_tok
    assert sum(layer.hits) == 32
    assert layer == draw_layer(model, "verify", 10, 0.25, seed=3)
    assert layer.hit_ext_bytes + layer.hb_bytes == layer.miss_bytes


def test_a_draft_stays_in_its_pool() -> None:
    layer = draw_layer(load_model("gpt-oss-20b"), "draft", 10, 0.0)
    assert sum(layer.hits) == 4
    assert all(hit for rows, hit in zip(layer.rows, layer.hits, strict=True) if rows)


def test_mxfp4_experts_are_never_split() -> None:
    layer = draw_layer(load_model("gpt-oss-20b"), "verify", 10, 0.5)
    assert not layer.split
    assert (layer.hb_bits, layer.miss_bits) == (4, 4)


@pytest.mark.parametrize(("name", "cached", "message"), [("drafts", 0.5, "did you mean 'draft'"), ("ar", 1.5, "0..1")])
def test_a_wrong_draw_is_refused(name: str, cached: float, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        draw_layer(load_model("gpt-oss-20b"), name, 10, cached)


def test_popular_experts_have_more_rows_and_are_cached() -> None:
    layer = draw_layer(load_model("qwen3-30b-a3b"), "ar", 256, 0.25, exponent=1.0)
    rows, hits = np.array(layer.rows), np.array(layer.hits)
    assert rows[hits].mean() > 2 * rows[~hits].mean()
