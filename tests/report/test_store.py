"""Rows on disk: kept while their inputs are the same, made again otherwise."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from elmoe.report.store import DRAWING, SIMULATOR, Store, code_hash, file_hash, hash_of

ROWS = [
    {"model": "a", "batch": 1, "value": 0.1 + 0.2, "vary": None},
    {"model": "b", "batch": 4, "value": 7.0, "vary": "x=1"},
]


class Builder:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> list[dict[str, Any]]:
        self.calls += 1
        return [dict(row) for row in ROWS]


@pytest.fixture
def build() -> Builder:
    return Builder()


def test_rows_are_made_once_and_read_exactly(tmp_path: Path, build: Builder) -> None:
    first = Store(tmp_path).rows("fig1", "abc", build, {"figure": "fig1"})
    again = Store(tmp_path).rows("fig1", "abc", build, {"figure": "fig1"})
    assert (first.kept, again.kept, build.calls) == (False, True, 1)
    assert first.rows == again.rows == ROWS
    about = json.loads(pq.read_table(tmp_path / "fig1.parquet").schema.metadata[b"elmoe"])
    assert (about["input_hash"], about["figure"]) == ("abc", "fig1")
    with (tmp_path / "fig1.csv").open(encoding="utf-8") as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == [row["value"] for row in ROWS]


def test_other_inputs_other_rows(tmp_path: Path, build: Builder) -> None:
    Store(tmp_path).rows("fig1", "abc", build, {})
    assert not Store(tmp_path).rows("fig1", "abd", build, {}).kept
    assert not Store(tmp_path, fresh=True).rows("fig1", "abd", build, {}).kept
    assert build.calls == 3


@pytest.mark.parametrize("damage", [b"", b"PAR1 no more", b"PAR1"])
def test_a_damaged_table_is_made_again(tmp_path: Path, build: Builder, damage: bytes) -> None:
    Store(tmp_path).rows("fig1", "abc", build, {})
    (tmp_path / "fig1.parquet").write_bytes(damage)
    assert Store(tmp_path).rows("fig1", "abc", build, {}).rows == ROWS
    assert build.calls == 2


def test_a_foreign_table_is_made_again(tmp_path: Path, build: Builder) -> None:
    Store(tmp_path).rows("fig1", "abc", build, {})
    table = pq.read_table(tmp_path / "fig1.parquet").replace_schema_metadata({})
    pq.write_table(table, tmp_path / "fig1.parquet")
    assert not Store(tmp_path).rows("fig1", "abc", build, {}).kept


def test_hashes_tell_inputs_apart(tmp_path: Path) -> None:
    assert hash_of("a", {"b": 1}) == hash_of("a", {"b": 1}) != hash_of("a", {"b": 2})
    assert code_hash(SIMULATOR) != code_hash(DRAWING)
    assert code_hash(("report/texts.toml",)) != code_hash(("report/labels.py",))
    path = tmp_path / "m.toml"
    path.write_text("a", encoding="utf-8")
    before = file_hash(path)
    path.write_text("b", encoding="utf-8")
    assert file_hash(path) != before
