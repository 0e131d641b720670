"""The front door: closed forms, rooflines, what never gets slower, determinism, speed, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elmoe.errors import CapacityError, ConfigError
from elmoe.sim.model import MODELS, load_model
from elmoe.sim.profile import named_profile, scheme_specs, workloads
from elmoe.sim.run import Outcome, Query, evaluate, rows
from elmoe.sim.spec import SYSTEMS, Machine, load_machine
from elmoe.sim.systems import BOUNDS, effective_bandwidth

Float64 = npt.NDArray[np.float64]

WAYS = (
    *(("none", "ar"), ("eagle", "ar"), ("slm", "ar"), ("quant", "ar"), ("elastic", "ar")),
    *(("eagle", "sd"), ("slm", "sd"), ("quant", "sd"), ("elastic", "sd")),
)
BATCHES = (1, 2, 5, 16, 40)
CONTEXTS = (1, 1024, 16384, 131072)


def roomy(machine: Machine) -> Machine:
    """With so much external memory that every point fits."""
    return replace(machine, ext=replace(machine.ext, capacity_gb=1e6))


def query(system: str | Machine, model: str, scheme: str = "none", mode: str = "ar", **more: Any) -> Query:
    machine = load_machine(system) if isinstance(system, str) else system
    shape = load_model(model)
    profile = named_profile(shape, "mt-bench", scheme_specs())
    return Query(machine, shape, profile, scheme=scheme, mode=mode, **more)


def grid(machine: Machine, model: str, way: tuple[str, str], acceptance: float | None = None) -> Outcome:
    """All of BATCHES x CONTEXTS."""
    made = query(roomy(machine), model, *way, batches=BATCHES, contexts=CONTEXTS)
    return evaluate(replace(made, acceptance=acceptance))


points = given(st.sampled_from(SYSTEMS), st.sampled_from(MODELS), st.sampled_from(WAYS))


# --- by hand ---


def test_the_xpu_is_as_fast_as_its_memory() -> None:
    """Qwen3 at batch 1: dense weights, 8 experts in each of 48 layers and the KV cache of 1024 tokens are read."""
    found = evaluate(query("xpu", "qwen3-30b-a3b"))
    read = 1_343_537_152 + 48 * 8 * 3 * 2048 * 768 * 34 / 32 + 96 * 2**20
    bandwidth = effective_bandwidth(load_machine("xpu")).ext
    assert found.total.ext_bytes[0] == pytest.approx(read)
    assert found.latency_ms[0] >= read / bandwidth * 1e-6 * (1 - 1e-9)
    assert found.latency_ms[0] == pytest.approx(read / bandwidth * 1e-6, rel=0.01)
    assert found.energy_mj.ext[0] == pytest.approx(read * 8 * 3.88e-9)


def test_a_speculative_token_is_the_step_over_what_it_emits() -> None:
    tree = scheme_specs().tree
    found = evaluate(query("elmoe-3d", "glm-4.7-flash", "elastic", "sd", acceptance=0.5, batches=(1, 8)))
    (first, _), (more, _), (verify, _) = found.phase_costs
    assert (first.count, more.count, verify.count) == (1, tree.depth - 1, 1)
    step_ns = sum(spent.total_ns for _, spent in found.phase_costs)
    np.testing.assert_allclose(found.latency_ms, step_ns / (1 + 0.5 * tree.depth) * 1e-6)
    components = found.energy_mj
    emitted = np.array([1, 8]) * (1 + 0.5 * tree.depth)
    np.testing.assert_allclose(components.hb * emitted, found.total.hb_bytes * 8 * 0.43e-9)


def test_rows_of_a_grid() -> None:
    made = rows([query("elmoe-3d", "gpt-oss-20b", "elastic", "sd", batches=(1, 4), contexts=(512, 2048))])
    assert [(row["batch"], row["context"]) for row in made] == [(1, 512), (1, 2048), (4, 512), (4, 2048)]
    for row in made:
        assert row["tokens_per_s"] == pytest.approx(1e3 * row["batch"] / row["latency_ms_per_token"])
        assert set(row["phases"]) == {"draft", "verify"}
        assert row["phases"]["draft"]["count"] == scheme_specs().tree.depth
        step_ms = sum(phase["ms"] for phase in row["phases"].values())
        assert step_ms / (1 + row["mean_accepted_length"]) == pytest.approx(row["latency_ms_per_token"])
        assert row["bottleneck"] in BOUNDS
        for phase in row["phases"].values():
            assert sum(phase["bound_ms"].values()) == pytest.approx(phase["ms"])
            assert phase["bound_ms"][phase["bottleneck"]] == max(phase["bound_ms"].values())
        energy = row["energy_mj_per_token"]
        assert sum(energy[name] for name in ("compute", "ext", "hb", "comm", "static")) == pytest.approx(
            energy["total"]
        )
        memory = row["memory_bytes"]
        assert memory["hb_dense"] + memory["hb_kv"] + memory["hb_draft"] + memory["hb_experts"] <= 4e9
    assert (made[0]["acceptance_rate"], rows([query("xpu", "gpt-oss-20b")])[0]["acceptance_rate"]) != (None, None)


def test_speedups_follow_from_the_latencies() -> None:
    """Over xPU with as many PEs, in AR, at the same point; xPU itself is 1."""
    batches = (1, 4)
    for hb_gb in (4.0, 8.0):
        base = rows([query(load_machine("xpu").with_hb_gb(hb_gb), "qwen3-30b-a3b", batches=batches)])
        assert [row["speedup_vs_xpu"] for row in base] == [1, 1]
        ours = rows(
            [query(load_machine("elmoe-3d").with_hb_gb(hb_gb), "qwen3-30b-a3b", "elastic", "sd", batches=batches)]
        )
        for mine, xpu in zip(ours, base, strict=True):
            assert mine["speedup_vs_xpu"] == xpu["latency_ms_per_token"] / mine["latency_ms_per_token"]
            assert mine["speedup_vs_xpu"] > 1
            assert mine["hb_gb"] == hb_gb


def test_the_kv_cache_eats_the_pool() -> None:
    """Up to 128k tokens the pool shrinks to nothing, then the cache itself spills."""
    made = rows([query("elmoe-3d", "qwen3-30b-a3b", "elastic", "sd", contexts=(1024, 8192, 32768, 131072))])
    pools = [row["pool_experts_per_layer"] for row in made]
    spilled = [row["memory_bytes"]["ext_kv"] for row in made]
    assert pools[0] > pools[1] > pools[2] == pools[3] == 0
    assert spilled[0] == spilled[1] == 0 < spilled[2] < spilled[3]
    assert made[0]["speedup_vs_xpu"] > made[2]["speedup_vs_xpu"] > made[3]["speedup_vs_xpu"]


# --- what must hold at every point ---


@points
def test_no_phase_beats_a_roofline(system: str, model: str, way: tuple[str, str]) -> None:
    """Peak bandwidths and peak throughput; resources fit into the time of their phase."""
    machine = load_machine(system)
    found = grid(machine, model, way)
    compute = machine.compute
    assert np.isfinite(found.latency_ms).all()
    for _, spent in found.phase_costs:
        total = spent.total_ns * (1 + 1e-9)
        assert (total >= spent.ext_bytes / machine.ext.gb_per_s).all()
        if machine.hb is not None:
            assert (total >= spent.hb_bytes / machine.hb.gb_per_s).all()
        else:
            assert not spent.hb_bytes.any()
        if machine.near is not None:
            assert (total >= spent.near_bytes / machine.near.gb_per_s).all()
        assert (total >= spent.macs_w8 / compute.macs_per_ns(8) + spent.macs_w4 / compute.macs_per_ns(4)).all()
        for name in BOUNDS:
            busy = getattr(spent, f"{name}_ns")
            assert ((busy >= 0) & (busy <= total)).all()
        np.testing.assert_allclose(spent.bound_ns.sum(axis=-1), spent.total_ns)


@points
def test_bytes_are_conserved(system: str, model: str, way: tuple[str, str]) -> None:
    """HB, external and near-memory reads of the target's pass are its weights and KV, read once."""
    found, shape = grid(load_machine(system), model, way), load_model(model)
    batch, context = found.query.points
    spent = found.phase_costs[-1][1]
    read = spent.hb_bytes + spent.ext_bytes + spent.near_bytes
    experts = shape.moe_layers * found.step.unique_experts * shape.expert_bytes
    np.testing.assert_allclose(read, shape.dense_bytes + experts + batch * shape.kv_bytes(context))


@points
def test_energy_components_sum_and_are_never_negative(system: str, model: str, way: tuple[str, str]) -> None:
    found = grid(load_machine(system), model, way).energy_mj
    parts = (found.compute, found.ext, found.hb, found.comm, found.static)
    np.testing.assert_allclose(found.total, np.sum(parts, axis=0))
    assert all((part >= 0).all() for part in parts)
    assert (found.static > 0).all()
    assert (found.compute > 0).all()


Change = Callable[[Machine, float], Machine]


def more_hb(machine: Machine, factor: float, field: str) -> Machine:
    hb = machine.hb
    return machine if hb is None else replace(machine, hb=replace(hb, **{field: getattr(hb, field) * factor}))


def more_pes(machine: Machine, factor: float) -> Machine:
    return replace(machine, compute=replace(machine.compute, pes=int(machine.compute.pes * factor)))


def ideal_links(machine: Machine) -> Machine:
    links = machine.links
    return machine if links is None else replace(machine, links=replace(links, aggregation_gb_per_s=1e12))


MORE: dict[str, tuple[Change, float]] = {
    "ext": (lambda machine, by: replace(machine, ext=replace(machine.ext, gb_per_s=machine.ext.gb_per_s * by)), 0.0),
    "hb": (lambda machine, by: more_hb(machine, by, "gb_per_s"), 0.0),
    "stack": (lambda machine, by: machine.with_hb_gb(4 * by), 0.0),
    "pes": (more_pes, 0.015),  # each PE more leaves a smaller share of a row's sums where they are: (P - 1) / P travels
    "hb_gb": (lambda machine, by: more_hb(machine, by, "capacity_gb"), 0.01),  # KV that leaves EXT leaves its bandwidth
}
"""What is added, and by how much that may be slower at most."""


@given(
    st.sampled_from(SYSTEMS),
    st.sampled_from(MODELS),
    st.sampled_from(WAYS),
    st.sampled_from(tuple(MORE)),
    st.sampled_from((1.25, 2.0, 4.0)),
)
@settings(max_examples=250)
def test_more_of_anything_is_never_slower(
    system: str, model: str, way: tuple[str, str], what: str, factor: float
) -> None:
    machine, (change, allowed) = load_machine(system), MORE[what]
    base = grid(machine, model, way).latency_ms
    assert (grid(change(machine, factor), model, way).latency_ms <= base * (1 + allowed + 1e-9)).all()


@given(st.sampled_from(SYSTEMS), st.sampled_from(MODELS), st.sampled_from(WAYS), st.sampled_from((2, 4)))
def test_more_pes_are_never_slower_where_links_cost_nothing(
    system: str, model: str, way: tuple[str, str], factor: int
) -> None:
    machine = ideal_links(load_machine(system))
    base = grid(machine, model, way).latency_ms
    assert (grid(more_pes(machine, factor), model, way).latency_ms <= base * (1 + 1e-9)).all()


@given(st.sampled_from(MODELS), st.floats(0, 1), st.floats(0, 1))
def test_more_acceptance_is_faster(model: str, one: float, other: float) -> None:
    low, high = (grid(load_machine("elmoe-3d"), model, ("elastic", "sd"), rate) for rate in sorted((one, other)))
    assert (high.latency_ms <= low.latency_ms).all()
    assert (high.energy_mj.total <= low.energy_mj.total).all()


@points
def test_larger_batches_and_contexts_take_longer(system: str, model: str, way: tuple[str, str]) -> None:
    """A plain pass and the pass of a target; drafts of a pool that shrinks are the exception."""
    spent = grid(load_machine(system), model, way).phase_costs[-1][1].total_ns.reshape(len(BATCHES), len(CONTEXTS))
    assert (np.diff(spent, axis=0) >= -1e-9 * spent[1:]).all()
    assert (np.diff(spent, axis=1) >= -1e-9 * spent[:, 1:]).all()


@given(st.sampled_from(("xpu", "xpu-pim", "xpu-logicpim", "xpu-nmp")), st.sampled_from(MODELS))
def test_batches_share_weights(system: str, model: str) -> None:
    """Throughput of machines without a cache rises with the batch."""
    found = evaluate(query(roomy(load_machine(system)), model, batches=tuple(range(1, 65))))
    assert (np.diff(np.arange(1, 65) / found.latency_ms) >= -1e-12).all()


@given(
    st.sampled_from(SYSTEMS),
    st.sampled_from(MODELS),
    st.sampled_from(WAYS),
    st.lists(st.integers(1, 64), min_size=1, max_size=4),
    st.lists(st.integers(1, 131072), min_size=1, max_size=3),
)
@settings(max_examples=40)
def test_a_grid_is_its_points_one_by_one(
    system: str, model: str, way: tuple[str, str], batches: list[int], contexts: list[int]
) -> None:
    machine = roomy(load_machine(system))
    together = evaluate(query(machine, model, *way, batches=tuple(batches), contexts=tuple(contexts)))
    alone = [
        evaluate(query(machine, model, *way, batches=(batch,), contexts=(context,)))
        for batch in batches
        for context in contexts
    ]
    np.testing.assert_allclose(together.latency_ms, [one.latency_ms[0] for one in alone], rtol=1e-12)
    np.testing.assert_allclose(together.energy_mj.total, [one.energy_mj.total[0] for one in alone], rtol=1e-12)


# --- determinism and speed ---


SAMPLE = """
import json
from elmoe.sim.model import MODELS, load_model
from elmoe.sim.profile import named_profile, scheme_specs
from elmoe.sim.run import Query, rows
from elmoe.sim.spec import SYSTEMS, load_machine
queries = [
    Query(load_machine(system), load_model(name), named_profile(load_model(name), "gsm8k", scheme_specs()),
          "gsm8k", "elastic", "sd", (1, 16), (1024, 4096))
    for system in SYSTEMS for name in MODELS
]
made = json.dumps(rows(queries), allow_nan=False)
"""


def test_same_query_same_bytes_also_in_another_process() -> None:
    here: dict[str, Any] = {}
    exec(SAMPLE, here)
    again: dict[str, Any] = {}
    exec(SAMPLE, again)
    assert here["made"] == again["made"]
    assert len(json.loads(here["made"])) == len(SYSTEMS) * len(MODELS) * 4
    run = subprocess.run(
        [sys.executable, "-c", SAMPLE + "print(made)"], capture_output=True, text=True, check=True, timeout=100
    )
    assert run.stdout.strip() == here["made"]


def test_a_sweep_of_everything_takes_seconds() -> None:
    """4 models x 4 workloads x 5 batches x 6 systems x (AR and 4 schemes). Took 0.6 s where this was written."""
    started = time.perf_counter()
    specs = scheme_specs()
    ways = (("none", "ar"), ("eagle", "sd"), ("slm", "sd"), ("quant", "sd"), ("elastic", "sd"))
    queries = [
        Query(machine, model, named_profile(model, workload, specs), workload, scheme, mode, (1, 2, 4, 8, 16))
        for machine in map(load_machine, SYSTEMS)
        for model in map(load_model, MODELS)
        for workload in workloads()
        for scheme, mode in ways
    ]
    assert len(rows(queries)) == 4 * 4 * 5 * 6 * 5
    seconds = time.perf_counter() - started
    print(f"{seconds:.2f} s")
    assert seconds < 10


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": ()}, "batch is empty; give for example 1,4"),
        ({"batches": (1, 0)}, "batch must be at least 1, not 0"),
        ({"batches": (-4,)}, "batch must be at least 1, not -4"),
        ({"batches": (1.5,)}, "batch must be an integer, not 1.5"),
        ({"batches": (5000,)}, "batch 5000 is beyond 4096"),
        ({"contexts": ()}, "context is empty"),
        ({"contexts": (0,)}, "context must be at least 1, not 0"),
        ({"contexts": (131073,)}, "context 131073 is beyond 131072, the most for gpt-oss-20b"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(query("elmoe-3d", "gpt-oss-20b"), **change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "elastik"}, "unknown scheme 'elastik'; did you mean 'elastic'?"),
        ({"mode": "sdd"}, "unknown mode 'sdd'; did you mean 'sd'?"),
        ({"mode": "sd"}, "mode sd needs a scheme"),
        ({"acceptance": 2.0}, "acceptance must lie in 0..1, not 2"),
    ],
)
def test_ways_that_are_none(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        evaluate(replace(query("elmoe-3d", "gpt-oss-20b"), **change))


def test_what_does_not_fit_names_the_machine_that_it_does_not_fit() -> None:
    """HB may hold what makes the difference: then only the baseline is too small."""
    machine = load_machine("elmoe-3d")
    tight = replace(machine, ext=replace(machine.ext, capacity_gb=31.0))
    with pytest.raises(
        CapacityError, match=r"^qwen3-30b-a3b: \d+\.\d GB at batch 64 and context 1024 do not fit 31 GB"
    ):
        rows([query(tight, "qwen3-30b-a3b", batches=(64,))])
    batch = 340
    with pytest.raises(CapacityError, match=r"^xpu, which speedup_vs_xpu is relative to: .* do not fit 64 GB"):
        rows([query(machine.with_hb_gb(64), "qwen3-30b-a3b", batches=(batch,))])


def test_speed_over_plain_decoding_and_operations_per_byte() -> None:
    """Speculation is compared with the same machine without a draft; two operations per multiply-accumulate."""
    made = rows([query("elmoe-3d", MODELS[0]), query("elmoe-3d", MODELS[0], "elastic", "sd")])
    plain, drafted = made
    assert plain["speedup_vs_ar"] == 1.0
    ratio = plain["latency_ms_per_token"] / drafted["latency_ms_per_token"]
    assert drafted["speedup_vs_ar"] == pytest.approx(ratio)
    for phase in drafted["phases"].values():
        assert phase["ops_per_byte"] == pytest.approx(2 * phase["macs"] / (phase["ext_bytes"] + phase["hb_bytes"]))
    (near,) = rows([query("xpu-pim", MODELS[0])])
    decode = near["phases"]["decode"]
    assert decode["ops_per_byte"] == pytest.approx(2 * decode["macs"] / (decode["ext_bytes"] + decode["near_bytes"]))
