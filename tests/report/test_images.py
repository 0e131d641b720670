"""Every kind of chart as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

import pytest
from figure_sources import sources

from elmoe.report.catalogue import CATALOGUE
from elmoe.report.images import write_images

pytest.importorskip("matplotlib")

KINDS = {"fig3": "heat", "fig5": "line", "fig8": "stack", "fig12": "bars", "fig17": "tornado", "table3": "points"}


@pytest.mark.parametrize("identity", KINDS)
def test_each_kind_is_drawn_and_kept(identity: str, tmp_path: Path) -> None:
    made = next(made for made in CATALOGUE if made.figure.id == identity)
    rows = made.build(sources(tmp_path))
    first = write_images(tmp_path, made.figure, rows, ("svg", "png"), "abc")
    assert len(first) == 2 * len(made.figure.charts)
    assert made.figure.charts[0].kind == KINDS[identity]
    assert first[0].read_text(encoding="utf-8").startswith("<?xml")
    assert first[1].read_bytes().startswith(b"\x89PNG")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in first}
    assert write_images(tmp_path, made.figure, rows, ("svg", "png"), "abc") == first
    assert {path: path.stat().st_mtime_ns for path in first} == {path: time for path, (time, _) in before.items()}
    again = write_images(tmp_path, made.figure, rows, ("svg",), "other inputs")
    assert again[0].read_bytes() == before[first[0]][1], "the same rows give the same SVG"
    first[0].unlink()
    assert write_images(tmp_path, made.figure, rows, ("svg",), "other inputs")[0].is_file()
