"""Figures as PNG and SVG for papers and slides: what the page shows first, drawn with Matplotlib, without a browser."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from elmoe.report.figure import Chart, Figure, Row, chosen, suited
from elmoe.report.labels import FACETS, LIGHT, color_numbers, column_name, name_of
from elmoe.trace.atomic import atomic_file

SUFFIXES = ("png", "svg")
MOST_COLUMNS = 4
PANEL_INCHES = (3.6, 2.9)
LABEL_WIDTH = 14
"""Characters; names beside bars are broken at twice as many."""
STYLES = ("-", "--", ":", "-.")
SYMBOLS = ("o", "s", "^", "D")


@dataclass
class Pen:
    """How one chart is drawn, the same in all of its panels."""

    chart: Chart
    tones: dict[Any, str]
    """By value of the chart's `color`."""
    dashes: dict[Any, int]
    """Line style or symbol by value of `dash`."""
    outline: Sequence[Row]
    handles: dict[str, Any] = field(default_factory=dict)
    """What the legend names."""

    def tone(self, value: Any) -> str:
        """The colour of a series."""
        return self.tones.get(value, LIGHT[0])

    def dash(self, value: Any) -> int:
        """The line style or symbol of a series."""
        return self.dashes.get(value, 0)


def available() -> bool:
    """Whether Matplotlib is there."""
    return find_spec("matplotlib") is not None


def write_images(
    folder: Path, figure: Figure, rows: Sequence[Row], suffixes: Sequence[str], input_hash: str, fresh: bool = False
) -> list[Path]:
    """``fig14.svg``, and ``fig3-2.svg`` for a second chart. The same rows give the same SVG.

    Nothing is drawn where the folder has images of this hash: they are noted in ``fig14.json``.
    """
    note = folder / f"{figure.id}.json"
    about = {"input_hash": input_hash, "suffixes": sorted(suffixes)}
    kept = _kept(note, about)
    if kept and not fresh:
        return kept
    written = _written(folder, figure, rows, suffixes)
    document = about | {"figure": figure.id, "title": figure.title, "files": [path.name for path in written]}
    with atomic_file(note) as file:
        file.write(json.dumps(document, indent=1).encode())
    return written


def _kept(note: Path, about: dict[str, Any]) -> list[Path]:
    """The images that a note speaks of, if they are of these inputs and there."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        paths = [note.parent / name for name in found["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    same = all(found.get(name) == value for name, value in about.items())
    return paths if same and all(path.is_file() for path in paths) else []


def _written(folder: Path, figure: Figure, rows: Sequence[Row], suffixes: Sequence[str]) -> list[Path]:
    import matplotlib as mpl

    mpl.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    settings: Any = {"svg.hashsalt": "elmoe", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(settings):
        for number, chart in enumerate(figure.charts, start=1):
            drawn = _drawn(figure, chart, rows)
            if drawn is None:
                continue
            for suffix in suffixes:
                name = figure.id if number == 1 else f"{figure.id}-{number}"
                path = folder / f"{name}.{suffix}"
                data = io.BytesIO()
                dated: dict[str, Any] = {"Date": None} if suffix == "svg" else {"Software": None}
                drawn.savefig(data, format=suffix, dpi=160, metadata=dated)
                with atomic_file(path) as file:
                    file.write(data.getvalue())
                written.append(path)
    return written


def _drawn(figure: Figure, chart: Chart, rows: Sequence[Row]) -> Any:
    """The chart as a Matplotlib figure; None where no row belongs to it."""
    from matplotlib.figure import Figure as Canvas

    of_chart = chosen(rows, **chart.where)
    picked = _present([*of_chart, *(chosen(rows, **chart.outline) if chart.outline else [])], chart.pick)
    shown = suited(of_chart, **picked)
    if not shown:
        return None
    facets = list(dict.fromkeys(row[chart.facet] for row in shown)) if chart.facet else [None]
    columns = min(len(facets), MOST_COLUMNS)
    lines = -(-len(facets) // columns)
    wide = 1.9 if len(facets) == 1 else 1.0
    width, height = PANEL_INCHES[0] * columns * wide, PANEL_INCHES[1] * lines + 0.9
    canvas = Canvas(figsize=(width, height), layout="constrained")
    axes = np.atleast_1d(
        canvas.subplots(lines, columns, squeeze=False, sharey=not (chart.own_scale or chart.kind == "tornado"))
    ).ravel()
    pen = Pen(
        chart,
        {value: LIGHT[number] for value, number in color_numbers(_values(of_chart, chart.color)).items()},
        {value: number % len(STYLES) for number, value in enumerate(_values(of_chart, chart.dash))},
        suited(chosen(rows, **chart.outline), **picked) if chart.outline else [],
    )
    for axis in axes[len(facets) :]:
        axis.set_visible(False)
    for axis, facet in zip(axes, facets, strict=False):
        part = chosen(shown, **{chart.facet: facet}) if chart.facet else shown
        DRAW[chart.kind](axis, pen, part)
        axis.set_title("" if facet is None else name_of(facet, chart.facet, FACETS), fontsize=9)
    for axis in axes[: len(facets)]:  # once all have said what range they need
        _frame(axis, chart, shown)
    noted = ", ".join(f"{column_name(key)} {name_of(value)}" for key, value in picked.items())
    title = f"{figure.id}: {figure.title}\n{chart.title}{f' ({noted})' if noted else ''}"
    canvas.suptitle(title, fontsize=10, x=0.01, ha="left")
    if len(pen.handles) > 1:
        legend = min(len(pen.handles), 2 * columns + 1)
        canvas.legend(pen.handles.values(), pen.handles.keys(), loc="outside lower center", ncols=legend, frameon=False)
    return canvas


def _present(rows: Sequence[Row], pick: Row) -> dict[str, Any]:
    """The first choices; where one is not there (another model was measured) the first value that is."""
    found = dict(pick)
    for column, value in pick.items():
        values = [row[column] for row in rows if row.get(column) is not None]
        if values and value not in values:
            found[column] = values[0]
    return found


def _frame(axis: Any, chart: Chart, rows: Sequence[Row]) -> None:
    labels = (chart.y_title, chart.x_title) if chart.lying else (chart.x_title, chart.y_title)
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    if chart.kind == "heat":
        return
    axis.grid(True, alpha=0.25, linewidth=0.5)
    if chart.log_x:
        axis.set_xscale("log", base=2 if chart.x in ("batch", "context") else 10)
        if chart.x in ("batch", "context"):
            ticks = sorted({row[chart.x] for row in rows})
            axis.set_xticks(ticks, [short_number(tick) for tick in ticks])
            axis.minorticks_off()
        else:
            _log_ticks(axis.xaxis)
    if chart.log_y:
        axis.set_yscale("log")
        _log_ticks(axis.yaxis)
    elif chart.kind in ("line", "bars", "stack") and not chart.lying:
        axis.set_ylim(bottom=0)
    if chart.y == "bytes":
        axis.yaxis.set_major_formatter(lambda value, _: f"{value / 1e9:g} GB")


def _log_ticks(axis: Any) -> None:
    """1, 2, 5, 10, in plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def short_number(value: float) -> str:
    """1024 -> 1k."""
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _line(axis: Any, pen: Pen, rows: Sequence[Row]) -> None:
    chart = pen.chart
    for color, dash, part in _series(chart, rows):
        ordered = sorted(part, key=lambda row: row[chart.x])
        xs, ys = [row[chart.x] for row in ordered], [row[chart.y] for row in ordered]
        tone = pen.tone(color)
        (drawn,) = axis.plot(xs, ys, STYLES[pen.dash(dash)], color=tone, marker="o", markersize=3, linewidth=1.4)
        pen.handles.setdefault(_label(chart, color, dash), drawn)


def _bars(axis: Any, pen: Pen, rows: Sequence[Row]) -> None:
    chart = pen.chart
    places = {value: i for i, value in enumerate(_values(rows, chart.x))}
    groups = list(_series(chart, rows))
    width = 0.8 / len(groups)
    for number, (color, dash, part) in enumerate(groups):
        at = [places[row[chart.x]] + (number - (len(groups) - 1) / 2) * width for row in part]
        draw = axis.barh if chart.lying else axis.bar
        drawn = draw(at, [row[chart.y] for row in part], width, color=pen.tone(color))
        pen.handles.setdefault(_label(chart, color, dash), drawn)
    if chart.lying:
        axis.set_yticks(range(len(places)), [fill(name_of(value), 2 * LABEL_WIDTH) for value in places])
        axis.invert_yaxis()
    else:
        _ticks(axis, list(places))


def _stack(axis: Any, pen: Pen, rows: Sequence[Row]) -> None:
    chart = pen.chart
    places = {value: i for i, value in enumerate(_values(rows, chart.x))}
    below = np.zeros(len(places))
    for color, dash, part in _series(chart, rows):
        heights = np.zeros(len(places))
        for row in part:
            heights[places[row[chart.x]]] += row[chart.y]
        drawn = axis.bar(range(len(places)), heights, 0.75, bottom=below, color=pen.tone(color))
        below += heights
        pen.handles.setdefault(_label(chart, color, dash), drawn)
    _ticks(axis, list(places))


def _ticks(axis: Any, values: list[Any]) -> None:
    names = [name_of(value) for value in values]
    turned = max(map(len, names)) * len(names) > 30
    axis.set_xticks(range(len(names)), names, rotation=30 if turned else 0, ha="right" if turned else "center")


def _heat(axis: Any, pen: Pen, rows: Sequence[Row]) -> None:
    chart = pen.chart
    xs, ys = sorted({row[chart.x] for row in rows}), sorted({row[chart.y] for row in rows})
    grid = np.full((len(ys), len(xs)), np.nan)
    for row in rows:
        grid[ys.index(row[chart.y]), xs.index(row[chart.x])] = row[chart.z]
    edges = (np.arange(len(xs) + 1) - 0.5) if chart.category_x else _edges(xs)
    centres = np.arange(len(xs)) if chart.category_x else xs
    if chart.middle is None:
        axis.pcolormesh(edges, _edges(ys), grid, cmap="viridis", vmin=0, vmax=1)
    else:
        axis.pcolormesh(edges, _edges(ys), np.log2(grid / chart.middle), cmap="PuOr", vmin=-2, vmax=2)
    for (j, i), value in np.ndenumerate(grid):
        if np.isfinite(value):
            dark = value < 0.6 if chart.middle is None else not 0.4 < value < 2.5
            tone = "white" if dark else "black"
            axis.text(centres[i], ys[j], f"{value:.2f}", ha="center", va="center", fontsize=6, color=tone)
    axis.set_xticks(centres, [f"{x:g}" for x in xs], fontsize=7)
    lines = pen.outline
    if lines:
        colors = color_numbers(_values(lines, chart.outline_color))
        for value in _values(lines, chart.outline_color):
            part = chosen(lines, **{chart.outline_color: value})
            points = [(row[chart.outline_x], row[chart.y]) for row in part]
            (drawn,) = axis.plot(*zip(*points, strict=True), color=LIGHT[colors[value]], linewidth=2)
            pen.handles.setdefault(name_of(value), drawn)
        axis.set_xlim(edges[0], edges[-1])


def _edges(centres: Sequence[float]) -> Any:
    middles = [(a + b) / 2 for a, b in pairwise(centres)]
    return np.array([2 * centres[0] - middles[0], *middles, 2 * centres[-1] - middles[-1]])


def _points(axis: Any, pen: Pen, rows: Sequence[Row]) -> None:
    chart = pen.chart
    for color, dash, part in _series(chart, rows):
        known = [row for row in part if row[chart.x] is not None]
        xs, ys = [row[chart.x] for row in known], [row[chart.y] for row in known]
        edges = ["black" if chart.mark and row[chart.mark] else "none" for row in known]
        tone = pen.tone(color)
        drawn = axis.scatter(xs, ys, s=26, c=tone, marker=SYMBOLS[pen.dash(dash)], edgecolors=edges, linewidths=1.2)
        pen.handles.setdefault(_label(chart, color, dash), drawn)
    if chart.parity:
        ends = np.array([min(row[chart.x] for row in rows) * 0.8, max(row[chart.x] for row in rows) * 1.2])
        axis.plot(ends, ends, color="grey", linewidth=0.8)
        axis.fill_between(ends, ends * 0.85, ends * 1.15, color="grey", alpha=0.15, linewidth=0)


def _tornado(axis: Any, pen: Pen, rows: Sequence[Row]) -> None:
    chart = pen.chart
    base = next(row[chart.x] for row in rows if row[chart.color] == "base")
    names = _spans(chart, rows)
    for row in rows:
        if row[chart.color] != "base":
            tone, at = pen.tone(row[chart.color]), names.index(row[chart.y])
            drawn = axis.barh(at, row[chart.x] - base, left=base, height=0.6, color=tone, alpha=0.85)
            pen.handles.setdefault(name_of(row[chart.color]), drawn)
    axis.axvline(base, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), names, fontsize=7)


def _spans(chart: Chart, rows: Sequence[Row]) -> list[str]:
    """The parameters, the one that matters most last (on top)."""
    reach: dict[str, list[float]] = {}
    for row in rows:
        if row[chart.color] != "base":
            reach.setdefault(row[chart.y], []).append(row[chart.x])
    return sorted(reach, key=lambda name: max(reach[name]) - min(reach[name]))


def _series(chart: Chart, rows: Sequence[Row]) -> list[tuple[Any, Any, list[Row]]]:
    """(colour value, dash value, rows) of every series."""
    found = []
    for color in _values(rows, chart.color) if chart.color else [None]:
        of_color = chosen(rows, **{chart.color: color}) if chart.color else list(rows)
        for dash in _values(of_color, chart.dash) if chart.dash else [None]:
            found.append((color, dash, chosen(of_color, **{chart.dash: dash}) if chart.dash else of_color))
    return found


def _values(rows: Sequence[Row], column: str) -> list[Any]:
    return list(dict.fromkeys(row[column] for row in rows)) if column else []


def _label(chart: Chart, color: Any, dash: Any) -> str:
    parts = [(color, chart.color), (dash, chart.dash)]
    return ", ".join(name_of(value, column) for value, column in parts if value is not None) or chart.y_title


DRAW = {"line": _line, "bars": _bars, "stack": _stack, "heat": _heat, "points": _points, "tornado": _tornado}
