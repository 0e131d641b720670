"""llama.cpp (a stand-in) under a memory limit: rows, what dies, what is best; a file with a read-ahead of its own."""

import pytest

from elmoe.bench.gguf_q8 import write_gguf
from elmoe.errors import ElmoeError, StorageError

LIMIT_BYTES = 1 << 30


@pytest.fixture(scope="module")
def script(bench_script):
    module = bench_script("tiers_peer")
    try:
        module.MemoryGroup(LIMIT_BYTES).close()
    except module.GroupError as error:
        pytest.skip(str(error))
    return module


@pytest.fixture
def measured(script, small, fake_llama_cpp, tmp_path):
    """Measures one setting on the small model."""
    gguf = tmp_path / "small.gguf"
    write_gguf(small, gguf)
    workload = script.Workload(steps=3)
    works = [workload.decoding(small, batch) for batch in (1, 2)]

    def measure(setting, limit_bytes=LIMIT_BYTES):
        return script.measure(gguf, works, setting, limit_bytes, fake_llama_cpp, workload.warm_up)

    return measure


def test_a_row_per_batch(script, measured):
    rows = measured(script.Setting("mapped", threads=1, options={"load_mode": 1}))
    assert [(row["arm"], row["batch"]) for row in rows] == [("llama.cpp", 1), ("llama.cpp", 2)]
    for row in rows:
        assert row["decode_tok_s"] > 0
        assert len(row["step_seconds"]) == 5
        assert row["limit_bytes"] == LIMIT_BYTES
        assert 0 < row["peak_bytes"] <= LIMIT_BYTES
        assert row["read_bytes"] >= 0
        settings = {"name": "mapped", "threads": 1, "options": {"load_mode": 1}}
        assert row["settings"] == settings | {"read_ahead_kb": row["settings"]["read_ahead_kb"]}


def test_what_cannot_run_says_why(script, measured, monkeypatch):
    refused = measured(script.Setting("odd", options={"wings": 2}))
    assert all("no model option wings" in row["error"] and "decode_tok_s" not in row for row in refused)
    monkeypatch.setenv("FAKE_LLAMA_FAULT", "dies")
    died = measured(script.Setting("default"))
    assert all("stopped with exit code 3" in row["error"] or "Broken" in row["error"] for row in died)


def test_the_best_setting_and_the_table(script):
    rows = [
        {"batch": batch, "settings": {"name": name}} | found
        for name, speeds in {"slow": (1.0, 3.0), "fast": (2.5, 2.0)}.items()
        for batch, found in zip((1, 8), [{"decode_tok_s": speed} for speed in speeds], strict=True)
    ]
    rows += [{"batch": batch, "settings": {"name": "greedy"}, "error": "killed: out of memory"} for batch in (1, 8)]
    assert [script.best(rows, batch)["settings"]["name"] for batch in (1, 8)] == ["fast", "slow"]
    with pytest.raises(ElmoeError, match=r"llama\.cpp ran at no setting at batch 8; give it a higher --limit-bytes"):
        script.best(rows[-1:], 8)
    lines = script.table(rows, (1, 8)).splitlines()
    assert lines[0] == "| llama.cpp, tokens/s | batch 1 | batch 8 |"
    assert lines[-1] == "| greedy | killed: out of memory | killed: out of memory |"


def test_a_read_ahead_of_its_own(bench_script, tmp_path):
    script = bench_script("read_ahead")
    file = tmp_path / "file"
    file.write_bytes(b"weights" * 1000)
    try:
        with script.with_read_ahead(file, 64) as copy:
            assert copy.read_bytes() == file.read_bytes()
            assert script.read_ahead_kb(copy) == 64
    except StorageError as error:
        pytest.skip(str(error))
    finally:
        assert list(tmp_path.iterdir()) == [file]


def test_without_the_tools(bench_script, tmp_path, monkeypatch):
    script = bench_script("read_ahead")
    file = tmp_path / "file"
    file.write_bytes(b"weights")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StorageError, match=r"mkfs.ext4 is needed for a read-ahead of its own"), \
            script.with_read_ahead(file, 64):  # fmt: skip
        pass
    assert list(tmp_path.iterdir()) == [file]
