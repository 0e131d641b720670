"""The page of `elmoe reproduce`: one file, whole, and what its charts are drawn from."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from figure_sources import sources

from elmoe.report.catalogue import draw, wanted
from elmoe.report.deviations import Deviation
from elmoe.report.methods import assumptions
from elmoe.report.reproduction import Reproduction, number_text, plotly_js, render_page
from elmoe.report.sources import Sources
from elmoe.report.store import Store
from elmoe.sim.headline import Gain, Headline

pytest.importorskip("plotly")

VOID = {"meta", "br", "link", "img", "hr", "input"}
LIES = "</script><script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser makes of it, strictly: every element is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [values[name] or "" for name in ("href", "src", "action") if name in values]
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.text += data


def averages(hb_gb: float) -> Headline:
    gain = Gain(2.0, 3.0, 1.0)
    return Headline(hb_gb, gain, gain, gain, gain, gain, gain, 2.5, {"xpu": gain})


def report(figures: str, given: Sources, folder: Path) -> Reproduction:
    drawn, left_out = draw(wanted(figures)[0], given, Store(folder), lambda *_: None)
    deviations = [Deviation("a cell", 1.0, 1.5, "because <b>so</b>")]
    both = [averages(4.0), averages(8.0)]
    return Reproduction(drawn, left_out, both, deviations, assumptions(), "elmoe reproduce --only x")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    return render_page(report("table3,fig2,fig3,fig9,fig12,fig17,fig22", sources(folder), folder))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_one_file_that_needs_nothing_else(html: str, page: Page) -> None:
    assert html.startswith("<!DOCTYPE html>\n")
    assert all(link.startswith("#") for link in page.links), "links inside the page only"
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    own = page.scripts[-1]
    assert not re.search(r"https?://|fetch\(|import\(", own)
    assert len(html.encode()) < 8e6
    assert page.scripts[1] == plotly_js(), "plotly is there whole, once"


def test_the_data_are_the_rows(page: Page, tmp_path: Path) -> None:
    data = json.loads(page.scripts[0])
    figure = data["figures"]["fig9"]
    (made,), _ = wanted("fig9")
    rows = made.build(sources(tmp_path))
    assert figure["count"] == len(rows)
    for name in ("ms", "phase", "batch", "hb_gb"):
        column = unpacked(figure["columns"][name], len(rows))
        assert column == [pytest.approx(row[name], rel=1e-5) if name == "ms" else row[name] for row in rows]
    assert figure["charts"][0]["pick"] == {"hb_gb": 8, "batch": 4}
    assert figure["commands"][0]["values"]["ms"] == "rows[0].phases.draft.ms"


def unpacked(coded: Any, count: int) -> list[Any]:
    """As the page's script does it."""
    if isinstance(coded, list):
        return coded
    return [coded["all"]] * count if "all" in coded else [coded["texts"][index] for index in coded["at"]]


def test_quoted_and_simulated_stand_in_columns_of_their_own(page: Page) -> None:
    assert "8 GB unless saidquotedsimulated" in page.text
    assert "speedup over xpu, 8 GB6.6 (max 12)2.00 (max 3.0)" in page.text
    assert "quoted (q) and simulated (s) side by side" in page.text
    assert "a cell11.5+50%because <b>so</b>" in page.text, "texts are texts"


def test_every_figure_has_its_command_hash_and_version(html: str) -> None:
    for identity in ("table3", "fig2", "fig22"):
        card = html[html.index(f'id="{identity}"') :].split("</article>", maxsplit=1)[0]
        assert re.search(r"<code data-command=\"\w+\">elmoe \w+ ", card)
        assert re.search(r"input hash <code>[0-9a-f]{16}</code> · elmoe \d", card)
        assert f"elmoe reproduce --only {identity}" in card


def test_every_assumption_has_a_source(page: Page) -> None:
    for word in (
        "elmoe-3d",
        "power.static_w",
        "DRAM hb-bank",
        "prices",
        "tree.inside_reuse",
        "assumed",
        "qwen3-30b-a3b",
    ):
        assert word in page.text
    assert all(entry.source and entry.status for _, entries in assumptions() for entry in entries)


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    text = Page(render_page(report("fig1,fig4", Sources(), tmp_path))).text
    assert "fig4 (unique-experts): routing was not measured" in text


def test_no_text_of_a_user_ends_the_script(tmp_path: Path) -> None:
    given = sources(tmp_path)
    rows = [dict(row) | {"workload": LIES, "prompts": LIES} for row in given.rows["locality"]]
    made = report("fig4", Sources({"locality": rows}, {"locality": "x"}), tmp_path / "data")
    page = Page(render_page(made))
    assert len(page.scripts) == 3
    assert json.loads(page.scripts[0])["figures"]["fig4"]["columns"]["workload"] == {"all": LIES}


def test_the_same_report_gives_the_same_bytes(html: str, tmp_path: Path) -> None:
    names = "table3,fig2,fig3,fig9,fig12"
    first, second = (render_page(report(names, sources(tmp_path), tmp_path / name)) for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), ("a", "a"), (0, "0"), (1234567.8, "1,234,568"), (8.0, "8"), (0.012345, "0.0123"), (float("nan"), "")],
)
def test_numbers_for_people(value: Any, text: str) -> None:
    assert number_text(value) == text
