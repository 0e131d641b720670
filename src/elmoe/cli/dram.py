"""`elmoe dram`: the DRAM timing model alone, on request streams from a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from elmoe.cli.console import Json, emit_json, out, table
from elmoe.sim.dram_cases import Case, read_cases, simulate


def dram(
    cases: Annotated[
        Path, typer.Option(help="CSV of request streams; columns in docs/simulator.md.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Bandwidth of request streams on LPDDR5 channels or HB banks, as percent of peak."""
    given = read_cases(cases)
    found = [simulate(case) for case in given]
    if json:
        emit_json({"rows": found})
        return
    lines = [_line(case, result) for case, result in zip(given, found, strict=True)]
    columns = ("device", "pattern", "mapping", "refresh", "queue", "GB/s", "% of peak", "minus the file's")
    out.print(table("DRAM streams", columns, lines))


def _line(case: Case, result: dict[str, float]) -> tuple[object, ...]:
    return (
        escape(case.given.get("device", "")),
        case.pattern,
        case.controller.mapping,
        case.controller.refresh,
        case.controller.queue,
        f"{result['gb_per_s']:.2f}",
        f"{result['pct_peak']:.2f}",
        _difference(case.given.get("pct_peak"), result["pct_peak"]),
    )


def _difference(quoted: str | None, simulated: float) -> str:
    """In percentage points, where the file has a result to compare with."""
    try:
        return f"{simulated - float(quoted or ''):+.2f}"
    except ValueError:
        return ""
