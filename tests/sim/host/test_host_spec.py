from __future__ import annotations

from pathlib import Path
from typing import Any

import host_files
import numpy as np
import pytest

from elmoe.errors import ConfigError
from elmoe.sim.host.spec import host_from_table, is_host, load_host
from elmoe.sim.spec import load_machine

EXAMPLE = Path(__file__).parents[3] / "src" / "elmoe" / "sim" / "specs" / "measured" / "this-machine.toml"


def test_the_example_is_a_host() -> None:
    found = load_host(str(EXAMPLE))
    assert is_host(str(EXAMPLE))
    sources = [entry.source for section in found.quantities().values() for entry in section.values()]
    assert any("bench/this_machine.py" in source for source in sources)
    assert 1 < found.fast.gb_per_s / found.slow.read_1m_gb_per_s < 1000, "RAM is faster than the disk"


def test_accelerators_are_no_hosts() -> None:
    assert not is_host("elmoe-3d")


def test_only_hosts_are_taken_for_hosts(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "elmoe-3d"\n')
    assert not is_host(str(path))
    path.write_text(host_files.to_toml(host_files.table()))
    assert is_host(str(path))
    assert load_host(str(path)) == host_files.host()
    with pytest.raises(ConfigError, match=r"mine.toml describes a host, not an accelerator"):
        load_machine(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guest"}, "kind must be 'host', not 'guest'"),
        ({"fast": 3}, r"\[fast\] must be a table"),
        ({"disk": {}}, "unknown field 'disk'"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"my.toml: {message}"):
        host_from_table(host_files.table() | change, "my.toml")


def test_what_is_missing_is_named() -> None:
    table = host_files.table()
    del table["slow"]["latency_us"]
    with pytest.raises(ConfigError, match=r"my.toml: slow: latency_us is missing"):
        host_from_table(table, "my.toml")
    del table["slow"]
    with pytest.raises(ConfigError, match=r"my.toml: slow is missing; let bench/this_machine.py write"):
        host_from_table(table, "my.toml")


def test_a_wrong_unit_is_refused() -> None:
    table = host_files.table()
    table["fast"]["gb_per_s"]["unit"] = "MB/s"
    with pytest.raises(ConfigError, match=r"my.toml: fast.gb_per_s: is in 'GB/s', not 'MB/s'"):
        host_from_table(table, "my.toml")


def test_reads_between_and_beyond_the_measured_sizes() -> None:
    rates = {"read_16k_gb_per_s": 1.0, "read_64k_gb_per_s": 2.0, "read_256k_gb_per_s": 2.0}
    slow = host_files.host(slow=rates | {"read_1m_gb_per_s": 2.0, "read_4m_gb_per_s": 2.0}).slow
    sizes = np.array([0.0, 1.0, 16384.0, 40960.0, 65536.0, 8388608.0])
    assert slow.read_ns(sizes) == pytest.approx([0, 16384, 16384, (16384 + 32768) / 2, 32768, 4194304])


def test_kernels_between_and_beyond_the_measured_rows() -> None:
    rates = {"rows_1": 10.0, "rows_2": 20.0, "rows_4": 20.0}
    kernel = host_files.host(target=rates | {f"rows_{rows}": 20.0 for rows in (8, 16, 32, 64)}).target
    rows = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 64.0, 128.0])
    assert kernel.weight_ns(rows) == pytest.approx([0, 0.1, 0.1, 0.15, 0.2, 3.2, 6.4])


def test_reading_hides_behind_computing_as_the_power_says() -> None:
    read, compute = np.array([3.0, 0.0, 2.0, 0.0]), np.array([4.0, 4.0, 0.0, 0.0])
    assert host_files.host(fast={"overlap_power": 2.0}).fast.streamed_ns(read, compute) == pytest.approx([5, 4, 2, 0])
    assert host_files.host(fast={"overlap_power": 1.0}).fast.streamed_ns(read, compute) == pytest.approx([7, 4, 2, 0])


def test_a_pace_changes_rates_and_times_of_what_it_is_about() -> None:
    before = host_files.host(
        fast={"gb_per_s": 40.0}, slow={"latency_us": 100.0, "read_1m_gb_per_s": 1.0}, work={"layer_us": 4.0}
    )
    after = before.at_pace(fast=0.5, slow=2.0, compute=4.0)
    assert (after.fast.gb_per_s, after.fast.capacity_gb) == (20.0, before.fast.capacity_gb)
    assert (after.slow.latency_us, after.slow.read_1m_gb_per_s) == (50.0, 2.0)
    assert (after.slow.queue, after.slow.capacity_gb) == (before.slow.queue, before.slow.capacity_gb)
    assert after.work.layer_us == 1.0
    assert after.target.rows_1 == 4 * before.target.rows_1
    assert after.engine.prefetch_share == before.engine.prefetch_share
    assert "0.5 times the RAM's" in after.fast.quantities["gb_per_s"].source
    assert before.at_pace() == before
