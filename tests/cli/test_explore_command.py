"""`elmoe explore` as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_calls
import pyarrow.parquet as pq
import pytest

from elmoe.cli import main as cli
from elmoe.sim.sweep_file import EXAMPLES, load_sweep

EXAMPLE = Path(__file__).parents[2] / "examples" / "sweep_hb.toml"
Capture = pytest.CaptureFixture[str]


def call(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    return cli_calls.call(capsys, "explore", *arguments)


def test_the_example_gives_the_document_of_the_contract(capsys: Capture, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    code, out, err = call(capsys, EXAMPLE, "-o", output, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    rows = pq.read_table(output).to_pylist()
    assert found["path"] == str(output)
    assert found["points"] == found["done"] == len(rows) == load_sweep(EXAMPLE).points > 1000
    assert found["problems"] == sum(row["problem"] is not None for row in rows) > 0
    assert found["pareto"] == sum(row["pareto"] for row in rows)
    assert 0 < found["seconds"] < 10
    fast = max(rows, key=lambda row: row["speedup_vs_xpu"] or 0)
    assert (fast["system"], fast["ext.gb_per_s"]) == ("elmoe-3d", 204.8)


def test_people_get_one_line(capsys: Capture, tmp_path: Path) -> None:
    code, out, _ = call(capsys, EXAMPLE, "-o", tmp_path / "out.parquet")
    assert code == 0
    assert out.count("\n") == 1
    assert "out.parquet: 1,728 points, " in out
    assert " impossible (column problem), " in out


def test_an_interrupted_run_says_how_to_go_on(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(sweep: Any, chunks: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("elmoe.cli.explore.processes", lambda count: interrupted)
    code, out, err = call(capsys, EXAMPLE, "-o", tmp_path / "out.parquet")
    assert (code, out) == (cli.INTERRUPTED, "")
    assert "interrupted" in err
    assert "the same command continues" in err


def test_examples_of_lists_are_readable(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text("\n".join(f"{key} = {example}" for key, example in EXAMPLES.items()), encoding="utf-8")
    assert load_sweep(path).points > 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere.toml", "-o", "x.parquet"], "nowhere.toml does not exist"),
        ([EXAMPLE], "Missing option '-o'"),
        ([], "Missing argument 'sweep'"),
        ([EXAMPLE, "-o", "x.csv"], "x.csv: a sweep is written as .parquet"),
        ([EXAMPLE, "-o", "x.parquet", "--workers", 2, "--ray", "auto"], "give --workers or --ray, not both"),
        ([EXAMPLE, "-o", "x.parquet", "--workers", -1], "'--workers'"),
        ([EXAMPLE, "-o", "x.parquet", "--workers", 0], "'--workers'"),
        ([EXAMPLE, "-o", "/nowhere/x.parquet"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[Any], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert text in err
    assert not list(tmp_path.iterdir())
