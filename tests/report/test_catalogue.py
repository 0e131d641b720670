"""Every figure, built once from the simulator and made-up measurements."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from figure_sources import sources

from elmoe.report.catalogue import CATALOGUE, draw, wanted
from elmoe.report.figure import chosen, suited
from elmoe.report.reproduction import Drawn
from elmoe.report.sources import Made, Sources
from elmoe.report.store import Store
from elmoe.sim.model import MODELS
from elmoe.sim.profile import workloads
from elmoe.sim.spec import SYSTEMS

IDS = [made.figure.id for made in CATALOGUE]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawn]:
    folder = tmp_path_factory.mktemp("figures")
    found, left_out = draw(CATALOGUE, sources(folder), Store(folder / "data"), lambda *_: None)
    assert not left_out
    return {one.figure.id: one for one in found}


def by_id(identity: str) -> Made:
    return next(made for made in CATALOGUE if made.figure.id == identity)


def test_numbers_and_names_are_each_once() -> None:
    names = [made.figure.name for made in CATALOGUE]
    assert len(set(IDS) | set(names)) == 2 * len(CATALOGUE)
    assert ["fig1", *IDS[1:7], "table3", *(f"fig{n}" for n in range(8, 23))] == IDS
    assert by_id("fig14").figure.name == "speedup"


def test_what_the_issue_asks_for_is_there(drawn: dict[str, Drawn]) -> None:
    speedup = drawn["fig14"].rows
    points = {
        (row["system"], row["model"], row["workload"], row["batch"], row["mode"], row["hb_gb"]) for row in speedup
    }
    assert len(points) == len(speedup) == 6 * 4 * 4 * 5 * 2 * 2
    assert {row["system"] for row in speedup} == set(SYSTEMS)
    assert {row["workload"] for row in speedup} == set(workloads())
    table = drawn["table3"].rows
    cells = {(row["hb_gb"], row["model"], row["scheme"], row["mode"], row["batch"]) for row in table}
    assert len(cells) == len(table) == 2 * 4 * 4 * 2 * 4
    contexts = {row["context"] for row in drawn["fig16"].rows}
    assert (min(contexts), max(contexts)) == (1024, 131072)


@pytest.mark.parametrize("identity", IDS)
def test_charts_have_their_columns_and_rows(identity: str, drawn: dict[str, Drawn]) -> None:
    one = drawn[identity]
    for chart in one.figure.charts:
        rows = chosen(one.rows, **chart.where)
        assert suited(rows, **chart.pick), f"{chart.title}: the first choice shows nothing"
        drawn_columns = [name for name in (chart.x, chart.y, chart.z, chart.color, chart.dash, chart.facet) if name]
        for row in rows:
            missing = [name for name in drawn_columns if row.get(name) is None and name not in ("quoted", "dash")]
            assert not missing, (chart.title, row)


@pytest.mark.parametrize("identity", IDS)
def test_every_row_has_a_command_for_what_is_drawn(identity: str, drawn: dict[str, Drawn]) -> None:
    one = drawn[identity]
    for chart in one.figure.charts:
        value = chart.z or (chart.x if chart.kind == "tornado" else chart.y)
        for row in chosen(one.rows, **chart.where):
            command = one.figure.command(row)
            assert command is not None, row
            assert value in command.values, (chart.title, value)
    assert one.example.startswith("elmoe ")


@pytest.mark.parametrize("identity", IDS)
def test_texts_are_whole(identity: str, drawn: dict[str, Drawn]) -> None:
    one = drawn[identity]
    for text in (one.figure.title, one.figure.evidence, str(one.says), one.figure.how):
        assert text
        assert not re.search(r"[{}]", text), text


def test_quoted_numbers_have_a_column_of_their_own(drawn: dict[str, Drawn]) -> None:
    with_quotes = [one for one in drawn.values() if any("quoted" in row for row in one.rows)]
    assert [one.figure.id for one in with_quotes] == ["table3"]
    larger = chosen(drawn["table3"].rows, hb_gb=8)
    assert all(row["quoted"] is None and row["deviation"] is None for row in larger)
    smaller = chosen(drawn["table3"].rows, hb_gb=4)
    assert all(row["speedup_vs_xpu"] == pytest.approx(row["quoted"] * (1 + row["deviation"])) for row in smaller)


def test_the_given_machine_is_one_more_system(drawn: dict[str, Drawn]) -> None:
    rows = drawn["fig22"].rows
    assert {row["shown_system"] for row in rows} == {"my-box", *SYSTEMS}
    ours, theirs = (chosen(rows, shown_system=name, mode="ar", batch=16) for name in ("my-box", "elmoe-3d"))
    assert [row["model"] for row in ours] == list(MODELS)
    assert all(mine["tokens_per_s"] < other["tokens_per_s"] for mine, other in zip(ours, theirs, strict=True))
    command = drawn["fig22"].figure.command(ours[0])
    assert command is not None
    assert "my_box.toml" in command.text(ours[0])
    assert "--hb-gb" not in command.text(ours[0])


def test_what_is_not_there_is_left_out_with_its_reason(tmp_path: Path) -> None:
    figures, _ = wanted("fig4,fig12,fig22,fig1")
    found, left_out = draw(figures, Sources(), Store(tmp_path), lambda *_: None)
    assert [one.figure.id for one in found] == ["fig1"]
    assert left_out["fig22 (machines)"] == "no machine file was given (--this-machine FILE.toml)"
    assert set(left_out) == {"fig4 (unique-experts)", "fig12 (area)", "fig22 (machines)"}


def test_the_texts_say_what_the_rows_show(drawn: dict[str, Drawn]) -> None:
    """Claims that are not computed, held to the numbers."""
    dense = [row["ops_per_byte"] for row in drawn["fig1"].rows if row["phase"] == "decode" and row["batch"] == 64]
    assert max(dense) < 5120 / 100
    costs = drawn["fig20"].rows
    for row in chosen(costs, part="hardware", batch=4):
        other = next(one for one in costs if one["part"] == "energy" and all(
            one[key] == row[key] for key in ("model", "way", "hb_gb", "batch")))  # fmt: skip
        assert row["usd"] > 10 * other["usd"]
    many = [row for row in drawn["fig18"].rows if row["batch"] >= 32 and row["acceptance"] >= 0.5]
    assert min(row["speedup_vs_ar"] for row in many if row["model"] == MODELS[0]) > 1
    few = [row for row in drawn["fig18"].rows if row["batch"] == 1 and row["reuse"] <= 0.5]
    assert max(row["speedup_vs_ar"] for row in few) < 1
    accepted = {(row["model"], row["scheme"]): row["mean_accepted_length"] for row in drawn["fig9"].rows
                if row["hb_gb"] == 8 and row["batch"] == 4}  # fmt: skip
    assert all(1.8 < accepted[model, "elastic"] / accepted[model, "eagle"] < 3.2 for model in MODELS)
    whole = {row["scheme"] for row in drawn["fig8"].rows if row["part"] == "draft model" and not row["bytes"]}
    assert "elastic" in whole
    refresh = drawn["fig19"].facts
    assert 0 < refresh["pb"] < refresh["ab"] < 0.15
    changed = [row for row in drawn["fig17"].rows if row["side"] != "base"]
    for model, batch in product(MODELS, (1, 4, 16)):
        spans: dict[str, list[float]] = {}
        for row in chosen(changed, model=model, batch=batch):
            spans.setdefault(row["parameter"], []).append(row["latency_ms_per_token"])
        widest = max(spans, key=lambda name: max(spans[name]) - min(spans[name]))
        assert widest.startswith("HB bandwidth" if model == "gpt-oss-20b" and batch < 16 else "EXT bandwidth")
