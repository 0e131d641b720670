"""`elmoe simulate` of a host: this computer's file, with and without a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cli_calls
import pytest

from elmoe import Engine, EngineOptions, Generation, Mode, Speculation
from elmoe.trace.parquet import TraceWriter

Capture = pytest.CaptureFixture[str]
HOST = Path(__file__).parents[2] / "src" / "elmoe" / "sim" / "specs" / "measured" / "this-machine.toml"
FIELDS = {
    *("model", "system", "scheme", "hb_gb", "batch", "context", "workload", "mode", "acceptance_rate"),
    *("latency_ms_per_token", "speedup_vs_xpu", "energy_mj_per_token", "phases", "tokens_per_s"),
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "sd.parquet"
    speculation = Speculation(mode=Mode.SD, width=1, depth=3, verify=3)
    engine = Engine.open("tiny", EngineOptions(pool_fraction=1.0, speculation=speculation))
    with TraceWriter(path, engine.backend.shape, engine.settings(), source="tiny") as writer:
        engine.recorder = writer
        engine.generate(["Once upon a time", "Tom has 12 apples."], Generation(max_tokens=16, ignore_eos=True))
    return path


def row(capsys: Capture, *arguments: object) -> dict[str, Any]:
    code, out, _ = cli_calls.call(capsys, "simulate", "--system", HOST, *arguments, "--json")
    assert code == 0
    (found,) = json.loads(out)["rows"]
    assert set(found) >= FIELDS
    return dict(found)


def test_a_trace_on_this_machine(capsys: Capture, trace: Path) -> None:
    found = row(capsys, "--trace", trace)
    assert (found["model"], found["system"], found["scheme"], found["mode"]) == (
        "tiny",
        "this-machine",
        "elastic",
        "sd",
    )
    assert (found["batch"], found["workload"], found["fast_bytes"]) == (2, "trace", None)
    assert set(found["phases"]) == {"draft", "verify"}
    assert found["phases"]["draft"]["count"] == 3
    assert found["miss_rate"] == {"msb": 0, "lsb": 0}
    assert set(found["energy_mj_per_token"].values()) == {None}, "unknown is not 0"
    assert found["latency_ms_per_token"] == pytest.approx(2e3 / found["tokens_per_s"])


def test_a_budget_slows_it_down(capsys: Capture, trace: Path) -> None:
    rates = [row(capsys, "--trace", trace, "--fast-bytes", size)["tokens_per_s"] for size in ("22MB", "26MB", "1GB")]
    assert rates == sorted(rates)
    small = row(capsys, "--trace", trace, "--fast-bytes", "22MB")
    assert small["bottleneck"] == "disk"
    assert small["speedup_vs_streaming"] > 1
    assert small["phases"]["draft"]["slow_bytes"] == 0
    nothing = row(capsys, "--trace", trace, "--fast-bytes", "22MB", "--cache-policy", "none", "--mode", "ar")
    assert nothing["speedup_vs_streaming"] == 1


def test_policies_by_the_names_of_the_engine(capsys: Capture, trace: Path) -> None:
    whole = row(capsys, "--trace", trace, "--fast-bytes", "22MB", "--cache-policy", "lru")
    assert (whole["policy"], whole["lsb_share"]) == ("lru", 1.0)
    sliced = row(capsys, "--trace", trace, "--fast-bytes", "22MB", "--cache-policy", "hotness")
    assert (sliced["policy"], sliced["lsb_share"]) == ("hot", 0.0)
    assert sliced["miss_rate"]["lsb"] == 1
    assert sliced["records_per_layer"]["msb"] > whole["records_per_layer"]["msb"]


def test_a_model_without_a_trace(capsys: Capture) -> None:
    code, out, err = cli_calls.call(
        capsys, "simulate", "--system", HOST, "--model", "qwen3-30b-a3b", "--fast-bytes", "8GiB", "--batch", "1,2",
        "--mode", "ar", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert [found["batch"] for found in document["rows"]] == [1, 2]
    assert document["rows"][0]["speedup_vs_streaming"] > 1
    (config,) = document["config"]["hosts"]
    assert config["slow"]["read_1m_gb_per_s"]["unit"] == "GB/s"


def test_beside_accelerators(capsys: Capture, trace: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    code, out, _ = cli_calls.call(
        capsys, "simulate", "--system", HOST, "--system", "elmoe-3d", "--trace", trace, "-o", output
    )
    assert code == 0
    assert "elmoe" in out
    assert len(output.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--system", HOST, "--hb-gb", "4"), "hb-gb is about accelerators; the fast tier of this-machine is given by"),
        (("--fast-bytes", "1GB"), "fast-bytes is about hosts; give --system a file with kind = 'host'"),
        (("--lsb-share", "1"), "lsb-share is about hosts"),
        (("--system", HOST, "--cache-policy", "lfruu"), "unknown cache-policy 'lfruu'; did you mean 'lru'?"),
        (("--system", HOST, "--lsb-share", "2"), "lsb-share must lie in 0..1, not 2"),
        (("--system", HOST, "--fast-bytes", "0"), "fast-bytes must be positive, not 0"),
        (("--system", HOST, "--fast-bytes", "100MB"), "qwen3-30b-a3b: 100,000,000 bytes of fast memory are too few"),
        (("--system", HOST, "--fast-bytes", "9000TB"), "this-machine has"),
        (("--system", HOST), "qwen3-30b-a3b: 32.5 GB of weights do not fit"),
        (
            ("--system", HOST, "--model", "gpt-oss-20b", "--fast-bytes", "8GB"),
            "MXFP4 experts are not modelled",
        ),
        (("--system", HOST, "--fast-bytes", "9GB", "--mode", "mixed"), "unknown mode 'mixed'"),
        (("--system", HOST, "--fast-bytes", "9GB", "--acceptance", "2"), "acceptance must lie in 0..1, not 2"),
        (
            ("--system", HOST, "--fast-bytes", "9GB", "--mode", "ar", "--batch", "0"),
            "batch and context must be",
        ),
        (
            ("--system", HOST, "--fast-bytes", "9GB", "--mode", "ar", "--timeline", "t.json"),
            "timeline is about",
        ),
    ],
)
def test_one_line_for_what_cannot_be(capsys: Capture, arguments: tuple[object, ...], message: str) -> None:
    code, out, err = cli_calls.call(capsys, "simulate", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
