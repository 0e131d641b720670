"""The page that `elmoe reproduce` writes: all figures, interactive, in one HTML file without server and network.

The same report gives the same bytes. Charts are drawn in the browser by plotly.js from the rows that the page carries
(`templates/reproduce.js`); this module knows nothing about how rows came about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from elmoe.errors import ConfigError
from elmoe.report import labels
from elmoe.report.deviations import LIMIT, Deviation
from elmoe.report.figure import Chart, Figure, Row, chosen
from elmoe.report.methods import Assumption
from elmoe.report.store import version
from elmoe.report.texts import definitions
from elmoe.sim.headline import QUOTED, QUOTED_MT_BENCH, Gain, Headline
from elmoe.trace.atomic import atomic_file, storage_errors

DIGITS = 6
"""Significant digits of the page's numbers; Parquet and CSV have them all."""


@dataclass(frozen=True)
class Drawn:
    """A figure with its rows."""

    figure: Figure
    rows: Sequence[Row]
    input_hash: str
    facts: Mapping[str, float]
    """What `Figure.says` names in braces."""

    @property
    def says(self) -> Markup:
        """With the numbers in."""
        return Markup(self.figure.says.format(**self.facts))

    @property
    def example(self) -> str:
        """A command for the first number that a reader sees."""
        chart = self.figure.charts[0]
        seen = chosen(self.rows, **(dict(chart.where) | dict(chart.pick))) or self.rows
        command = self.figure.command(seen[0])
        return command.text(seen[0]) if command else ""


@dataclass(frozen=True)
class Reproduction:
    """All that the page says."""

    figures: Sequence[Drawn]
    left_out: Mapping[str, str]
    """Figure -> why."""
    headlines: Sequence[Headline]
    """One per HB size, the largest last; empty where nobody asked."""
    deviations: Sequence[Deviation]
    assumptions: Sequence[tuple[str, Sequence[Assumption]]]
    command: str
    """That made the report."""


def write_page(path: Path, report: Reproduction) -> None:
    """Write it whole or not at all. ConfigError where plotly is not installed."""
    html = render_page(report).encode()
    with atomic_file(path) as file, storage_errors(path):
        file.write(html)


def plotly_js() -> str:
    """The plotting library, as the plotly package ships it. ConfigError without one."""
    if find_spec("plotly") is None:
        raise ConfigError("the page's charts need plotly; pip install 'elmoe[report]'")
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def render_page(report: Reproduction) -> str:
    """The page as text."""
    templates = files("elmoe.report") / "templates"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number_text, "share": lambda share: f"{share:+.0%}", "safe_html": Markup}
    source = (templates / "reproduce.html.j2").read_text(encoding="utf-8")
    sections = list(dict.fromkeys(drawn.figure.section for drawn in report.figures))
    rows = [row for drawn in report.figures for row in drawn.rows]
    return environment.from_string(source).render(
        report=report,
        version=version(),
        limit=LIMIT,
        sections=[(name, [one for one in report.figures if one.figure.section == name]) for name in sections],
        definitions=definitions(),
        table3=_table3(report.figures),
        headline=_headline_rows(report.headlines),
        filters={name: list(_values(rows, name)) for name in ("model", "workload", "system")},
        style=Markup((templates / "reproduce.css").read_text(encoding="utf-8")),
        script=Markup((templates / "reproduce.js").read_text(encoding="utf-8")),
        plotly=Markup(plotly_js()),
        data=Markup(_json(_data(report.figures))),
    )


def number_text(value: Any) -> str:
    """Three digits, and no more zeros than needed."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not value or not math.isfinite(value):
        return "0" if value == 0 else ""
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _values(rows: Sequence[Row], column: str) -> dict[str, None]:
    return dict.fromkeys(row[column] for row in rows if row.get(column) is not None)


def _json(value: Any) -> str:
    """For a script element: no end tag can hide in it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")


def _data(figures: Sequence[Drawn]) -> dict[str, Any]:
    return {
        "figures": {
            drawn.figure.id: {
                "charts": [_chart(chart) for chart in drawn.figure.charts],
                "commands": [command.as_dict() for command in drawn.figure.commands],
                "count": len(drawn.rows),
                "columns": {name: _column([row.get(name) for row in drawn.rows]) for name in drawn.figure.columns},
            }
            for drawn in figures
        },
        "labels": {
            "columns": labels.COLUMNS,
            "values": labels.VALUES,
            "facets": labels.FACETS,
            "series": labels.SERIES,
            "colors": labels.COLORS,
            "light": labels.LIGHT,
            "dark": labels.DARK,
        },
    }


def _chart(chart: Chart) -> dict[str, Any]:
    return {name: value for name, value in vars(chart).items() if value not in ("", False, None, (), {})}


def _column(values: Sequence[Any]) -> Any:
    """Numbers, rounded; texts as a dictionary and the numbers of its entries; one value for all as itself."""
    rounded = [float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for value in values]
    different = list(dict.fromkeys(rounded))
    if len(different) <= 1:
        return {"all": different[0] if different else None}
    if any(isinstance(value, str) for value in different):
        numbers = {value: i for i, value in enumerate(different)}
        return {"texts": different, "at": [numbers[value] for value in rounded]}
    return rounded


# --- tables ---


def _headline_rows(found: Sequence[Headline]) -> list[dict[str, Any]]:
    """Quoted and simulated averages, in columns of their own."""
    if not found:
        return []
    largest = found[-1]
    rows = []
    for name in (
        "speedup_vs_xpu",
        "speedup_vs_best_prior",
        "energy_vs_xpu",
        "energy_vs_best_prior",
        "speedup_vs_hb_xpu",
    ):
        gain: Gain = getattr(largest, name)
        quoted = QUOTED.get(name)
        rows.append(
            {
                "name": name.replace("_vs_", " over ").replace("_", " ") + f", {largest.hb_gb:g} GB",
                "quoted": "" if quoted is None else f"{quoted.mean:g} (max {quoted.largest:g})",
                "simulated": f"{gain.mean:.2f} (max {gain.largest:.1f})",
            }
        )
    for each in found:
        quoted_mean = QUOTED_MT_BENCH.get(each.hb_gb)
        rows.append(
            {
                "name": f"speedup over xpu, MT-Bench, best mode, {each.hb_gb:g} GB",
                "quoted": "" if quoted_mean is None else f"{quoted_mean:g}",
                "simulated": f"{each.mt_bench_speedup:.2f}",
            }
        )
    return rows


@dataclass(frozen=True)
class TableRow:
    """One model and scheme of table 3 at one HB size: cells by batch, plain and speculative."""

    model: str
    scheme: str
    hb_gb: float
    cells: list[dict[str, Any]]


def _table3(figures: Sequence[Drawn]) -> dict[str, Any] | None:
    """Table 3 as the page prints it; None where it was not asked for."""
    drawn = next((one for one in figures if one.figure.id == "table3"), None)
    if drawn is None:
        return None
    batches = sorted(_values(drawn.rows, "batch"))
    keys = [("ar", batch) for batch in batches] + [("sd", batch) for batch in batches]
    tables = []
    for hb_gb in sorted(_values(drawn.rows, "hb_gb")):
        lines = []
        here = chosen(drawn.rows, hb_gb=hb_gb)
        for model in _values(here, "model"):
            for scheme in _values(here, "scheme"):
                cells = {(row["mode"], row["batch"]): dict(row) for row in chosen(here, model=model, scheme=scheme)}
                lines.append(
                    TableRow(model, labels.name_of(scheme), float(hb_gb), [cells.get(key, {}) for key in keys])
                )
        tables.append((float(hb_gb), any(row["quoted"] is not None for row in here), lines))
    return {"batches": batches, "tables": tables}
