"""The probes that describe this computer to the simulator."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elmoe.sim.host.spec import KERNEL_ROWS, SECTIONS, host_from_table

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import probe_passes

    return probe_passes


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import this_machine

    return this_machine


def test_costs_are_found_again(probes: Any) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 100, (40, 3)).astype(float)
    costs = np.array([5.0, 0.0, 0.02])
    assert probes.nonnegative_fit(sizes, sizes @ costs) == pytest.approx(costs, abs=1e-9)


def test_no_cost_is_negative(probes: Any) -> None:
    sizes = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    found = probes.nonnegative_fit(sizes, np.array([3.0, 2.0, 1.0]))
    assert (found >= 0).all()
    assert found[1] == 0


def test_interruptions_do_not_count(probes: Any) -> None:
    assert probes.usual([1.0] * 50 + [30.0] * 50) == 1.0


def test_the_power_of_the_overlap_is_found_again(machine: Any) -> None:
    tables = {
        "target": {f"rows_{rows}": 100.0 for rows in KERNEL_ROWS},
        "draft": {f"rows_{rows}": 200.0 for rows in KERNEL_ROWS},
    }
    for power in (1.0, 2.5, 6.0):
        streamed = {}
        for name, kind in machine.KERNELS.items():
            for rows in KERNEL_ROWS:
                read, compute = 0.04, rows / tables[name][f"rows_{rows}"]
                together = (read**power + compute**power) ** (1 / power)
                streamed[machine.kernels.Case("dram", kind, rows)] = [machine.Product(together, 0.04, 1.0)]
        assert machine.overlap_power(tables, streamed) == pytest.approx(power)


def test_the_file_says_where_every_number_comes_from(machine: Any) -> None:
    tables = {
        section: {name: 1 for name, item in kind.__dataclass_fields__.items() if item.metadata}
        for section, kind in SECTIONS.items()
    }
    text = machine.to_toml(tables, "measured on a day by a test")
    found = host_from_table(tomllib.loads(text), "test")
    assert found.name == "this-machine"
    sources = {name: {entry.source for entry in each.values()} for name, each in found.quantities().items()}
    assert sources["slow"] == {"measured on a day by a test"}
    assert sources["engine"] == {"measured on a day by a test", "given to bench/this_machine.py"}
    assert json.dumps(found.as_tables())


def test_a_place_that_is_not_there(machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["this_machine.py", "--disk", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="nowhere is no folder; give one on the disk"):
        machine.main()


def test_probe_models_give_costs(probes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run: every cost is there, none is negative, and those that no machine is without are above zero."""
    few = {"SEQUENCES": 4, "LONG": 64, "IN_A_ROW": 1, "AR_ROWS": (1, 2, 4), "CHAINS": (3,)}
    few |= {"ENGINE_ARMS": ((1, 0, 0), (2, 0, 0), (1, 1, 2), (2, 1, 2))}
    for name, value in few.items():
        monkeypatch.setattr(probes, name, value)
    with probes.probe_backends() as backends:
        work = probes.row_work(backends, lambda rows: np.asarray(rows) / 300.0, rounds=1)
        engine = probes.engine_work(backends[:1], rounds=1)
    declared = {name for name, item in SECTIONS["work"].__dataclass_fields__.items() if item.metadata}
    assert set(work) == declared - {"threads", "check_gb_per_s"}
    assert min(work.values()) >= 0
    assert work["pass_us"] > 0
    assert set(engine) == {"step_us", "pass_us", "row_us", "pool_ns"}
    assert sum(engine.values()) > 0
