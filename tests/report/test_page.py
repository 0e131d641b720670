from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from elmoe.errors import StorageError
from elmoe.report.page import Answer, AnswerPiece, DemoReport, render_demo_page, write_demo_page
from elmoe.trace.schema import Acceptance, RunStats

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """What a browser makes of the page, strictly: every element is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.by_class: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [values[name] or "" for name in ("href", "src", "srcset", "action") if name in values]
        if tag not in VOID:
            name = values.get("class") or ""
            self.open.append((tag, name))
            self.by_class.setdefault(name, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not any(tag == "style" for tag, _ in self.open):
            self.text += data
        for name in {name for _, name in self.open}:
            self.by_class[name][-1] += data


def answering(demo: DemoReport, prompt: str, *pieces: tuple[str, bool]) -> Page:
    answer = Answer(prompt, tuple(AnswerPiece(*piece) for piece in pieces), "stop", Acceptance().as_dict())
    return Page(render_demo_page(replace(demo, answers=(answer,))))


# --- the file ---


def test_well_formed_and_self_contained(demo: DemoReport) -> None:
    html = render_demo_page(demo)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>\n")
    assert "script" not in page.tags
    assert not page.links
    assert not re.search(r"(?:https?:)?//\w|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert 'name="viewport"' in html


def test_same_input_same_bytes(demo: DemoReport, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_demo_page(tmp_path / name, demo)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_bytes() == render_demo_page(demo).encode()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_place_that_cannot_be_written(demo: DemoReport, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no/a\.html cannot be written: No such file or directory$"):
        write_demo_page(tmp_path / "no" / "a.html", demo)


def test_an_error_leaves_the_old_page(demo: DemoReport, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("old")
    with pytest.raises(KeyError):
        write_demo_page(tmp_path / "a.html", replace(demo, sd_stats={}))
    assert (tmp_path / "a.html").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]


# --- the answers ---


def test_markup_in_texts_is_text(demo: DemoReport) -> None:
    evil = "<script>alert('1')</script> &amp; </p> {{ demo }} \"quoted\""
    page = answering(replace(demo, model=evil, machine=evil, settings={evil: evil}), evil, (evil, True))
    assert "script" not in page.tags
    assert page.by_class["prompt"] == page.by_class["answer"] == page.by_class["drafted"][1:] == [evil]
    assert page.text.count(evil) >= 6


@pytest.mark.parametrize(
    "text",
    [
        "\n",
        "\n\n  two\n    four\n",
        "  both ends  ",
        "\ttab\t\ttab",
        "a  b",
        "é 漢字 🙂 \u200d \u202e",
        "\u2028",
        "a\u00a0b",
    ],
)
def test_every_character_survives(demo: DemoReport, text: str) -> None:
    page = answering(demo, text, (text, True), (text, False), ("", True), (text, True))
    assert page.by_class["prompt"] == [text]
    assert page.by_class["answer"] == [text * 3]


def test_carriage_returns_and_control_characters(demo: DemoReport) -> None:
    """HTML turns CR into LF and forbids the other controls: the first is escaped, the others are shown."""
    answer = Answer("p", (AnswerPiece("a\r\nb\x00\x1b\x7f", True),), "stop", Acceptance().as_dict())
    html = render_demo_page(replace(demo, answers=(answer,)))
    assert "a&#13;\nb␀␛␡</span>" in html


def test_a_lone_surrogate_can_be_written(demo: DemoReport, tmp_path: Path) -> None:
    """Command lines carry bytes that are not UTF-8 as lone surrogates."""
    write_demo_page(tmp_path / "a.html", replace(demo, machine="a\udcffb"))
    assert "<dd>a?b</dd>" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_accepted_tokens_are_marked(demo: DemoReport) -> None:
    page = answering(demo, "p", ("one", False), (" two", True), (" three", True), (" four", False))
    assert page.by_class["drafted"][1:] == [" two", " three"]  # the first is the legend
    assert page.by_class["answer"] == ["one two three four"]


# --- the numbers ---


def test_headline_numbers(demo: DemoReport) -> None:
    page = Page(render_demo_page(demo))
    assert page.by_class["value"] == ["yes", "2.50", "83.3 %", "1.00×"]
    assert "in 2 passes of the model instead of 7" in page.text
    assert "14 tokens of 2 answers compared" in page.text
    assert "10 of 12 tested draft positions held" in page.text


def test_a_difference_is_not_hidden(demo: DemoReport) -> None:
    page = Page(render_demo_page(replace(demo, lossless=False)))
    assert page.by_class["value"][0] == "NO"
    assert page.by_class["tile bad"]
    assert "The two runs differ: this must not happen" in page.text
    assert "same text, token for token" not in page.text


def test_timings_of_the_reference_backend_are_called_what_they_are(demo: DemoReport) -> None:
    sentence = (
        "The timings come from the NumPy reference backend. It shows that the method is correct, not how fast it is"
    )
    assert sentence in Page(render_demo_page(demo)).text
    other = Page(render_demo_page(replace(demo, backend="cpu")))
    assert "NumPy" not in other.text
    assert "not made for speed" not in other.text
    assert "The timings were taken on the cpu backend" in other.text


def test_definitions_are_those_of_the_schema(demo: DemoReport) -> None:
    text = Page(render_demo_page(demo)).text
    for name in ("acceptance_rate", "level_acceptance", "mean_accepted_length"):
        definition = getattr(Acceptance, name).__doc__.replace("``", "")
        assert re.search(rf"{name} = [\d.]+\s*{re.escape(definition)}", text)
    assert "accepted 10, tested 12, levels 16, drafted 32, verify_steps 4, ar_steps 0, emitted 14" in text


def test_the_trace_on_simulated_accelerators(demo: DemoReport) -> None:
    page = Page(render_demo_page(demo))
    assert page.by_class["number"][4:] == ["10.0 µs", "2.5 µs"]
    assert "cut to 1.5 MB" in page.text
    assert "elmoe-3d, elastic-SD" in page.text
    assert "external memory" in page.text


def test_bytes_per_token(demo: DemoReport) -> None:
    """2.8 MB over 14 tokens plainly, 1.4 MB with SD; and the table of passes, without kinds that did not occur."""
    page = Page(render_demo_page(demo))
    assert page.by_class["number"][:4] == ["200 kB", "100 kB", "100 B", "150 B"]
    assert re.findall(r"<td>([a-z ]+)</td>", render_demo_page(demo))[:3] == ["plain step", "draft", "verify"]
    assert 'class="slow ar" style="width:100.00%"' in render_demo_page(demo)


def test_settings_are_all_there(demo: DemoReport) -> None:
    html = render_demo_page(demo)
    for name, value in (("mode", "sd"), ("draft.bits", "4"), ("temperature", "0.0"), ("machine", "two cores")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in html


def test_heat_map_is_sorted_by_hotness(demo: DemoReport) -> None:
    titles = re.findall(r'title="layer (\d+), expert (\d+): ([\d.]+) % of choices, in the pool', render_demo_page(demo))
    assert [(int(layer), int(expert)) for layer, expert, _ in titles] == [
        *[(0, 1), (0, 2), (0, 3), (0, 0)],
        *[(2, 0), (2, 1), (2, 2), (2, 3)],
    ]
    assert titles[0][2] == "40.0"
    assert "--h:1.000;--r:1.000" in render_demo_page(demo)
    assert "62.5 % of the choices" in render_demo_page(demo)


def test_a_run_in_which_nothing_happened(demo: DemoReport) -> None:
    empty = RunStats().as_dict()
    pool = replace(demo.pool, hotness=np.zeros((2, 4)), residency=np.zeros((2, 4)), hit_share=0.0)
    Page(render_demo_page(replace(demo, ar_stats=empty, sd_stats=empty, answers=(), pool=pool)))
