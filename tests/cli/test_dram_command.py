"""`elmoe dram`: its document, its table, and its one line of error."""

import json
import os
import threading

import pytest
from cli_calls import call
from rich.console import Console

ROWS = """device,pattern,mapping,bursts,refresh,queue,pct_peak
LPDDR5-6400 x16 16Gb,seq,bgint,8000,none,32,99.9
HB-like tRCD14/tRP14/tRAS33 tCCDL5.0,128,bgint,4000,pb,8,
LPDDR5-6400 x16 8ch,u4K,page,16000,,,n/a
"""
FIELDS = {"gb_per_s", "pct_peak", "row_hit", "row_miss", "row_conflict", "avg_read_latency_ns"}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """No table is folded, whatever the terminal."""
    monkeypatch.setattr("elmoe.cli.dram.out", Console(width=200))


@pytest.fixture
def cases(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text(ROWS, encoding="utf-8")
    return path


def test_json_is_one_document_with_a_row_per_case(capsys, cases):
    code, out, err = call(capsys, "dram", "--cases", cases, "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    document = json.loads(out)
    assert list(document) == ["rows"]
    assert [set(row) for row in document["rows"]] == [FIELDS] * 3
    sequence, short, channels = document["rows"]
    assert sequence["pct_peak"] == pytest.approx(99.8, abs=0.2)
    assert short["pct_peak"] < sequence["pct_peak"]
    assert channels["gb_per_s"] == pytest.approx(channels["pct_peak"] / 100 * 8 * 12.8)
    assert call(capsys, "dram", "--cases", cases, "--json")[1] == out


def test_no_cases_are_no_rows(capsys, tmp_path):
    path = tmp_path / "none.csv"
    path.write_text("pattern,mapping,bursts\n", encoding="utf-8")
    assert call(capsys, "dram", "--cases", path, "--json") == (0, '{"rows": []}\n', "")


def test_the_table_compares_with_what_the_file_quotes(capsys, cases):
    code, out, err = call(capsys, "dram", "--cases", cases)
    assert (code, err) == (0, "")
    rows = json.loads(call(capsys, "dram", "--cases", cases, "--json")[1])["rows"]
    lines = [line for line in out.splitlines() if "x16" in line or "HB" in line]
    for line, row in zip(lines, rows, strict=True):
        assert f"{row['pct_peak']:.2f}" in line
    assert f"{rows[0]['pct_peak'] - 99.9:+.2f}" in lines[0]
    assert "+" not in lines[1] + lines[2], "nothing to compare with"
    assert ["none" in lines[2], "32" in lines[2]] == [True, True], "defaults are shown"


def test_what_looks_like_markup_is_printed_as_it_is(capsys, tmp_path):
    path = tmp_path / "markup.csv"
    path.write_text("device,pattern,mapping,bursts\nLPDDR5 [/b][red],seq,bgint,10\n", encoding="utf-8")
    code, out, _ = call(capsys, "dram", "--cases", path)
    assert code == 0
    assert "[/b][red]" in out


def test_cases_may_come_through_a_pipe(capsys, tmp_path):
    """They are read once, also for the table."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(ROWS,))
    writer.start()
    code, out, err = call(capsys, "dram", "--cases", pipe)
    writer.join()
    assert (code, err) == (0, "")
    assert out.count("bgint") == 2


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pattern,mapping\nseq,bgint\n", "cases.csv: the column 'bursts' is missing; see docs/simulator.md"),
        (
            "pattern,mapping,bursts\nseq,bgint,9\nseq,bgnit,9\n",
            "line 3: unknown mapping 'bgnit'; did you mean 'bgint'?",
        ),
        ("pattern,mapping,bursts\nsek,bgint,9\n", "line 2: unknown pattern 'sek'; known are seq"),
        ("pattern,mapping,bursts\nseq,bgint,0\n", "line 2: bursts must be 1 to 50000000, not 0"),
        ("pattern,mapping,bursts,queue\nseq,bgint,9,0\n", "line 2: queue must be 1 to 1024, not 0"),
        ("pattern,mapping,bursts,device\nseq,bgint,9,DDR3\n", "line 2: unknown DRAM device 'DDR3'"),
        ("pattern,mapping,bursts\nseq,bgint,9,9\n", "line 2: more fields than the header has"),
        ('pattern,mapping,bursts\n"se\nq",bgint,9\n', "line 3: unknown pattern"),
        ("", "the column 'pattern' is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, flags, text, message):
    path = tmp_path / "cases.csv"
    path.write_text(text, encoding="utf-8")
    code, out, err = call(capsys, "dram", "--cases", path, *flags)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dram"], "Missing option '--cases'"),
        (["dram", "--cases", "/nowhere.csv"], "/nowhere.csv does not exist"),
        (["dram", "--cases", "/"], "/ cannot be read as CSV"),
        (["dram", "--cases", "x.csv", "--jason"], "No such option: --jason"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(capsys, arguments, message):
    code, out, err = call(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
