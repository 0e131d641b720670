"""`elmoe bench` as a user calls it."""

import sys
from pathlib import Path

import pytest
from cli_calls import call, document

QUICK = ["--batch", "1,2", "--steps", 3, "--rounds", 2, "--prefill", 8, "--context", 4, "--depth", 2]
FAKE = Path(__file__).parents[1] / "bench" / "fake_llama_cpp"


@pytest.fixture(autouse=True)
def small_probe(monkeypatch):
    monkeypatch.setattr("elmoe.bench.bandwidth.PROBE_BYTES", 1 << 20)


@pytest.fixture
def fake_peer(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.setenv("FAKE_LLAMA_MODEL", str(tiny.path))
    monkeypatch.setenv("ELMOE_CACHE", str(tmp_path))
    monkeypatch.setenv("ELMOE_PEER_PYTHON", sys.executable)


def test_rows_of_the_contract(capsys):
    found = document(capsys, "bench", "tiny", *QUICK)
    assert [(row["arm"], row["batch"]) for row in found["rows"]] == [
        (arm, batch) for batch in (1, 2) for arm in ("ar", "ar-engine", "sd", "auto")
    ]
    for row in found["rows"]:
        assert row["decode_tok_s"] > 0
        assert row["prefill_tok_s"] > 0
        assert row["ratio_to_peer"] is None
        assert row["fraction_of_bandwidth"] > 0  # `tiny` lives in the cache: no upper bound
        assert len(row["decode_tok_s_by_round"]) == 2
        assert row["ratio_to_ar"] == 1 or row["arm"] in ("sd", "auto")
        if row["arm"] != "auto":  # which drafts if it measures that it pays
            assert ("acceptance_rate" in row) == (row["arm"] == "sd")
    assert found["settings"]["steps"] == 3
    assert found["settings"]["backend"] == "cpu"
    assert found["read_gb_per_s"] > 0
    assert found["threads"] >= 1
    assert found["peer"] is None


def test_against_a_peer(capsys, fake_peer, tmp_path):
    found = document(capsys, "bench", "tiny", "--against", "llama.cpp", *QUICK)
    rows = {(row["arm"], row["batch"]): row for row in found["rows"]}
    assert list(rows)[:4] == [("ar", 1), ("llama.cpp", 1), ("ar-engine", 1), ("sd", 1)]
    assert all(row["ratio_to_peer"] > 0 for row in rows.values())
    assert rows["llama.cpp", 2]["ratio_to_peer"] == 1
    assert rows["llama.cpp", 2]["fraction_of_bandwidth"] is None
    assert found["peer"]["version"] == "0.0-fake"
    assert found["peer"]["threads"] == found["threads"]
    assert found["peer"]["logits_correlation"] > 0.999
    assert set(found["peer"]["idle_cpu"]) == {"peer", "elmoe"}
    assert [path.suffix for path in tmp_path.iterdir()] == [".gguf"]


def test_for_people(capsys, fake_peer):
    code, out, err = call(capsys, "bench", "tiny", "--against", "llama.cpp", *QUICK)
    assert code == 0
    assert "medians of 2 rounds of 3 steps" in out
    assert "/ llama.cpp" in out
    assert out.count("ar-engine") == 2
    assert "llama.cpp (0.0-fake) on the same weights" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["tiny", "--against", "vllm"], "there is no peer 'vllm'; elmoe bench compares with llama.cpp"),
        (["tiny", "--batch", "0"], "batch must be 1 to 256, not 0"),
        (["tiny", "--batch", "1,300"], "batch must be 1 to 256, not 300"),
        (["tiny", "--batch", "1,x"], "--batch: cannot read '1,x'"),
        (["tiny", "--steps", 0], "steps must be at least 1, not 0"),
        (["tiny", "--steps", 5000], "5000 steps after 32 tokens exceed the model's context; at most 2016"),
        (["tiny", "--backend", "nonsense"], "backend 'nonsense' is not in this version"),
        (["tiny", "--pool-fraction", 2], "pool fraction must be in [0, 1], not 2"),
        (["nowhere"], "there is no model 'nowhere'"),
        (["tiny", "--against", "llama.cpp", "--peer-python", "/nowhere/python"], "/nowhere/python: cannot be run"),
        (["tiny", "--against", "llama.cpp", "--peer-python", "/bin/true"], "stopped with exit code 0: it said nothing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, text):
    code, out, err = call(capsys, "bench", *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert text in err


def test_a_missing_peer_names_the_extra(capsys, tmp_path, monkeypatch):
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, out, err = call(capsys, "bench", "tiny", "--against", "llama.cpp", "--peer-python", sys.executable)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install 'elmoe[llama-cpp]'" in err
