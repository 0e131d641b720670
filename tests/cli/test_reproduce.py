"""`elmoe reproduce` as a user calls it; and its numbers, again, by the commands that it states."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cli_calls import call, document

from elmoe.report import images
from elmoe.report.catalogue import CATALOGUE, wanted
from elmoe.report.figure import Figure, chosen
from elmoe.sim.headline import QUOTED

Capture = pytest.CaptureFixture[str]

SMALL = ("--limit", 1, "--images", "none")
HEADLINE = {"speedup_vs_xpu", "speedup_vs_best_prior", "energy_vs_xpu", "energy_vs_best_prior"}
SIMULATED = [made.figure.id for made in CATALOGUE if not set(made.needs) - {"area"}]
SAMPLE = 3
"""Numbers of each figure that are computed again."""
TOLERANCE = 1e-9
MACHINE = """base = "elmoe-3d"
name = "my-box"

[ext]
gb_per_s = { value = 51.2, unit = "GB/s", source = "what if", status = "assumed" }
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the module's runs happen: prompts, a machine, the report's folder."""
    folder = tmp_path_factory.mktemp("reproduce")
    texts = ["Hi! How are you today?", "Write a short story about a dog."]
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
    (folder / "small.jsonl").write_text(lines, encoding="utf-8")
    (folder / "my_box.toml").write_text(MACHINE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def rows_of(folder: Path, identity: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / "out" / "data" / f"{identity}.parquet").to_pylist()


def numbers_of(figure: Figure, rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """(row, column) of everything that a reader can point at."""
    found = []
    for chart in figure.charts:
        column = chart.z or (chart.x if chart.kind == "tornado" else chart.y)
        found += [(row, column) for row in chosen(rows, **chart.where) if row.get(column) is not None]
        if chart.outline:
            found += [(row, chart.outline_x) for row in chosen(rows, **chart.outline)]
    return found


def assert_given_again(capsys: Capture, identity: str, rows: list[dict[str, Any]], count: int = SAMPLE) -> None:
    """Numbers picked at random are what the stated command prints."""
    figure = wanted(identity)[0][0].figure
    numbers = numbers_of(figure, rows)
    for row, column in random.Random(identity).sample(numbers, min(count, len(numbers))):
        command = figure.command(row)
        assert command is not None, row
        verb, *arguments = command.arguments(row)
        assert verb == "elmoe"
        assert arguments.pop() == "--json"
        found = command.value(document(capsys, *arguments), row, column)
        assert found == pytest.approx(row[column], rel=TOLERANCE), command.text(row)


def test_the_contract(capsys: Capture, workplace: Path) -> None:
    found = document(capsys, "reproduce", "--only", "table3,fig14", "--out", "out", "--images", "none")
    assert found["figures"] == ["table3", "fig14"]
    assert set(found["headline"]) == HEADLINE == set(QUOTED)
    assert all(isinstance(value, float) for value in found["headline"].values())
    assert found["headline"]["speedup_vs_xpu"] == pytest.approx(found["headline_simulated"]["speedup_vs_xpu"]["mean"])
    assert found["headline_quoted"]["speedup_vs_xpu"] == {"mean": 6.6, "largest": 12.0}
    page = Path(found["report"])
    assert page.is_file()
    assert page.stat().st_size < 8e6
    assert all(one["why"] for one in found["deviations"])
    assert found["details"]["fig14"]["example"].startswith("elmoe simulate --model qwen3-30b-a3b --system xpu ")


@pytest.mark.parametrize("identity", SIMULATED)
def test_simulated_numbers_are_given_again_by_their_commands(identity: str, capsys: Capture, workplace: Path) -> None:
    document(capsys, "reproduce", "--only", identity, "--out", "out", "--images", "none")
    rows = rows_of(workplace, identity)
    assert_given_again(capsys, identity, rows)
    assert (workplace / "out" / "data" / f"{identity}.csv").is_file()


def test_measured_numbers_are_given_again_by_their_commands(capsys: Capture, workplace: Path) -> None:
    own = ("--prompts", "own=small.jsonl", "--out", "out")
    found = document(capsys, "reproduce", "--only", "fig2,fig4,fig5,fig7", *own, *SMALL)
    assert found["figures"] == ["fig2", "fig4", "fig5", "fig7"]
    for identity in found["figures"]:
        assert_given_again(capsys, identity, rows_of(workplace, identity), count=1)
    assert {row["workload"] for row in rows_of(workplace, "fig7")} == {"own"}
    _, _, err = call(capsys, "reproduce", "--only", "fig2,fig4,fig5,fig7", *own, *SMALL)
    assert err.count("(kept)") == 2 + 4, "nothing is measured or computed again"
    changed = workplace / "small.jsonl"
    changed.write_text(changed.read_text(encoding="utf-8").replace("dog", "cat"), encoding="utf-8")
    _, _, err = call(capsys, "reproduce", "--only", "fig4", *own, *SMALL)
    assert "(kept)" not in err, "other prompts, other numbers"


def test_a_machine_of_one_s_own_is_one_more_system(capsys: Capture, workplace: Path) -> None:
    arguments = ("reproduce", "--only", "machines", "--this-machine", "my_box.toml", "--out", "out", "--images", "none")
    found = document(capsys, *arguments)
    assert found["figures"] == ["fig22"]
    rows = rows_of(workplace, "fig22")
    assert {row["shown_system"] for row in rows} >= {"my-box", "elmoe-3d"}
    assert_given_again(capsys, "fig22", [row for row in rows if row["shown_system"] == "my-box"])
    assert_given_again(capsys, "fig22", [row for row in rows if row["shown_system"] == "this-machine"])
    assert "my-box" in Path(found["report"]).read_text(encoding="utf-8")


def test_people_get_averages_and_the_path(capsys: Capture, workplace: Path) -> None:
    code, out, err = call(capsys, "reproduce", "--only", "headline,fig13,fig22", "--out", "out", "--images", "svg")
    assert code == 0, err
    assert re.search(r"speedup vs xpu +│ +6.6 \(max 12\) │ +7\.\d+ \(max 16\.\d\)", out)
    assert re.search(r"report.html: 2 figures, 4\.\d MB, 3 images, \d+ s", out)
    assert (workplace / "out" / "images" / "fig13.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--only", "fig99"], "--only: unknown figure 'fig99'; known are fig1 (intensity)"),
        (["--only", ""], "--only: unknown figure ''"),
        (["--prompts", "small.jsonl"], "--prompts: cannot read 'small.jsonl'; write for example code=my_code.jsonl"),
        (["--prompts", "../a=small.jsonl"], "--prompts: cannot read '../a=small.jsonl'"),
        (["--prompts", "a=small.jsonl", "--prompts", "a=chat"], "--prompts: 'a' is given twice; one file per workload"),
        (["--prompts", "a=none.jsonl"], "none.jsonl: cannot be read: No such file"),
        (["--this-machine", "none.toml"], "none.toml does not exist"),
        (["--images", "gif"], "--images: unknown kind 'gif'; use png, svg or none"),
        (["--model", "nothing", "--only", "fig4"], "nothing"),
        (["--limit", "0"], "limit"),
        (["--out", "small.jsonl"], "small.jsonl: cannot be made: File exists; choose another with --out"),
    ],
)
def test_bad_input_is_named_in_one_line(capsys: Capture, workplace: Path, arguments: list[str], text: str) -> None:
    code, out, err = call(capsys, "reproduce", *arguments)
    assert (code, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1


def test_without_plotly_or_matplotlib_one_is_told_what_to_install(
    capsys: Capture, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "find_spec", lambda _: None)
    base = ("reproduce", "--only", "fig13", "--out", "out")
    code, _, err = call(capsys, *base, "--images", "png")
    assert code == 2
    assert "pip install 'elmoe[report]'" in err
    code, _, err = call(capsys, *base)
    assert code == 0
    assert "images are left out" in err
    monkeypatch.setattr("elmoe.report.reproduction.find_spec", lambda _: None)
    code, _, err = call(capsys, *base)
    assert code == 2
    assert "the page's charts need plotly; pip install 'elmoe[report]'" in err


def test_ones_own_trace_of_routing(capsys: Capture, workplace: Path) -> None:
    """`elmoe locality`, whose numbers the measured figures draw."""
    found = document(capsys, "locality", "tiny", "--prompts", "small.jsonl", "--max-tokens", 10)
    assert {(row["mode"], row["batch"]) for row in found["activation"]} == {
        (m, b) for m in ("ar", "sd") for b in (1, 2)
    }
    single = next(row for row in found["activation"] if (row["mode"], row["batch"]) == ("ar", 1))
    assert single["experts_per_pass"] == single["experts_per_token"] == found["experts_per_token"] == 4
    assert {row["where"] for row in found["unique"]} == {"inside", "across"}
    rates = {(row["policy"], row["batch"], row["capacity_share"]): row["miss_rate"] for row in found["misses"]}
    assert all(rates["belady", 1, share] <= rates["lru", 1, share] for share in (0.25, 0.5, 1.0))
    code, out, _ = call(capsys, "locality", "tiny", "--prompts", "small.jsonl", "--max-tokens", 10)
    assert code == 0
    assert "distinct experts inside a request" in out


def test_prompt_sets_are_known_by_name(capsys: Capture, workplace: Path) -> None:
    found = document(capsys, "run", "tiny", "--prompts", "math", "--max-tokens", 2)
    assert len(found["outputs"]) == 16
    Path("math").write_text('{"prompt": "Hi!"}\n', encoding="utf-8")
    assert len(document(capsys, "run", "tiny", "--prompts", "math", "--max-tokens", 2)["outputs"]) == 1
    Path("math").unlink()
