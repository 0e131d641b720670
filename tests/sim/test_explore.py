"""Sweeps: every point once and in order, equal to the simulator's own rows, whatever arm, interruption and history."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.errors import BusyError, ConfigError, ElmoeError, StorageError
from elmoe.sim.explore import explore
from elmoe.sim.profile import named_profile, scheme_specs
from elmoe.sim.run import Query, rows
from elmoe.sim.spec import load_machine
from elmoe.sim.sweep import Sweep
from elmoe.sim.sweep_file import load_sweep
from elmoe.sim.sweep_rows import MINIMISE, RESULTS, SCENARIO, evaluate_chunk, pareto
from elmoe.sim.workers import Arm, in_process, processes, ray
from elmoe.sim.write_rows import flatten

Make = Callable[[str], Sweep]
Row = dict[str, Any]

SMALL = """
systems = ["xpu", "elmoe-3d"]
schemes = ["none", "elastic"]
hb_gb = [4, 8]
batches = [1, 4]
[vary]
"ext.gb_per_s" = [51.2, 102.4]
"hb.energy_pj_per_bit" = [0.2, 0.4, 0.8]
"""
SMALL_POINTS = 2 * 2 * 2 * 2 * (1 + 3)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def written(text: str) -> Sweep:
        path = tmp_path / "sweep.toml"
        path.write_text(text, encoding="utf-8")
        return load_sweep(path)

    return written


@pytest.fixture
def small(make: Make, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep of several chunks."""
    monkeypatch.setattr("elmoe.sim.sweep.CHUNK_CASES", 5)
    return make(SMALL)


def table(sweep: Sweep) -> list[Row]:
    return [row for chunk in sweep.chunks() for row in evaluate_chunk(sweep, chunk).to_pylist()]


# --- points ---


def test_all_combinations_in_a_fixed_order(make: Make) -> None:
    found = table(make(SMALL))
    names = ("system", "hb_gb", "ext.gb_per_s", "hb.energy_pj_per_bit", "scheme", "batch")
    wanted = [
        *product(["xpu"], [4, 8], [51.2, 102.4], [None], ["none", "elastic"], [1, 4]),
        *product(["elmoe-3d"], [4, 8], [51.2, 102.4], [0.2, 0.4, 0.8], ["none", "elastic"], [1, 4]),
    ]
    assert [tuple(row[name] for name in names) for row in found] == wanted
    assert len(wanted) == make(SMALL).points == SMALL_POINTS
    assert {(row["scheme"], row["mode"]) for row in found} == {("none", "ar"), ("elastic", "sd")}


def test_an_empty_sweep_is_what_simulate_does_by_default(make: Make) -> None:
    (row,) = table(make(""))
    told = {name: row[name] for name in ("model", "system", "scheme", "mode", "hb_gb", "batch", "context", "workload")}
    assert told == {
        **{"model": "qwen3-30b-a3b", "system": "elmoe-3d", "scheme": "elastic", "mode": "sd", "hb_gb": 4.0},
        **{"batch": 1, "context": 1024, "workload": "mt-bench"},
    }


def test_columns_are_those_of_simulate_to_the_bit(make: Make) -> None:
    sweep = make("""
models = ["qwen3-30b-a3b", "gpt-oss-20b"]
systems = ["xpu", "xpu-pim", "xpu-nmp", "hb-xpu", "elmoe-3d"]
schemes = ["none", "eagle", "slm", "quant", "elastic"]
modes = ["ar", "sd"]
hb_gb = [8]
batches = [1, 3, 16]
contexts = [512, 4096]
workloads = ["gsm8k"]
acceptance = [0.5]
""")
    made: list[Row] = []
    for chunk in sweep.chunks():
        for case in chunk.cases:
            model, design = sweep.models[case.model], case.design
            profile = named_profile(model, "gsm8k", scheme_specs())
            machine = load_machine(design.system).with_hb_gb(8)
            query = Query(
                machine, model, profile, "gsm8k", design.scheme, design.mode, case.batches, sweep.contexts, 0.5
            )
            made += [flatten(row) for row in rows([query])]
    found = table(sweep)
    assert len(found) == len(made) == 2 * 5 * 9 * 6
    for ours, theirs in zip(found, made, strict=True):
        assert ours["problem"] is None
        left_out = ("phases.", "speedup_vs_ar")
        expected = {name: value for name, value in theirs.items() if not name.startswith(left_out)}
        assert {name: value for name, value in ours.items() if name not in ("acceptance", "problem")} == expected


def test_blocks_of_batches_change_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "batches = [1, 2, 3, 5, 8]\ncontexts = [512, 1024]"
    whole = table(make(text))
    monkeypatch.setattr("elmoe.sim.sweep.CASE_POINTS", 4)
    assert [len(case.batches) for chunk in make(text).chunks() for case in chunk.cases] == [2, 2, 1]
    assert table(make(text)) == whole


def test_a_varied_field_is_that_field_of_a_machine_file(make: Make, tmp_path: Path) -> None:
    said = 'unit = "GB/s", source = "test", status = "assumed" }'
    mine = tmp_path / "mine.toml"
    mine.write_text(f'base = "elmoe-3d"\nname = "mine"\n[ext]\ngb_per_s = {{ value = 204.8, {said}', encoding="utf-8")
    (ours,) = table(make('systems = ["elmoe-3d"]\n[vary]\next.gb_per_s = [204.8]'))
    (theirs,) = table(make(f'systems = ["{mine}"]'))
    assert {name: ours[name] for name in RESULTS} == {name: theirs[name] for name in RESULTS}
    assert ours["ext.gb_per_s"] == 204.8


def test_varied_fields_are_applied_after_hb_gb_and_say_so(make: Make) -> None:
    sweep = make('hb_gb = [8]\n[vary.hb]\ngb_per_s = { values = [500], unit = "GB/s" }\n[vary.compute]\npes = [20]')
    (design,) = sweep.designs()
    machine = sweep.machine(design)
    assert machine.hb is not None
    assert (machine.hb.gb_per_s, machine.hb.capacity_gb, machine.hb.channels, machine.compute.pes) == (500, 8, 32, 20)
    entry = machine.quantities()["hb"]["gb_per_s"]
    assert (entry.value, entry.unit, entry.source, entry.status.value) == (500.0, "GB/s", "sweep", "assumed")
    assert isinstance(design.settings[0][1], float)


def test_a_scheme_none_is_one_design_whatever_the_modes(make: Make) -> None:
    found = table(make('schemes = ["none", "quant"]\nmodes = ["ar", "sd"]'))
    assert [(row["scheme"], row["mode"]) for row in found] == [("none", "ar"), ("quant", "ar"), ("quant", "sd")]


def test_points_that_cannot_be_are_rows_with_a_problem(make: Make) -> None:
    sweep = make('hb_gb = [1, 4]\nbatches = [512, 1]\ncontexts = [1024, 8192]\nschemes = ["none"]')
    found = {(row["hb_gb"], row["batch"], row["context"]): row for row in table(sweep)}
    assert len(found) == 8
    assert all("do not fit 1 GB of HB" in found[1, b, c]["problem"] for b, c in product((1, 512), (1024, 8192)))
    assert "GB at batch 512 and context 1024 do not fit 64 GB of external memory" in found[4, 512, 8192]["problem"]
    assert found[4, 512, 8192]["latency_ms_per_token"] is None
    for alone in table(make('hb_gb = [4]\nbatches = [1]\ncontexts = [1024, 8192]\nschemes = ["none"]')):
        assert found[4, 1, alone["context"]] == alone


def test_a_context_beyond_one_of_the_models_is_a_problem_of_that_one(make: Make) -> None:
    found = table(make('models = ["qwen3-30b-a3b", "gpt-oss-20b"]\ncontexts = [1024, 200000]\n'))
    told = {(row["model"], row["context"]): row["problem"] for row in found}
    assert [why for why in told.values() if why] == ["context 200000 is beyond 131072, the most for gpt-oss-20b"]


def test_no_speedup_where_the_baseline_does_not_fit(make: Make) -> None:
    found = table(make('batches = [1, 512]\n[vary]\n"ext.capacity_gb" = [1000]'))
    assert [row["speedup_vs_xpu"] is None for row in found] == [False, True]
    assert all(row["latency_ms_per_token"] > 0 and row["problem"] is None for row in found)


# --- the front ---


def test_pareto_by_hand() -> None:
    same = dict.fromkeys(SCENARIO, "same")
    goals = [(3, 1), (2, 2), (2, 2), (2, 3), (1, 9), (1, 8), (None, None)]
    some = [same | dict(zip(MINIMISE, pair, strict=True)) for pair in goals]
    other = same | {"batch": "other"} | dict(zip(MINIMISE, (9, 9), strict=True))
    assert pareto([*some, other]) == [True, True, True, False, False, True, False, True]
    assert pareto(some, MINIMISE[:1]) == [False] * 4 + [True, True, False]
    assert pareto([]) == []


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=12))
def test_pareto_is_nobody_dominates(points: list[tuple[int, ...]]) -> None:
    found = pareto([dict(zip("abc", point, strict=True)) for point in points], "abc")
    for point, mark in zip(points, found, strict=True):
        beaten = any(other != point and all(np.less_equal(other, point)) for other in points)
        assert mark == (not beaten)


# --- running ---


def stops_after(count: int) -> Arm:
    """An arm that is interrupted."""

    def evaluate(sweep: Sweep, chunks: Any) -> Iterator[Any]:
        yield from list(in_process(sweep, chunks))[:count][::-1]
        raise KeyboardInterrupt

    return evaluate


def test_an_output_with_all_rows_its_front_and_what_it_follows_from(small: Sweep, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = explore(small, tmp_path / "out.parquet", on_progress=lambda *there: told.append(there))
    written = pq.read_table(tmp_path / "out.parquet")
    made = written.to_pylist()
    assert (found.points, found.done, found.problems) == (SMALL_POINTS, SMALL_POINTS, 0)
    assert [{name: row[name] for name in row if name != "pareto"} for row in made] == table(small)
    assert [row["pareto"] for row in made] == pareto(made)
    assert found.pareto == sum(row["pareto"] for row in made) > 0
    assert told[0] == (0, SMALL_POINTS)
    assert told[-1] == (SMALL_POINTS, SMALL_POINTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "sweep.toml"]
    config = json.loads(written.schema.metadata[b"elmoe"])
    assert config["sweep"]["vary"]["ext.gb_per_s"] == [51.2, 102.4]
    assert config["machines"]["elmoe-3d"]["hb"]["gb_per_s"]["unit"] == "GB/s"
    assert config["models"]["qwen3-30b-a3b"]["experts"] == 128
    assert config["devices"]["hb-bank"]


def test_an_interrupted_run_continues_and_the_bytes_are_the_same(small: Sweep, tmp_path: Path) -> None:
    plain, broken = tmp_path / "plain.parquet", tmp_path / "broken.parquet"
    explore(small, plain)
    chunks = list(small.chunks())
    with pytest.raises(KeyboardInterrupt):
        explore(small, broken, stops_after(2))
    assert len(list((tmp_path / "broken.parquet.parts").glob("*.parquet"))) == 2
    assert not broken.exists()
    told: list[tuple[int, int]] = []
    found = explore(small, broken, on_progress=lambda *there: told.append(there))
    there = sum(chunk.points for chunk in chunks[:2])
    assert told[0] == (there, SMALL_POINTS)
    assert (found.points, found.done) == (SMALL_POINTS, SMALL_POINTS - there)
    assert broken.read_bytes() == plain.read_bytes()
    assert not (tmp_path / "broken.parquet.parts").exists()


def test_processes_give_the_same_bytes(small: Sweep, tmp_path: Path) -> None:
    explore(small, tmp_path / "one.parquet")
    explore(small, tmp_path / "two.parquet", processes(2))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_a_changed_sweep_starts_anew(small: Sweep, make: Make, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt):
        explore(small, output, stops_after(2))
    changed = make(SMALL.replace("51.2", "52.0"))
    found = explore(changed, output)
    assert found.done == found.points
    assert pq.read_table(output)["ext.gb_per_s"].to_pylist()[0] == 52.0


def test_nothing_is_left_where_nothing_was_done(small: Sweep, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        explore(small, tmp_path / "out.parquet", stops_after(0))
    assert not (tmp_path / "out.parquet.parts").exists()


def test_two_runs_for_one_output(small: Sweep, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"

    def meanwhile(sweep: Sweep, chunks: Any) -> Iterator[Any]:
        with pytest.raises(BusyError, match="is in use by another run; wait for it or choose another output"):
            explore(sweep, output)
        yield from in_process(sweep, chunks)

    assert explore(small, output, meanwhile).points == SMALL_POINTS


def test_what_is_not_ours_is_not_removed(small: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "out.parquet.parts"
    folder.mkdir()
    (folder / "thesis.tex").write_text("dear", encoding="utf-8")
    with pytest.raises(StorageError, match=r"holds thesis.tex, which no sweep wrote; move it"):
        explore(small, tmp_path / "out.parquet")
    assert (folder / "thesis.tex").exists()


def test_a_damaged_part_is_named(small: Sweep, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt):
        explore(small, output, stops_after(1))
    (part,) = (tmp_path / "out.parquet.parts").glob("*.parquet")
    part.write_bytes(b"PAR1")
    with pytest.raises(StorageError, match=rf"{part.name} is damaged .*; remove it, and the same command makes it"):
        explore(small, output)
    part.unlink()
    assert explore(small, output).done < SMALL_POINTS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("out.csv", "a sweep is written as .parquet"),
        ("out", "a sweep is written as .parquet"),
        ("folder.parquet", "is a folder; give the name of a file"),
        ("nowhere/out.parquet", "No such file or directory"),
    ],
)
def test_outputs_that_cannot_be(small: Sweep, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ElmoeError, match=text):
        explore(small, tmp_path / name)


def test_a_killed_run_leaves_no_workers_and_continues(tmp_path: Path) -> None:
    values = ", ".join(str(100 + value) for value in range(1000))
    (tmp_path / "sweep.toml").write_text(f'[vary]\n"ext.gb_per_s" = [{values}]', encoding="utf-8")
    command = [sys.executable, "-c", "from elmoe.cli.main import main; main()", "explore", "sweep.toml"]
    with subprocess.Popen([*command, "-o", "out.parquet", "--workers", "2"], cwd=tmp_path) as run:
        wait_until(lambda: any((tmp_path / "out.parquet.parts").glob("*.parquet")))
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text(encoding="ascii").split()
        run.send_signal(signal.SIGKILL)
    assert len(children) >= 2
    wait_until(lambda: not any(is_alive(int(child)) for child in children))
    done = subprocess.run([*command, "-o", "out.parquet", "--json"], cwd=tmp_path, capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert 0 < found["done"] < found["points"] == 1000
    assert len(set(pq.read_table(tmp_path / "out.parquet")["ext.gb_per_s"].to_pylist())) == 1000


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def test_thousands_of_points_per_second(make: Make) -> None:
    table(make(""))  # imports, tables
    values = ", ".join(map(str, range(50, 150)))
    sweep = make(f'batches = [1, 2, 4, 8]\ncontexts = [512, 1024, 2048, 4096]\n[vary]\n"ext.gb_per_s" = [{values}]')
    started = time.process_time()
    for chunk in sweep.chunks():
        evaluate_chunk(sweep, chunk)
    assert sweep.points / (time.process_time() - started) > 1000


# --- Ray ---


class FakeCluster(ModuleType):
    """As much of Ray as the arm uses; tasks end in reverse order."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.log: list[str] = []

    def init(self, address: str, **options: Any) -> None:
        self.log.append(f"init {address}")
        if address == "auto":
            raise ConnectionError("Could not find any running Ray instance")

    def shutdown(self) -> None:
        self.log.append("shutdown")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, function: Any) -> Any:
        return SimpleNamespace(remote=lambda *given: partial(function, *given))

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        self.log.append(f"wait {len(references)}")
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference: Any) -> Any:
        return reference()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    made = FakeCluster()
    monkeypatch.setitem(sys.modules, "ray", made)
    return made


def test_the_ray_arm_gives_the_same_bytes(small: Sweep, tmp_path: Path, cluster: FakeCluster) -> None:
    plain = tmp_path / "plain.parquet"
    explore(small, plain)
    found = explore(small, tmp_path / "ray.parquet", ray("local"))
    assert found.done == SMALL_POINTS
    assert (tmp_path / "ray.parquet").read_bytes() == plain.read_bytes()
    assert (cluster.log[0], cluster.log[-1]) == ("init local", "shutdown")
    assert cluster.log[1] == "wait 2", "two tasks ahead per processor, no more"


def test_no_cluster_is_one_clear_error(small: Sweep, tmp_path: Path, cluster: FakeCluster) -> None:
    for address in ("auto", "127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(ConfigError, match=rf"--ray {address}: no cluster there \(.+\); use local, or --workers"):
            explore(small, tmp_path / "ray.parquet", ray(address))
    assert not (tmp_path / "ray.parquet.parts").exists()


def test_without_ray_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install elmoe\[ray\], or use --workers"):
        ray("local")


@pytest.mark.filterwarnings("ignore")
def test_a_real_ray_gives_the_same_bytes(small: Sweep, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    explore(small, tmp_path / "plain.parquet")
    explore(small, tmp_path / "ray.parquet", ray("local"))
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "plain.parquet").read_bytes()
