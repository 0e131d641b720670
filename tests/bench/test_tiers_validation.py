"""The comparison of predicted with measured runs over two tiers, on made-up results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmoe import Engine, EngineOptions, Generation, Mode, Speculation
from elmoe.sim.host.spec import load_host
from elmoe.trace.parquet import TraceWriter

ROOT = Path(__file__).parents[2]
MACHINE = ROOT / "src" / "elmoe" / "sim" / "specs" / "measured" / "this-machine.toml"
FAST_BYTES = 16_000_000


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import harness
    import tiers_validation

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "read_bandwidth", lambda: 30.0)
    monkeypatch.setattr(tiers_validation, "RESULTS", tmp_path)
    return tiers_validation


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("traces")
    found = {}
    for name, speculation in (("ar", Speculation(Mode.AR)), ("sd 2", Speculation(Mode.SD, 1, 2, 2))):
        engine = Engine.open("tiny", EngineOptions(max_batch=2, pool_fraction=1.0, speculation=speculation))
        path = folder / f"{name[:2]}.parquet"
        with TraceWriter(path, engine.backend.shape, engine.settings(), source="tiny") as writer:
            engine.recorder = writer
            engine.generate([[5, 6, 7], [8, 9, 10]], Generation(max_tokens=12, ignore_eos=True))
        found[name] = str(path)
    return found


def row(arm: str, trace: str | None, **more: Any) -> dict[str, Any]:
    policy = {"stream": "none", "lru": "lru"}.get(arm, "benefit")
    depth = 2 if arm.startswith(("sd", "auto")) else 0
    return {
        "model": "tiny", "arm": arm, "fast_bytes": FAST_BYTES, "batch": 2, "policy": policy, "decode_tok_s": 500.0,
        "depth": depth, "trace": trace, "slow_bytes_per_token": 1e6,
    } | more  # fmt: skip


@pytest.fixture
def rows(traces: dict[str, str]) -> list[dict[str, Any]]:
    return [
        row("stream", None),
        row("ar", traces["ar"]),
        row("sd 2", traces["sd 2"], quotas=[100, 25]),
        row("auto", None),
    ]


Run = Callable[..., str]


@pytest.fixture
def run(bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["tiers_validation.py", *map(str, arguments)])
        bench.main()
        return capsys.readouterr().out

    return call


def test_arms_that_decode_the_same_tokens_are_predicted(bench: Any, rows: list[dict[str, Any]]) -> None:
    found = {one["arm"]: one for one in bench.compare(rows, load_host(str(MACHINE)), 0)}
    assert list(found) == ["stream", "ar", "sd 2"], "auto has no trace"
    assert found["ar"]["gain_predicted"] == found["ar"]["gain_measured"] == 1
    assert found["stream"]["gain_predicted"] < 1
    assert found["stream"]["slow_bytes_per_token_predicted"] > found["ar"]["slow_bytes_per_token_predicted"]
    assert found["sd 2"]["lsb_share"] == 0.25
    assert set(found["sd 2"]["passes"]) >= {"draft", "verify"}
    assert found["ar"]["error"] == pytest.approx(found["ar"]["tok_s_predicted"] / 500 - 1)


def test_the_disk_is_as_fast_as_the_probe_beside_the_run(bench: Any, rows: list[dict[str, Any]]) -> None:
    host = load_host(str(MACHINE))
    slow, fast = (
        bench.compare([rows[1] | {"probe_gb_per_s": rate}], host, 0)[0]["tok_s_predicted"] for rate in (0.1, 10.0)
    )
    assert fast > 3 * slow


def test_what_was_read_in_vain_takes_the_disks_time(bench: Any, rows: list[dict[str, Any]]) -> None:
    host = load_host(str(MACHINE))
    counters = {"msb_misses": 60, "lsb_misses": 40, "prefetched": 30, "prefetch_used": 10}
    right, vain = (bench.compare([rows[1] | more], host, 0)[0] for more in ({}, {"counters": counters}))
    assert (right["wasted"], vain["wasted"]) == (0, 0.2)
    assert vain["tok_s_predicted"] < right["tok_s_predicted"]
    ratio = vain["slow_bytes_per_token_predicted"] / right["slow_bytes_per_token_predicted"]
    assert ratio == pytest.approx(1.2)


def test_caches_that_have_seen_the_prompts(bench: Any, rows: list[dict[str, Any]]) -> None:
    host = load_host(str(MACHINE))
    cold, warm = (bench.compare(rows[1:2], host, rounds)[0]["tok_s_predicted"] for rounds in (0, 2))
    assert warm > cold


def test_files_and_the_table(bench: Any, rows: list[dict[str, Any]], run: Run, tmp_path: Path) -> None:
    results = tmp_path / "tiers.json"
    results.write_text(json.dumps({"rows": rows, "settings": {"rounds": 1}}))
    out = run(results, "--name", "made_up")
    assert "| tiny, 0.02 GB, batch 2 | ar |" in out
    assert "Within 15 %:" in out
    document = json.loads((tmp_path / "made_up.json").read_text())
    assert len(document["rows"]) == 3
    assert document["settings"]["rounds_before"] == 1
    assert document["host"]["slow"]["read_1m_gb_per_s"]["unit"] == "GB/s"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("not JSON", "holds no results"),
        ("{}", "holds no results"),
        ('{"rows": []}', "no row of .* has a trace"),
        ('{"rows": [{"model": "x"}]}', "a row has no 'arm'"),
    ],
)
def test_results_that_cannot_be_read(run: Run, tmp_path: Path, document: str, message: str) -> None:
    results = tmp_path / "tiers.json"
    results.write_text(document)
    with pytest.raises(SystemExit, match=message):
        run(results)
    with pytest.raises(SystemExit, match=r"nothing.json holds no results"):
        run(tmp_path / "nothing.json")


def test_a_policy_of_the_future(bench: Any, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(SystemExit, match="knows no policy 'oracle'"):
        bench.compare([rows[1] | {"policy": "oracle"}], load_host(str(MACHINE)), 0)
