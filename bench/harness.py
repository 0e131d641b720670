"""What every benchmark writes beside its numbers, and how its tables get into the docs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import elmoe
from elmoe.backend.cpu.backend import read_bandwidth

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def provenance(settings: dict[str, Any]) -> dict[str, Any]:
    """Where and how a result was made: commit, host, memory bandwidth at that time, settings."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip() or "unknown",
        "elmoe": elmoe.__version__,
        "host": {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "read_gb_per_s": round(read_bandwidth(), 1),
        "date": time.strftime("%Y-%m-%d"),
        "settings": settings,
    }


def write_result(name: str, document: dict[str, Any]) -> Path:
    """bench/results/NAME.json, replaced whole."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def replace_block(document: Path, name: str, text: str) -> None:
    """Put `text` between the lines `<!-- NAME -->` and `<!-- /NAME -->` of a Markdown file."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    whole = document.read_text(encoding="utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1:
        raise SystemExit(f"{document}: exactly one block {begin} ... {end} is needed")
    head, rest = whole.split(begin)
    tail = rest.split(end)[1]
    document.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}", encoding="utf-8")


def markdown_table(columns: list[str], rows: list[list[object]]) -> str:
    """A Markdown table, first column left, others right."""
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
