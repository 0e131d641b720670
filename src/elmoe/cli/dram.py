"""`elmoe dram`: the DRAM timing model alone, on request streams from a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer

from elmoe.cli.console import Json, emit_json, out, table
from elmoe.sim.dram_cases import run_cases


def dram(
    cases: Annotated[
        Path, typer.Option(help="CSV of request streams; columns in docs/simulator.md.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Bandwidth of request streams on LPDDR5 channels or HB banks, as percent of peak."""
    found = run_cases(cases)
    if json:
        emit_json({"rows": found})
        return
    with cases.open(encoding="utf-8-sig", newline="") as file:
        given = list(csv.DictReader(file))
    lines = [
        (
            row.get("device") or "",
            row["pattern"],
            row["mapping"],
            row.get("refresh") or "none",
            row.get("queue") or "",
            f"{result['gb_per_s']:.2f}",
            f"{result['pct_peak']:.2f}",
            _difference(row.get("pct_peak"), result["pct_peak"]),
        )
        for row, result in zip(given, found, strict=True)
    ]
    columns = ("device", "pattern", "mapping", "refresh", "queue", "GB/s", "% of peak", "minus the file's")
    out.print(table("DRAM streams", columns, lines))


def _difference(quoted: str | None, simulated: float) -> str:
    """In percentage points, where the file has a result to compare with."""
    try:
        return f"{simulated - float(quoted or ''):+.2f}"
    except ValueError:
        return ""
