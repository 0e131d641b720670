"""Figures as data: commands, choices, names."""

from __future__ import annotations

import pytest

from elmoe.errors import ConfigError, InternalError
from elmoe.report.catalogue import CATALOGUE, wanted
from elmoe.report.figure import Chart, Command, chosen, shown, suited

COMMAND = Command(
    ("elmoe simulate", "--model {model}", "--hb-gb {hb_gb}", "--acceptance {acceptance}", "--json"),
    {
        "ms": ("rows", 0, "phases", "draft", "ms"),
        "agreement": ("grid", {"bits": "bits", "pool": "where"}, "agreement"),
        "share": ("rows", 0, "bytes"),
    },
    {"kind": "simulated"},
    {"share": "per_byte"},
)


def test_a_part_without_its_value_is_left_out() -> None:
    row = {"model": "my model", "hb_gb": 8.0, "acceptance": None}
    assert COMMAND.arguments(row) == ["elmoe", "simulate", "--model", "my model", "--hb-gb", "8", "--json"]
    assert COMMAND.text(row) == "elmoe simulate --model 'my model' --hb-gb 8 --json"
    assert COMMAND.arguments(row | {"acceptance": 0.57})[-3:] == ["--acceptance", "0.57", "--json"]
    assert [shown(value) for value in (8.0, 0.25, 4, "qwen")] == ["8", "0.25", "4", "qwen"]


def test_values_are_found_by_key_place_and_match() -> None:
    document = {
        "rows": [{"phases": {"draft": {"ms": 3.5}}, "bytes": 200}],
        "grid": [{"bits": 4, "pool": "hot", "agreement": 0.5}, {"bits": 4, "pool": "random", "agreement": 0.25}],
    }
    row = {"kind": "simulated", "bits": 4, "where": "random", "per_byte": 0.01}
    assert COMMAND.serves(row)
    assert not COMMAND.serves({"kind": "measured"})
    assert [COMMAND.value(document, row, name) for name in ("ms", "agreement", "share")] == [3.5, 0.25, 2.0]
    paths = COMMAND.as_dict()["values"]
    assert paths == {"ms": "rows[0].phases.draft.ms", "agreement": "grid[with this bits, pool].agreement",
                     "share": "rows[0].bytes"}  # fmt: skip


def test_choices_let_rows_pass_that_they_do_not_concern() -> None:
    rows = [{"hb_gb": 4}, {"hb_gb": 8}, {"hb_gb": None}, {}]
    assert chosen(rows, hb_gb=8) == [{"hb_gb": 8}]
    assert suited(rows, hb_gb=8) == [{"hb_gb": 8}, {"hb_gb": None}, {}]


def test_a_chart_of_an_unknown_kind_is_a_fault_of_ours() -> None:
    with pytest.raises(InternalError, match="unknown kind 'pie'"):
        Chart(kind="pie", title="", x="a", y="b")


def test_figures_are_chosen_by_number_or_name_in_the_page_s_order() -> None:
    figures, averages = wanted("fig14, table3,energy")
    assert [made.figure.id for made in figures] == ["table3", "fig14", "fig15"]
    assert not averages
    assert wanted("headline") == ([], True)
    assert wanted(None) == (list(CATALOGUE), True)


def test_an_unknown_figure_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"--only: unknown figure 'fig99'; known are fig1 \(intensity\), .*fig14 \(sp"
    ):
        wanted("table3,fig99")
