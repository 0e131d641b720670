"""Named profiles, cache rules, and what a trace says about locality and acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.errors import ConfigError, TraceError
from elmoe.models.shape import ModelShape
from elmoe.sim.locality import lru_hit_rate
from elmoe.sim.model import MODELS, load_model
from elmoe.sim.profile import (
    PASSES,
    RATIO,
    RESIDENT,
    Profile,
    level_acceptance,
    named_profile,
    profile_from_trace,
    scheme_specs,
    specs_for_trace,
    workloads,
)
from elmoe.sim.spec import SCHEMES
from elmoe.trace.parquet import Trace, TraceWriter, read_trace
from elmoe.trace.schema import PassKind, PassRecord

Float64 = npt.NDArray[np.float64]
RULES = (RATIO, RESIDENT, PASSES)

SHAPE = ModelShape(
    family="qwen3_moe",
    layers=1,
    moe_layers=(0,),
    hidden=32,
    heads=1,
    kv_heads=1,
    head_dim=32,
    experts=8,
    experts_per_tok=2,
    expert_hidden=32,
    dense_hidden=32,
    vocab=100,
    max_context=64,
    tied_head=True,
)


def array(*values: float) -> Float64:
    return np.array(values, dtype=np.float64)


@pytest.fixture
def profile() -> Profile:
    return named_profile(load_model("qwen3-30b-a3b"), "mt-bench", scheme_specs())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("workload", ["mt-bench", "gsm8k", "alpaca", "humaneval"])
def test_named_profiles(model: str, workload: str) -> None:
    found = named_profile(load_model(model), workload, scheme_specs())
    assert found.name == f"{model}/{workload}"
    assert found.inclusion.sum() == pytest.approx(load_model(model).experts_per_tok)
    assert found.popularity.sum() == pytest.approx(1)
    assert (np.diff(found.popularity) <= 0).all()
    assert set(found.acceptance) == {"eagle", "slm", "quant"}
    assert all(0 <= rate <= 1 for rate in found.acceptance.values())


def test_a_model_of_the_users_has_the_default_profile() -> None:
    other = replace(load_model("qwen3-30b-a3b"), name="mine/config.json")
    assert named_profile(other, "gsm8k", scheme_specs()).name == "default/gsm8k"


def test_unknown_workloads() -> None:
    assert set(workloads()) == {"mt-bench", "gsm8k", "alpaca", "humaneval"}
    with pytest.raises(ConfigError, match="unknown workload 'mtbench'; did you mean 'mt-bench'"):
        named_profile(load_model("gpt-oss-20b"), "mtbench", scheme_specs())


def test_distinct_experts_by_hand(profile: Profile) -> None:
    """E (1 - (1 - k/E)^B) across requests; inside one fewer, never fewer than one token's."""
    batch = array(1, 4, 16)
    np.testing.assert_allclose(profile.unique(batch, array(1)), 128 * (1 - (1 - 8 / 128) ** batch))
    inside = profile.unique(array(1), array(13))[0]
    assert 8 < inside < 128 * (1 - (1 - 8 / 128) ** 13)


def test_cache_rules_by_hand(profile: Profile) -> None:
    flat = replace(profile, popularity=np.full(128, 1 / 128), inside_reuse=0.0)
    capacity, batch, one = array(0, 4, 64, 128), array(1), array(1)
    np.testing.assert_allclose(flat.miss_rate(capacity, batch, one, RATIO), [1, 124 / 128, 0.5, 0], atol=1e-9)
    np.testing.assert_allclose(flat.miss_rate(capacity, batch, one, RESIDENT), [1, 124 / 128, 0.5, 0], atol=1e-9)
    steep = replace(profile, popularity=np.eye(128)[0])
    assert steep.miss_rate(array(1), array(1), one, RATIO)[0] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(steep.miss_rate(array(1), array(1), one, RESIDENT), 1 - 1 / 8)


@given(st.sampled_from(RULES), st.integers(1, 64), st.integers(1, 16), st.sampled_from(MODELS))
def test_misses_fall_with_capacity_and_stay_shares(rule: str, batch: int, tokens: int, name: str) -> None:
    model = load_model(name)
    found = named_profile(model, "mt-bench", scheme_specs())
    curve = found.miss_rate(np.linspace(0, model.experts, 65), array(batch), array(tokens), rule)
    assert curve[0] == pytest.approx(1)
    assert curve[-1] == pytest.approx(0, abs=1e-9)
    assert ((curve >= -1e-12) & (curve <= 1 + 1e-12)).all()
    assert (np.diff(curve) <= 1e-9).all()


@given(st.integers(1, 64), st.integers(1, 16), st.floats(0, 128))
def test_resident_never_hits_more_than_the_cache_holds(batch: int, tokens: int, capacity: float) -> None:
    found = named_profile(load_model("qwen3-30b-a3b"), "mt-bench", scheme_specs())
    at = array(batch), array(tokens)
    unique, miss = found.unique(*at), found.miss_rate(array(capacity), *at, RESIDENT)
    assert unique[0] * (1 - miss[0]) <= capacity + 1e-9
    assert miss[0] >= found.miss_rate(array(capacity), *at, RATIO)[0]
    assert found.miss_rate(array(capacity), *at, RATIO)[0] == pytest.approx(
        1 - lru_hit_rate(found.popularity, capacity), abs=1e-12
    )


def test_acceptance_by_scheme(profile: Profile) -> None:
    pool = array(8, 64, 128)
    for scheme in ("eagle", "slm", "quant"):
        np.testing.assert_array_equal(profile.acceptance_rate(scheme, pool), profile.acceptance[scheme])
    elastic = profile.acceptance_rate("elastic", pool)
    assert (np.diff(elastic) > 0).all()
    assert elastic[-1] == pytest.approx(profile.acceptance["quant"]), "no throttling: only the bits are fewer"
    np.testing.assert_array_equal(profile.acceptance_rate("none", pool), 0)
    measured = replace(profile, acceptance={**profile.acceptance, "elastic": 0.5})
    np.testing.assert_array_equal(measured.acceptance_rate("elastic", pool), 0.5)
    assert {"none", *profile.acceptance, "elastic"} == set(SCHEMES)


# --- from a trace ---


def one_pass(kind: PassKind, depth: int, sequences: Sequence[int], kept: Sequence[bool], step: int) -> PassRecord:
    rows = len(sequences)
    return PassRecord(
        step=step,
        kind=kind,
        depth=depth,
        sequences=np.array(sequences, dtype=np.int32),
        positions=np.full(rows, step, dtype=np.int32),
        tokens=np.zeros(rows, dtype=np.int32),
        kept=np.array(kept, dtype=np.bool_),
        experts=np.tile(np.array([[0, 1 + step % 7]], dtype=np.int16), (rows, 1, 1)),
        pool=np.zeros((1, 8), dtype=np.bool_),
        distinct_experts=np.array([2], dtype=np.int32),
        fast_bytes=0,
        slow_bytes=0,
        kv_bytes=0,
        seconds=0.0,
    )


def record(path: Path, passes: Sequence[PassRecord], settings: dict[str, object]) -> Trace:
    with TraceWriter(path, SHAPE, settings, "a test") as writer:
        for item in passes:
            writer.record(item)
    return read_trace(path)


def drafted(step: int, accepted: tuple[int, int]) -> list[PassRecord]:
    """Two sequences, a tree of depth 3, and how many of the levels held in each."""
    passes = [one_pass(PassKind.DRAFT, depth, [0, 1], [False] * 2, step) for depth in range(3)]
    kept = [row <= count for count in accepted for row in range(4)]
    return [*passes, one_pass(PassKind.VERIFY, 0, [0] * 4 + [1] * 4, kept, step)]


SETTINGS: dict[str, object] = {"speculation": {"width": 1, "depth": 3, "verify": 3}}


def test_level_acceptance_by_hand(tmp_path: Path) -> None:
    """2 + 0 and 3 + 1 levels held of 3 each: 6 of 12."""
    trace = record(tmp_path / "t.parquet", drafted(0, (2, 0)) + drafted(1, (3, 1)), SETTINGS)
    assert level_acceptance(trace) == 0.5
    specs = specs_for_trace(trace, scheme_specs())
    assert (specs.tree.width, specs.tree.depth, specs.tree.verify) == (1, 3, 3)
    assert (specs.tree.quantities["depth"].value, specs.tree.quantities["depth"].source) == (3, "trace t.parquet")
    found = profile_from_trace(trace, specs)
    assert found.acceptance["elastic"] == 0.5
    assert (found.decode_hits, found.verify_hits) == (PASSES, PASSES)


def test_a_trace_without_drafts(tmp_path: Path) -> None:
    """Expert 0 is picked by every token, the others in turn."""
    passes = [one_pass(PassKind.AR, 0, [0, 1], [True, True], step) for step in range(28)]
    trace = record(tmp_path / "t.parquet", passes, {})
    assert level_acceptance(trace) is None
    assert specs_for_trace(trace, scheme_specs()) is scheme_specs()
    found = profile_from_trace(trace, scheme_specs())
    assert "elastic" not in found.acceptance
    np.testing.assert_allclose(found.inclusion, [1] + [1 / 7] * 7)
    np.testing.assert_allclose(found.popularity, [1 / 2] + [1 / 14] * 7)
    assert 0 <= found.inside_reuse < 1
    assert found.unique(array(1), array(1))[0] == pytest.approx(2)


def test_a_trace_that_accepts_more_than_it_drafted(tmp_path: Path) -> None:
    passes = [p for p in drafted(0, (3, 3)) if p.kind is PassKind.VERIFY or p.depth == 0]
    with pytest.raises(TraceError, match="more draft tokens accepted than drafted; record it again"):
        level_acceptance(record(tmp_path / "t.parquet", passes, SETTINGS))


def test_a_trace_that_names_no_tree(tmp_path: Path) -> None:
    trace = record(tmp_path / "t.parquet", drafted(0, (1, 1)), {"speculation": {"width": 1, "depth": 0, "verify": 3}})
    with pytest.raises(TraceError, match=r"name no tree \(width, depth, verify\); record it again"):
        specs_for_trace(trace, scheme_specs())
