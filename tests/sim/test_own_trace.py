from __future__ import annotations

from pathlib import Path

import pytest

from elmoe import Engine, EngineOptions, Generation, Mode, Speculation
from elmoe.sim.own_trace import OwnTrace, machines_on_trace
from elmoe.sim.profile import level_acceptance, profile_from_trace, scheme_specs, specs_for_trace
from elmoe.sim.spec import SYSTEMS
from elmoe.trace.parquet import Trace, TraceWriter, read_trace

PROMPTS = ["Once upon a time", "Tom has 12 apples.", "The capital of France is"]


def recorded(path: Path, speculation: Speculation) -> Trace:
    engine = Engine.open("tiny", EngineOptions(pool_fraction=0.5, speculation=speculation))
    with TraceWriter(path, engine.backend.shape, engine.settings(), source="tiny") as writer:
        engine.recorder = writer
        engine.generate(PROMPTS, Generation(max_tokens=12, ignore_eos=True))
    return read_trace(path)


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    elastic = Speculation(mode=Mode.SD, width=2, depth=3, verify=6)
    return recorded(tmp_path_factory.mktemp("trace") / "sd.parquet", elastic)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return recorded(tmp_path_factory.mktemp("trace") / "ar.parquet", Speculation(mode=Mode.AR))


@pytest.fixture(scope="module")
def on_machines(drafted: Trace) -> OwnTrace:
    return machines_on_trace(drafted)


def test_every_system_has_a_row_in_its_usual_mode(on_machines: OwnTrace) -> None:
    assert [row["system"] for row in on_machines.rows] == list(SYSTEMS)
    modes = {row["system"]: (row["scheme"], row["mode"]) for row in on_machines.rows}
    assert modes["xpu"] == ("none", "ar")
    assert modes["elmoe-3d"] == ("elastic", "sd")


def test_sizes_come_from_the_trace(on_machines: OwnTrace, drafted: Trace) -> None:
    assert on_machines.batch == len(PROMPTS)
    assert 1 < on_machines.context < drafted.shape.max_context
    assert on_machines.hb_bytes < 14e6, "HB is cut: a small model would fit whole"


def test_acceptance_is_the_traces(on_machines: OwnTrace, drafted: Trace) -> None:
    row = on_machines.rows[-1]
    assert row["acceptance_rate"] == level_acceptance(drafted)
    assert row["mean_accepted_length"] == pytest.approx(3 * row["acceptance_rate"])


def test_the_tree_is_the_traces(drafted: Trace) -> None:
    tree = specs_for_trace(drafted, scheme_specs()).tree
    assert (tree.width, tree.depth, tree.verify) == (2, 3, 6)


def test_a_trace_without_drafts_keeps_the_built_in_tree_and_acceptance_model(plain: Trace) -> None:
    specs = scheme_specs()
    assert level_acceptance(plain) is None
    assert specs_for_trace(plain, specs) is specs
    assert "elastic" not in profile_from_trace(plain, specs).acceptance


def test_the_profile_is_measured(drafted: Trace) -> None:
    profile = profile_from_trace(drafted, scheme_specs())
    assert profile.popularity.sum() == pytest.approx(1.0)
    assert profile.inclusion.sum() == pytest.approx(drafted.shape.experts_per_tok)
    assert (profile.popularity[:-1] >= profile.popularity[1:]).all()
    assert 0.0 <= profile.inside_reuse < 1.0
