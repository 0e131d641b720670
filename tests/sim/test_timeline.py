from __future__ import annotations

import json
from pathlib import Path

import pytest

from elmoe.errors import StorageError
from elmoe.sim.cycle import LayerTiming, simulate_layer
from elmoe.sim.layer_pass import draw_layer
from elmoe.sim.model import load_model
from elmoe.sim.spec import load_machine
from elmoe.sim.timeline import TRACKS, chrome_trace, write_timeline


@pytest.fixture(scope="module")
def timing() -> LayerTiming:
    layer = draw_layer(load_model("gpt-oss-20b"), "ar", 1, 0.5, seed=1)
    assert {layer.hits[i] for i, rows in enumerate(layer.rows) if rows} == {True, False}
    return simulate_layer(load_machine("elmoe-3d"), layer, 101.4, 794.6)


def test_there_is_a_named_track_for_every_resource(timing: LayerTiming) -> None:
    rows = chrome_trace(timing.events, "one layer")["traceEvents"]
    names = {row["args"]["name"]: row["tid"] for row in rows if row["name"] == "thread_name"}
    assert list(names) == list(TRACKS.values())
    assert {row["tid"] for row in rows if row["ph"] == "X"} == set(names.values())
    assert rows[0]["args"]["name"] == "one layer"


@pytest.mark.parametrize("chunks", [False, True])
def test_bars_keep_time_and_do_not_overlap(timing: LayerTiming, chunks: bool) -> None:
    bars = [row for row in chrome_trace(timing.events, "t", chunks)["traceEvents"] if row["ph"] == "X"]
    assert sum(bar["args"]["busy_ns"] for bar in bars) == pytest.approx(sum(timing.busy_ns.values()))
    assert sum(bar["args"]["pieces"] for bar in bars) == len(timing.events)
    assert max(bar["ts"] + bar["dur"] for bar in bars) == pytest.approx(timing.total_ns / 1000)
    for track in {bar["tid"] for bar in bars}:
        ends = 0.0
        for bar in (bar for bar in bars if bar["tid"] == track):
            assert bar["ts"] >= ends - 1e-9
            ends = bar["ts"] + bar["dur"]


def test_a_step_of_an_expert_is_one_bar_unless_chunks_are_wanted(timing: LayerTiming) -> None:
    joined, single = (chrome_trace(timing.events, "t", chunks)["traceEvents"] for chunks in (False, True))
    names = [row["name"] for row in joined if row["tid"] == 0 and row["ph"] == "X"]
    assert len(names) == len(set(names))
    assert all(name.startswith("expert ") and name.endswith(("gate/up", "down")) for name in names)
    assert len(single) > 10 * len(joined)
    assert "output" in {row["name"] for row in joined}


def test_the_file_is_json(timing: LayerTiming, tmp_path: Path) -> None:
    path = tmp_path / "layer.json"
    write_timeline(path, timing.events, "one layer")
    assert json.loads(path.read_text(encoding="utf-8")) == chrome_trace(timing.events, "one layer")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_refused(timing: LayerTiming, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_timeline(tmp_path / "missing" / "layer.json", timing.events, "one layer")
