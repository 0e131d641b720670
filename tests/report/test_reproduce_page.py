"""The report's page in headless Chromium: opened from disk, it draws everything, and people can use it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from figure_sources import sources

from chromium import NEEDS_CHROMIUM, launched
from elmoe.report.catalogue import CATALOGUE, draw
from elmoe.report.methods import assumptions
from elmoe.report.reproduction import Reproduction, write_page
from elmoe.report.store import Store

pytestmark = [
    pytest.mark.verify,
    pytest.mark.filterwarnings("default"),
    *NEEDS_CHROMIUM,
]
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def report_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    drawn, _ = draw(CATALOGUE, sources(folder), Store(folder / "data"), lambda *_: None)
    write_page(folder / "report.html", Reproduction(drawn, {}, [], [], assumptions(), "elmoe reproduce"))
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def opened(browser, report_file):
    """A function that opens the page; no error and no request to elsewhere may follow."""
    problems, contexts = [], []

    def open_page(width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:", "blob:")) else
                problems.append(asked.url))  # fmt: skip
        page.goto(report_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def draw_all(page):
    page.evaluate("views.forEach((view) => view.draw())")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_chart_is_drawn_and_nothing_runs_out_of_the_page(opened, width, scheme):
    page = opened(width, scheme)
    draw_all(page)
    charts = page.locator("figure.chart")
    assert charts.count() == sum(len(made.figure.charts) for made in CATALOGUE)
    empty = page.evaluate(
        """[...document.querySelectorAll("figure.chart")].filter((chart) => !chart.querySelector(".main-svg"))
           .map((chart) => chart.dataset.figure)"""
    )
    assert empty == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    overlapping = page.evaluate(
        """[...document.querySelectorAll(".plot")]
           .filter((plot) => plot.querySelector(".main-svg")?.clientWidth > plot.clientWidth + 1).length"""
    )
    assert overlapping == 0
    assert page.evaluate("document.documentElement.dataset.theme") == scheme


def test_hover_tells_the_numbers_and_a_click_the_command(opened):
    page = opened()
    page.locator("#fig14").scroll_into_view_if_needed()
    plot = page.locator("#fig14 .plot").first
    plot.locator(".scatterlayer .points path").first.wait_for()
    point = plot.locator(".scatterlayer .trace").last.locator(".points path").first
    point.hover(force=True)
    page.locator(".hoverlayer .hovertext").first.wait_for()
    text = page.locator(".hoverlayer .hovertext").first.text_content()
    assert "speedup over xPU" in text
    assert "waits for: external memory" in text
    box = point.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    command = page.text_content("#fig14 [data-command]")
    assert re.fullmatch(
        r"elmoe simulate --model qwen3-30b-a3b --system (elmoe-3d|hb-xpu) --hb-gb 8 --scheme none --mode ar "
        r"--batch \d+ --context 1024 --workload mt-bench --json", command)  # fmt: skip
    assert "rows[0].speedup_vs_xpu" in page.text_content("#fig14 [data-paths]")


def test_filters_and_choices_leave_what_was_asked_for(opened):
    page = opened()
    page.locator("#fig14").scroll_into_view_if_needed()
    page.locator("#fig14 .panel").first.wait_for()
    assert page.locator("#fig14 figure").first.locator(".panel").count() == 4
    page.select_option("[data-filter=model]", "gpt-oss-20b")
    assert page.locator("#fig14 figure").first.locator(".panel h5").all_text_contents() == ["gpt-oss-20b"]
    page.select_option("[data-filter=system]", "elmoe-3d")
    assert page.locator("#fig14 figure").first.locator(".scatterlayer .trace").count() == 1
    page.select_option("[data-filter=model]", "")
    page.locator("#fig14 .controls select").first.select_option("4")
    assert page.locator("#fig14 figure").first.locator(".panel").count() == 4
    page.select_option("[data-filter=system]", "")
    page.locator("#fig14 figure").first.locator(".legend button").first.click()
    assert page.locator("#fig14 figure").first.locator(".panel").first.locator(".scatterlayer .trace").count() == 5


def test_the_theme_changes_by_hand_and_csv_is_saved(opened):
    page = opened()
    before = page.evaluate("getComputedStyle(document.body.parentElement).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body.parentElement).backgroundColor") != before
    page.locator("#fig13 details summary").click()
    with page.expect_download() as download:
        page.click("[data-csv=fig13]")
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("acceptance,")
    assert len(lines) == 1 + 160


def test_it_prints(opened):
    page = opened(scheme="dark")
    data = page.pdf(format="A4")
    assert data.startswith(b"%PDF")
    assert page.evaluate("views.every((view) => view.drawn)"), "what was not in view is drawn for the printer"
