"""`elmoe simulate` as a user calls it: the contract's JSON, files, and one line of error for every kind of nonsense."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cli_calls
import pyarrow.parquet as pq
import pytest

from elmoe.cli import main as cli
from elmoe.sim.model import MODELS
from elmoe.sim.spec import SCHEMES, SYSTEMS

Capture = pytest.CaptureFixture[str]

FIELDS = {
    *("model", "system", "scheme", "hb_gb", "batch", "context", "workload", "mode", "acceptance_rate"),
    *("latency_ms_per_token", "speedup_vs_xpu", "energy_mj_per_token", "phases"),
}


def call(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    return cli_calls.call(capsys, "simulate", *arguments)


def document(capsys: Capture, *arguments: object, says: str = "") -> dict[str, Any]:
    """The one JSON document of a call that succeeds and has nothing to say on standard error but `says`."""
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0
    assert err.count("\n") == bool(says)
    assert says in err
    assert out.count("\n") == 1, "one document, one line"
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_contract(capsys: Capture) -> None:
    (row,) = document(
        capsys, "--model", "qwen3-30b-a3b", "--system", "elmoe-3d", "--scheme", "elastic", "--mode", "sd", "--hb-gb", 4,
        "--batch", 4, "--context", 2048, "--workload", "gsm8k", "--acceptance", 0.57,
    )["rows"]  # fmt: skip
    assert set(row) >= FIELDS
    assert [row[name] for name in ("model", "system", "scheme", "mode", "hb_gb", "batch", "context", "workload")] == [
        *("qwen3-30b-a3b", "elmoe-3d", "elastic", "sd", 4.0, 4, 2048, "gsm8k")
    ]
    assert row["acceptance_rate"] == 0.57
    assert set(row["energy_mj_per_token"]) == {"compute", "ext", "hb", "comm", "static", "total"}
    assert set(row["phases"]) == {"draft", "verify"}
    (base,) = document(capsys, "--system", "xpu", "--batch", 4, "--context", 2048, "--hb-gb", 4)["rows"]
    assert (base["scheme"], base["mode"], base["acceptance_rate"]) == ("none", "ar", None)
    assert base["latency_ms_per_token"] / row["latency_ms_per_token"] == row["speedup_vs_xpu"]


def test_what_a_bare_call_does(capsys: Capture) -> None:
    """The paper's machine with its scheme on its first model."""
    (row,) = document(capsys)["rows"]
    found = [row[name] for name in ("model", "system", "scheme", "mode", "hb_gb", "batch", "context", "workload")]
    assert found == [MODELS[0], "elmoe-3d", "elastic", "sd", 4.0, 1, 1024, "mt-bench"]


def test_all_of_everything(capsys: Capture) -> None:
    """In the order asked for; a machine without a scheme decodes plainly."""
    made = document(capsys, "--model", "all", "--system", "all", "--scheme", "all", "--batch", "1,16")["rows"]
    assert len(made) == len(MODELS) * len(SYSTEMS) * len(SCHEMES) * 2
    assert [row["model"] for row in made[:: len(made) // 4]] == list(MODELS)
    assert {row["mode"] for row in made if row["scheme"] == "none"} == {"ar"}
    assert {row["mode"] for row in made if row["scheme"] != "none"} == {"sd"}
    plain = document(capsys, "--system", "all")["rows"]
    assert [row["mode"] for row in plain] == ["ar"] * 4 + ["sd"] * 2
    resident = document(capsys, "--scheme", "all", "--mode", "ar")["rows"]
    assert [(row["scheme"], row["mode"]) for row in resident] == [(scheme, "ar") for scheme in SCHEMES]


def test_sizes_and_workloads_multiply(capsys: Capture) -> None:
    found = document(capsys, "--hb-gb", "4,8", "--workload", "gsm8k", "--workload", "alpaca", "--context", "512,1024")
    made = [(row["hb_gb"], row["workload"], row["context"]) for row in found["rows"]]
    assert sorted(made) == [(hb, work, at) for hb in (4.0, 8.0) for work in ("alpaca", "gsm8k") for at in (512, 1024)]
    assert [(entry["system"], entry["hb_gb"]) for entry in found["config"]["machines"]] == [
        ("elmoe-3d", 4.0),
        ("elmoe-3d", 8.0),
    ]


def test_the_configuration_has_every_number_with_its_source(capsys: Capture) -> None:
    config = document(capsys, "--hb-gb", 8)["config"]
    (machine,) = config["machines"]
    assert machine["hb"]["gb_per_s"]["value"] == 1638.4
    assert machine["compute"]["pes"]["value"] == 32
    for section in (*machine.values(), *config["schemes"].values()):
        if isinstance(section, dict):
            assert all(set(entry) == {"value", "unit", "source", "status"} for entry in section.values())
    assert config["models"]["qwen3-30b-a3b"]["experts"] == 128


def test_the_same_call_gives_the_same_bytes(capsys: Capture) -> None:
    assert call(capsys, "--system", "all", "--json") == call(capsys, "--system", "all", "--json")


def test_people_get_a_table(capsys: Capture) -> None:
    code, out, err = call(capsys, "--system", "xpu-pim")
    assert (code, err) == (0, "")
    assert "simulated" in out


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet"])
def test_output_files(capsys: Capture, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"r.{suffix}"
    code, _, err = call(capsys, "--batch", "1,4", "-o", path)
    assert code == 0
    assert "2 rows" in err
    expected = document(capsys, "--batch", "1,4")
    if suffix == "json":
        assert json.loads(path.read_text(encoding="utf-8")) == expected
        return
    if suffix == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            latencies = [float(row["latency_ms_per_token"]) for row in csv.DictReader(file)]
    else:
        table = pq.read_table(path)
        latencies = table["latency_ms_per_token"].to_pylist()
        assert json.loads(table.schema.metadata[b"elmoe"]) == expected["config"]
    assert latencies == [row["latency_ms_per_token"] for row in expected["rows"]]


def test_a_machine_and_a_model_of_ones_own(capsys: Capture, tmp_path: Path) -> None:
    """Twice the external bandwidth; a config.json without weights."""
    machine, config = tmp_path / "fast.toml", tmp_path / "config.json"
    entry = '{ value = 204.8, unit = "GB/s", source = "two controllers", status = "assumed" }'
    machine.write_text(f'base = "xpu"\n[ext]\ngb_per_s = {entry}\n', encoding="utf-8")
    config.write_text(
        json.dumps({
            "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 16, "num_experts": 64,
            "num_experts_per_tok": 8, "intermediate_size": 1024, "vocab_size": 50304, "max_position_embeddings": 4096,
        }),
        encoding="utf-8",
    )  # fmt: skip
    says = "none of its own: popularity and acceptance are assumed"
    (row,) = document(capsys, "--system", machine, "--model", config, says=says)["rows"]
    assert (row["system"], row["model"]) == ("fast", str(config))
    assert row["speedup_vs_xpu"] == pytest.approx(2, rel=0.02)


def test_a_trace_brings_its_own_locality(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    options = ["-p", "Tell me a story.", "--max-tokens", "16", "-o", str(path)]
    assert cli._exit_code(["trace", "tiny", *options]) == 0
    says = "locality measured on 16 tokens of tiny; acceptance assumed, but that of Elastic-SD measured"
    (row,) = document(capsys, "--trace", path, "--context", 64, says=says)["rows"]
    assert (row["workload"], row["scheme"]) == ("trace", "elastic")
    assert 0 <= row["acceptance_rate"] <= 1
    code, _, err = call(capsys, "--trace", path, "--workload", "gsm8k")
    assert (code, err) == (2, "error: give --workload or --trace, not both: a trace brings its own locality\n")
    code, out, err = call(capsys, "--trace", path, "--model", "qwen3-30b-a3b")
    assert (code, out) == (2, "")
    assert "of 32 experts per token, qwen3-30b-a3b 8 of 128; record a trace of that model" in err


def test_all_systems_speculate_where_they_can(capsys: Capture) -> None:
    found = document(capsys, "--system", "all", "--mode", "sd")["rows"]
    assert [row["mode"] for row in found] == ["ar", "ar", "ar", "ar", "sd", "sd"]


def test_the_timeline_is_of_the_first_row(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "layer.json"
    found = document(capsys, "--batch", 4, "--timeline", path)
    assert found["layer"]["experts"] == round(found["rows"][0]["unique_experts"])
    assert json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    code, out, err = call(capsys, "--system", "xpu-pim", "--timeline", path)
    assert (code, out) == (2, "")
    assert "not the near memory of xpu-pim" in err


def test_the_configuration_names_profiles_and_devices(capsys: Capture) -> None:
    config = document(capsys, "--model", "gpt-oss-20b")["config"]
    assert config["profiles"][0]["origin"] == "calibrated on table 3, 4 GB (profiles.toml)"
    assert config["profiles"][0]["acceptance"]["quant"] == 0.6
    assert set(config["dram"]) == {"hb-bank", "lpddr5-6400-x16"}


OVERRIDE = 'base = "elmoe-3d"\n[{}]\n{} = {{ value = {}, unit = "{}", source = "{}", status = "{}" }}\n'
FILES = {
    "zero.toml": OVERRIDE.format("ext", "gb_per_s", 0, "GB/s", "x", "assumed"),
    "negative.toml": OVERRIDE.format("hb", "gb_per_s", -1, "GB/s", "x", "assumed"),
    "unit.toml": OVERRIDE.format("ext", "gb_per_s", 100, "Gb/s", "x", "assumed"),
    "source.toml": OVERRIDE.format("ext", "gb_per_s", 100, "GB/s", "", "assumed"),
    "status.toml": OVERRIDE.format("ext", "gb_per_s", 100, "GB/s", "x", "fact"),
    "field.toml": OVERRIDE.format("ext", "gb_per_sec", 100, "GB/s", "x", "assumed"),
    "small.toml": OVERRIDE.format("hb", "capacity_gb", 1, "GB", "x", "assumed"),
    "broken.toml": "base = \n",
    "base.toml": 'base = "elmoe"',
    "dense.json": '{"num_hidden_layers": 2, "hidden_size": 64}',
    "list.json": "[]",
    "cut.json": '{"num_hidden_layers": ',
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model qwen3-30b", "unknown model 'qwen3-30b'; did you mean 'qwen3-30b-a3b'?"),
        ("--model nowhere.json", "nowhere.json cannot be read: No such file or directory"),
        ("--model dense.json", "dense.json: none of num_experts, n_routed_experts, num_local_experts is given"),
        ("--model list.json", "list.json is not a config.json"),
        ("--model cut.json", "cut.json is not JSON"),
        ("--system elmoe3d", "unknown system 'elmoe3d'; did you mean 'elmoe-3d'?"),
        ("--system nowhere.toml", "nowhere.toml does not exist"),
        ("--system zero.toml", "zero.toml: ext.gb_per_s: must be above 0, not 0"),
        ("--system negative.toml", "negative.toml: hb.gb_per_s: must be above 0, not -1"),
        ("--system unit.toml", "unit.toml: ext.gb_per_s: is in 'GB/s', not 'Gb/s'; convert the value"),
        ("--system source.toml", "source.toml: ext.gb_per_s: source is empty; say where the number comes from"),
        ("--system status.toml", "status.toml: ext.gb_per_s: status 'fact' is not one of datasheet, paper"),
        ("--system field.toml", "field.toml: ext: unknown field 'gb_per_sec'; did you mean 'gb_per_s'?"),
        ("--system small.toml", "dense weights of 1.67 GB do not fit 1 GB of HB; give --hb-gb at least 1.75"),
        ("--system broken.toml", "broken.toml is not TOML"),
        ("--system base.toml", "base.toml: unknown base 'elmoe'; did you mean 'elmoe-3d'?"),
        ("--scheme elastik", "unknown scheme 'elastik'; did you mean 'elastic'?"),
        ("--mode plain", "unknown mode 'plain'; known are ar, sd"),
        ("--mode sd --system xpu", "mode sd needs a scheme: eagle, slm, quant or elastic"),
        ("--workload mtbench", "unknown workload 'mtbench'; did you mean 'mt-bench'?"),
        ("--batch 0", "batch must be at least 1, not 0"),
        ("--batch -4", "batch must be at least 1, not -4"),
        ("--batch 1,,2", "batch: cannot read '1,,2'; write integers separated by commas"),
        ("--batch 4096", "do not fit 64 GB of external memory; lower one of them"),
        ("--context 0", "context must be at least 1, not 0"),
        ("--context 262145", "context 262145 is beyond 262144, the most for qwen3-30b-a3b"),
        ("--hb-gb 4.1", "hb-gb must be a positive multiple of 0.25 (one bank per PE)"),
        ("--hb-gb 0", "hb-gb must be a positive multiple of 0.25"),
        ("--hb-gb inf", "hb-gb must be a positive multiple of 0.25"),
        ("--hb-gb four", "hb-gb: cannot read 'four'; write for example 4 or 4,8"),
        ("--hb-gb 1", "dense weights of 1.67 GB do not fit 1 GB of HB"),
        ("--acceptance 1.5", "acceptance must lie in 0..1, not 1.5"),
        ("--acceptance nan", "acceptance must lie in 0..1, not nan"),
        ("--trace nowhere.parquet", "nowhere.parquet does not exist; record a trace with `elmoe trace`"),
        ("-o rows.xlsx", "rows.xlsx: cannot write .xlsx; use .parquet, .csv, .json"),
        ("-o nowhere/rows.csv", "rows.csv cannot be written"),
        ("--bandwidth 3", "No such option: --bandwidth"),
        ("qwen3-30b-a3b", "unexpected extra argument"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--json"]):
        code, out, err = call(capsys, *arguments.split(), *more)
        assert (code, out) == (2, "")
        assert message in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == set(FILES), "nothing is left behind"


def test_a_fault_of_ours_is_exit_code_1(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("elmoe.cli.simulate.rows", fail)
    code, out, err = call(capsys, "--json")
    assert (code, out) == (1, "")
    assert "internal error: please report" in err


def test_the_context_where_none_is_given(capsys: Capture, tmp_path: Path) -> None:
    """1024 tokens, or what a small model holds."""
    small = tmp_path / "config.json"
    small.write_text(
        json.dumps({
            "model_type": "qwen3_moe", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "vocab_size": 99,
            "moe_intermediate_size": 32, "intermediate_size": 64, "max_position_embeddings": 512,
        }),
        encoding="utf-8",
    )  # fmt: skip
    code, out, _ = call(capsys, "--model", small, "--model", MODELS[0], "--json")
    assert code == 0
    assert {row["context"] for row in json.loads(out)["rows"]} == {512, 1024}
    assert call(capsys, "--model", small, "--context", 1024)[0] == 2


def test_what_if_changes_machines_and_schemes(capsys: Capture) -> None:
    """Another field gives another row, and says so in the configuration; a machine without it stays as it is."""
    call_at = ("--system", "xpu", "--system", "elmoe-3d", "--hb-gb", 8)
    plain = document(capsys, *call_at)["rows"]
    found = document(capsys, *call_at, "--vary", "hb.gb_per_s=819.2", "--vary", "tree.depth=4")
    assert found["rows"][0] == plain[0]
    assert found["rows"][1]["latency_ms_per_token"] > plain[1]["latency_ms_per_token"]
    assert found["rows"][1]["phases"]["draft"]["count"] == 4
    assert found["config"]["machines"][1]["hb"]["gb_per_s"]["value"] == 819.2
    assert found["config"]["schemes"]["tree"]["depth"]["source"] == "what if"
    code, _, err = call(capsys, "--vary", "hb.gb=1")
    assert code == 2
    assert "unknown field 'hb.gb'; did you mean 'hb.gb_per_s'?" in err
