"""Rows on disk in three formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from elmoe.errors import ConfigError, StorageError
from elmoe.sim.write_rows import flatten, write_rows

ROWS: list[dict[str, Any]] = [
    {"name": "a", "ms": 1.5, "phases": {"draft": {"ms": 1.0, "count": 8}, "verify": {"ms": 0.5}}, "rate": 0.5},
    {"name": "b", "ms": 0.1 + 0.2, "phases": {"decode": {"ms": 0.25}}, "rate": None},
]
COLUMNS = ["name", "ms", "phases.draft.ms", "phases.draft.count", "phases.verify.ms", "rate", "phases.decode.ms"]
CONFIG = {"tree": {"depth": 8}}


def test_flatten() -> None:
    assert flatten(ROWS[1]) == {"name": "b", "ms": 0.1 + 0.2, "phases.decode.ms": 0.25, "rate": None}
    assert flatten({}) == {}


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_rows(path, ROWS, CONFIG)
    assert json.loads(path.read_text(encoding="utf-8")) == {"rows": ROWS, "config": CONFIG}


def test_csv(tmp_path: Path) -> None:
    """One column per number of any row; cells of others are empty; numbers as exact as they were."""
    path = tmp_path / "r.csv"
    write_rows(path, ROWS, CONFIG)
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == COLUMNS
    assert (found[0]["phases.draft.count"], found[1]["phases.draft.count"], found[1]["rate"]) == ("8", "", "")
    assert float(found[1]["ms"]) == 0.1 + 0.2


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write_rows(path, ROWS, CONFIG)
    table = pq.read_table(path)
    assert table.column_names == COLUMNS
    assert table.to_pylist()[1] == {name: flatten(ROWS[1]).get(name) for name in COLUMNS}
    assert json.loads(table.schema.metadata[b"elmoe"]) == CONFIG


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_same_rows_same_bytes(tmp_path: Path, suffix: str) -> None:
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    write_rows(one, ROWS, CONFIG)
    write_rows(other, ROWS, CONFIG)
    assert one.read_bytes() == other.read_bytes()


def test_nan_is_a_bug_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(tmp_path / "r.json", [{"ms": float("nan")}], {})
    assert list(tmp_path.iterdir()) == []


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"r.txt: cannot write .txt; use .parquet, .csv, .json"):
        write_rows(tmp_path / "r.txt", ROWS, CONFIG)
    with pytest.raises(ConfigError, match="cannot write a file without ending"):
        write_rows(tmp_path / "r", ROWS, CONFIG)
    with pytest.raises(StorageError, match="cannot be written"):
        write_rows(tmp_path / "missing" / "r.csv", ROWS, CONFIG)
