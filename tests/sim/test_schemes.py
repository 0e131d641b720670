"""Phases of a serving step: their order, bytes and rows, the accepted length, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.errors import ConfigError
from elmoe.sim.memory_map import memory_map
from elmoe.sim.model import MODELS, load_model
from elmoe.sim.profile import named_profile, scheme_specs
from elmoe.sim.schemes import Dense, Experts, Phase, Scenario, mean_accepted_length, step
from elmoe.sim.spec import SYSTEMS, load_machine

Float64 = npt.NDArray[np.float64]
SPECULATIVE = ("eagle", "slm", "quant", "elastic")


def scenario(
    system: str, name: str, scheme: str, mode: str, batch: float = 4, context: float = 1024, **more: Any
) -> Scenario:
    """One point, with external memory for anything."""
    machine, model, specs = load_machine(system), load_model(name), scheme_specs()
    machine = replace(machine, ext=replace(machine.ext, capacity_gb=1e6))
    at = np.array([float(batch)]), np.array([float(context)])
    places = memory_map(machine, model, scheme, *at, specs)
    profile = named_profile(model, "mt-bench", specs)
    return Scenario(model, scheme, mode, *at, places, profile, specs, **more)


def read(phase: Phase) -> tuple[float, float]:
    """(HB, EXT) bytes of one pass."""
    hb = ext = 0.0
    for operator in phase.operators:
        if isinstance(operator, Dense):
            hb, ext = hb + float(operator.hb_bytes[0]), ext + float(operator.ext_bytes[0])
        else:
            work = operator.work
            hb += operator.layers * float(work.hits[0]) * work.hb_bytes
            outside = work.hits * work.hit_ext_bytes + work.misses * work.miss_bytes
            ext += operator.layers * float(outside[0])
    return hb, ext


def experts_of(phase: Phase) -> Experts:
    (found,) = (operator for operator in phase.operators if isinstance(operator, Experts))
    return found


# --- order and accepted length ---


def test_phases_of_a_step() -> None:
    tree = scheme_specs().tree
    plain = step(scenario("xpu", "qwen3-30b-a3b", "none", "ar"))
    assert [(phase.name, phase.count) for phase in plain.phases] == [("decode", 1)]
    assert plain.accepted_length == plain.acceptance_rate == 0
    for scheme in SPECULATIVE:
        made = step(scenario("elmoe-3d", "qwen3-30b-a3b", scheme, "sd"))
        expected = [("draft", 1), ("draft", tree.depth - 1), ("verify", 1)]
        assert [(phase.name, phase.count) for phase in made.phases] == expected
        rows = [phase.operators[0].rows[0] for phase in made.phases if isinstance(phase.operators[0], Dense)]
        assert rows == [4, 4 * tree.width, 4 * (tree.verify + 1)]


def test_a_tree_of_depth_one_has_one_draft_pass() -> None:
    specs = scheme_specs()
    shallow = replace(specs, tree=replace(specs.tree, depth=1))
    made = step(replace(scenario("elmoe-3d", "gpt-oss-20b", "elastic", "sd"), specs=shallow))
    assert [(phase.name, phase.count) for phase in made.phases] == [("draft", 1), ("verify", 1)]


@given(st.floats(0, 1), st.integers(1, 12), st.integers(1, 40))
def test_the_accepted_length_is_rate_times_depth_and_at_most_what_is_verified(
    rate: float, depth: int, verify: int
) -> None:
    found = mean_accepted_length(np.array([rate]), depth, verify)[0]
    assert found == min(rate * depth, verify)


def test_a_given_acceptance_goes_before_the_profile() -> None:
    tree = scheme_specs().tree
    made = step(scenario("elmoe-3d", "qwen3-30b-a3b", "elastic", "sd", acceptance=0.25))
    assert (made.acceptance_rate[0], made.accepted_length[0]) == (0.25, 0.25 * tree.depth)


# --- bytes ---


@given(
    st.sampled_from(SYSTEMS),
    st.sampled_from(MODELS),
    st.sampled_from(("none", *SPECULATIVE)),
    st.integers(1, 40),
    st.integers(1, 131072),
)
def test_the_targets_pass_reads_its_weights_and_kv_once(
    system: str, name: str, scheme: str, batch: int, context: int
) -> None:
    """Wherever they lie, and however experts are split over HB and EXT."""
    model = load_model(name)
    for mode in ("ar", "sd") if scheme != "none" else ("ar",):
        made = step(scenario(system, name, scheme, mode, batch, context))
        kv = batch * float(model.kv_bytes(np.array([float(context)]))[0])
        experts = model.moe_layers * float(made.unique_experts[0]) * model.expert_bytes
        assert sum(read(made.phases[-1])) == pytest.approx(model.dense_bytes + experts + kv)
        work = experts_of(made.phases[-1]).work
        assert float((work.hits + work.misses)[0]) == pytest.approx(float(made.unique_experts[0]))
        assert model.experts_per_tok * (1 - 1e-9) <= made.unique_experts[0] <= model.experts
        assert 0 <= made.miss_rate[0] <= 1 + 1e-12


@given(st.sampled_from(SYSTEMS), st.sampled_from(MODELS), st.integers(1, 40), st.integers(1, 131072))
def test_drafts_of_the_targets_own_weights_read_half_the_bits(system: str, name: str, batch: int, context: int) -> None:
    model = load_model(name)
    kv = batch * float(model.kv_bytes(np.array([float(context)]))[0])
    for scheme in ("quant", "elastic"):
        for phase in step(scenario(system, name, scheme, "sd", batch, context)).phases[:-1]:
            work = experts_of(phase).work
            unique = float((work.hits + work.misses)[0])
            whole = scheme == "quant" and model.mxfp4_experts  # its own copy: the dense part stays at 8 bits
            dense = model.dense_bytes if whole else model.dense_draft_bytes
            expected = dense + model.moe_layers * unique * model.expert_draft_bytes + kv
            assert sum(read(phase)) == pytest.approx(expected)
            assert model.experts_per_tok * (1 - 1e-9) <= unique <= model.experts


@given(st.sampled_from(SYSTEMS), st.sampled_from(MODELS), st.integers(1, 40), st.integers(1, 131072))
def test_separate_drafts_read_their_own_weights_and_kv(system: str, name: str, batch: int, context: int) -> None:
    for scheme in ("eagle", "slm"):
        point = scenario(system, name, scheme, "sd", batch, context)
        draft = point.places.draft
        for phase in step(point).phases[:-1]:
            expected = draft.weight_bytes + batch * context * draft.kv_bytes_per_token
            assert sum(read(phase)) == pytest.approx(expected)
            assert read(phase)[0] == pytest.approx(float(point.places.draft_hb[0]), rel=1e-9, abs=1)


def test_no_pass_reads_more_from_a_tier_than_lies_there() -> None:
    """At 32k tokens and 4 GB the 4-bit copy of the dense part is outside HB, and is read there."""
    point = scenario("elmoe-3d", "qwen3-30b-a3b", "quant", "sd", 1, 32768)
    copy = point.places.draft.weight_bytes
    assert (point.places.draft_hb[0], point.places.draft_ext[0]) == (0, copy)
    (weights,) = [item for item in step(point).phases[0].operators if item.name == "dense"]
    assert isinstance(weights, Dense)
    assert weights.ext_bytes[0] == copy
    assert weights.hb_bytes[0] == point.model.router_bytes


def test_an_elastic_draft_does_not_touch_external_memory() -> None:
    """It stays inside the pool, and the verify pass reads both halves of what hits."""
    made = step(scenario("elmoe-3d", "qwen3-30b-a3b", "elastic", "sd"))
    for phase in made.phases[:-1]:
        assert read(phase)[1] == 0
        assert experts_of(phase).work.hb_bits == 4
    work = experts_of(made.phases[-1]).work
    assert work.hits[0] > 0
    assert work.hb_bytes + work.hit_ext_bytes == work.miss_bytes == 3 * 2048 * 768 * 34 / 32
    assert work.hit_ext_bytes == 3 * 2048 * 768 / 2


def test_an_elastic_draft_stays_inside_its_pool() -> None:
    point = scenario("elmoe-3d", "qwen3-30b-a3b", "elastic", "sd", batch=8)
    wide = experts_of(step(point).phases[1]).work
    assert wide.hits[0] == pytest.approx(point.places.draft_experts[0])
    assert wide.misses[0] == 0


def test_an_elastic_draft_reads_outside_what_a_pool_eaten_by_the_kv_cache_lacks() -> None:
    """Never fewer experts than one token needs; none of them for free."""
    point = scenario("elmoe-3d", "qwen3-30b-a3b", "elastic", "sd", batch=1, context=131072)
    assert point.places.pool_hb[0] == 0
    for phase in step(point).phases[:-1]:
        work = experts_of(phase).work
        assert (work.hits[0], work.misses[0]) == (0, pytest.approx(8))


def test_experts_of_four_bits_are_not_sliced() -> None:
    made = step(scenario("elmoe-3d", "gpt-oss-20b", "elastic", "sd"))
    work = experts_of(made.phases[-1]).work
    assert (work.hit_ext_bytes, work.hb_bytes, work.hb_bits, work.miss_bits) == (0, work.miss_bytes, 4, 4)


def test_the_copy_of_quant_leaves_the_target_no_cache() -> None:
    point = scenario("elmoe-3d", "qwen3-30b-a3b", "quant", "sd")
    made = step(point)
    assert experts_of(made.phases[0]).work.hits[0] > 0
    assert (experts_of(made.phases[-1]).work.hits[0], made.miss_rate[0]) == (0, 1)
    plain = step(scenario("elmoe-3d", "qwen3-30b-a3b", "quant", "ar"))
    assert plain.miss_rate[0] == 1


def test_decoding_with_elastic_caches_whole_experts() -> None:
    made = step(scenario("elmoe-3d", "qwen3-30b-a3b", "elastic", "ar"))
    work = experts_of(made.phases[0]).work
    assert (work.hit_ext_bytes, work.hb_bytes, work.hb_bits) == (0, work.miss_bytes, 8)


def test_attention_work_follows_rows_and_context() -> None:
    made = step(scenario("xpu", "qwen3-30b-a3b", "eagle", "sd", batch=3, context=2000))
    attention = made.phases[-1].operators[1]
    assert isinstance(attention, Dense)
    rows = 3 * (scheme_specs().tree.verify + 1)
    assert attention.macs[0] == rows * 48 * 2 * 32 * 128 * 2000
    assert attention.ext_bytes[0] == 3 * 2000 * 96 * 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "elastik"}, "unknown scheme 'elastik'; did you mean 'elastic'?"),
        ({"mode": "fast"}, "unknown mode 'fast'; known are ar, sd"),
        ({"scheme": "none"}, "mode sd needs a scheme: eagle, slm, quant or elastic"),
        ({"acceptance": 1.01}, "acceptance must lie in 0..1, not 1.01"),
        ({"acceptance": -0.1}, "acceptance must lie in 0..1, not -0.1"),
        ({"acceptance": float("nan")}, "acceptance must lie in 0..1, not nan"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    point = scenario("elmoe-3d", "gpt-oss-20b", "elastic", "sd")
    with pytest.raises(ConfigError) as caught:
        replace(point, **change)
    assert str(caught.value) == message
