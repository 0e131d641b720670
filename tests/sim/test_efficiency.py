"""The table of efficiencies: made by the DRAM model, shipped for the built-in devices, simulated for others."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from elmoe.errors import ConfigError
from elmoe.sim import efficiency as module
from elmoe.sim.dram import MAPPINGS, REFRESHES, Controller, load_device
from elmoe.sim.efficiency import CHUNKS, QUEUES, column_key, efficiency, fingerprint, simulate_column

pytestmark = pytest.mark.timeout(120)

NAMES = ("lpddr5-6400-x16", "hb-bank")
SETTINGS = list(product(NAMES, MAPPINGS, QUEUES, REFRESHES, (True, False)))


def look_up(  # one memory's share of peak
    *chunk_bytes: float,
    device: str = NAMES[0],
    mapping: str = "bgint64",
    queue: int = 32,
    refresh: str = "none",
    aligned: bool = True,
) -> npt.NDArray[np.float64]:
    asked = np.array(chunk_bytes, dtype=np.float64)
    return efficiency(device, mapping=mapping, queue=queue, refresh=refresh, chunk_bytes=asked, aligned=aligned)


def shipped() -> dict[str, dict[str, list[float]]]:
    """Device name -> column -> efficiencies."""
    text = (files("elmoe.sim") / "specs" / "efficiency.json").read_text(encoding="utf-8")
    return {name: json.loads(text)["devices"][fingerprint(load_device(name))] for name in NAMES}


# --- the shipped table ---


def test_the_table_is_whole() -> None:
    """For exactly the devices as they are now: change a timing, and bench/dram_efficiency.py must run again."""
    text = (files("elmoe.sim") / "specs" / "efficiency.json").read_text(encoding="utf-8")
    document = json.loads(text)
    assert document["chunk_bytes"] == list(CHUNKS)
    assert set(document["devices"]) == {fingerprint(load_device(name)) for name in NAMES}
    for columns in shipped().values():
        assert set(columns) == {column_key(*setting) for setting in product(MAPPINGS, QUEUES, REFRESHES, (True, False))}
        assert {len(column) for column in columns.values()} == {len(CHUNKS)}


@pytest.mark.parametrize(
    ("device", "mapping", "queue", "refresh", "aligned"),
    [
        ("lpddr5-6400-x16", "bgint64", 32, "none", False),
        ("lpddr5-6400-x16", "page", 8, "ab", True),
        ("lpddr5-6400-x16", "RoBaRaCoCh", 64, "pb", False),
        ("hb-bank", "bgint", 32, "none", False),
        ("hb-bank", "bgint", 16, "pb", True),
    ],
)
def test_the_table_is_what_the_model_says(
    monkeypatch: pytest.MonkeyPatch, device: str, mapping: str, queue: int, refresh: str, aligned: bool
) -> None:
    """At three sizes."""
    places = (0, 6, 12)
    column = shipped()[device][column_key(mapping, queue, refresh, aligned)]
    monkeypatch.setattr(module, "CHUNKS", tuple(CHUNKS[place] for place in places))
    found = simulate_column(load_device(device), Controller(mapping, queue, refresh), aligned)
    assert found == [column[place] for place in places]


def test_shares_are_between_nothing_and_all() -> None:
    values = np.array([column for columns in shipped().values() for column in columns.values()])
    assert values.min() > 0.04
    assert values.max() <= 1


def test_longer_chunks_are_better() -> None:
    """From 4 KB on, but for noise. Below, a chunk may sit in fewer bank groups and wait for them; where a page lies in
    one bank group (page, RoBaRaCoCh), short chunks keep more groups busy at once; and under per-bank refresh a long
    chunk may fill a short queue with requests to the bank that is away.
    """
    for name, columns in shipped().items():
        for key, column in columns.items():
            assert column[0] < 0.9 * max(column), f"{name} {key}"
            noise = 0.15 if "/pb/" in key else 0.02
            long = column[CHUNKS.index(4096) :]
            assert all(after >= before - noise for before, after in pairwise(long)), f"{name} {key}"
            if key.startswith("bgint"):
                assert max(column) <= column[-1] + noise, f"{name} {key}"


def test_refresh_costs_and_queues_help() -> None:
    """At 64 KB: all-bank refresh costs more than per-bank refresh; a deeper queue is no worse, but for noise."""
    size = float(2**16)
    for device, mapping, queue, aligned in product(NAMES, MAPPINGS, QUEUES, (True, False)):
        settings = {"device": device, "mapping": mapping, "aligned": aligned}
        none, ab = (look_up(size, queue=queue, refresh=refresh, **settings)[0] for refresh in ("none", "ab"))
        assert 0.85 * none < ab < none
        assert look_up(size, queue=queue, **settings)[0] >= look_up(size, queue=8, **settings)[0] - 0.01
    for refresh, least, most in (("none", 0.99, 1.0), ("pb", 0.94, 0.97), ("ab", 0.90, 0.93)):
        assert least < look_up(2.0**22, mapping="bgint", refresh=refresh)[0] < most


def test_a_chunk_shorter_than_a_burst_counts_only_what_is_wanted() -> None:
    """64 B of an HB bank's 128 B: half of what 128 B chunks get."""
    half, whole = look_up(64, 128, device="hb-bank", mapping="bgint")
    assert half == pytest.approx(whole / 2, abs=1e-4)


# --- looking up ---


@pytest.mark.parametrize(("device", "mapping", "queue", "refresh", "aligned"), SETTINGS[::7])
def test_at_the_tables_points_the_tables_values(
    device: str, mapping: str, queue: int, refresh: str, aligned: bool
) -> None:
    found = look_up(*CHUNKS, device=device, mapping=mapping, queue=queue, refresh=refresh, aligned=aligned)
    assert found.tolist() == shipped()[device][column_key(mapping, queue, refresh, aligned)]


def test_between_points_and_beyond_them() -> None:
    low, middle, high = look_up(1024, 1024 * 2**0.5, 2048)
    assert middle == pytest.approx((low + high) / 2)
    assert min(low, high) < middle < max(low, high)
    ends = look_up(0.5, 1, 64, 2**22, 2**23, 1e15)
    assert ends.tolist() == [ends[0]] * 3 + [ends[-1]] * 3
    assert ends[0] < ends[-1]
    assert look_up().shape == (0,)


@pytest.mark.parametrize("size", [0.0, -64.0, np.nan, np.inf])
def test_impossible_chunks(size: float) -> None:
    with pytest.raises(ConfigError, match="a chunk must be a positive number of bytes"):
        look_up(64, size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "lpddr6"}, "unknown DRAM device 'lpddr6'"),
        ({"device": "nowhere.toml"}, "nowhere.toml does not exist"),
        ({"mapping": "pages"}, "unknown mapping 'pages'; did you mean 'page'"),
        ({"refresh": "bank"}, "unknown refresh 'bank'"),
        ({"queue": 0}, "queue must be 1 to 1024, not 0"),
        ({"queue": 2000}, "queue must be 1 to 1024, not 2000"),
    ],
)
def test_memories_that_cannot_be(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        look_up(64, **settings)


# --- devices and settings beyond the table ---


def device_file(folder: Path, **changes: float) -> str:
    path = folder / "mine.toml"
    entries = load_device(NAMES[0]).quantities
    lines = [
        f'{name} = {{ value = {changes.get(name, entry.value)}, unit = "{entry.unit}", source = "x", status = "paper"}}'
        for name, entry in entries.items()
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_a_device_of_ones_own_is_simulated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BURSTS", 1000)
    asked: list[int] = []

    def count(*arguments: object) -> list[float]:
        asked.append(1)
        return simulate_column(*arguments)

    monkeypatch.setattr(module, "simulate_column", count)
    slow = look_up(64, 4096, device=device_file(tmp_path, rrd=40, faw=160))
    again = look_up(64, 4096, device=device_file(tmp_path, rrd=40, faw=160))
    assert slow.tolist() == again.tolist()
    assert len(asked) == 1
    assert slow[0] == pytest.approx(2 * 2 / 40, rel=0.05), "two reads of 2 clocks for each activation"
    changed = look_up(64, 4096, device=device_file(tmp_path, rrd=80, faw=320))
    assert changed[0] == pytest.approx(slow[0] / 2, rel=0.05), "the file has changed, and so has the answer"
    assert len(asked) == 2


def test_a_file_that_says_the_same_as_a_built_in_device_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(module, "simulate_column")
    assert look_up(4096, device=device_file(tmp_path)) == look_up(4096)


def test_another_queue_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """In between those of the table."""
    monkeypatch.setattr(module, "CHUNKS", (512, 8192))
    found = look_up(512, 8192, queue=12)
    monkeypatch.undo()
    assert (look_up(512, 8192, queue=8) < found).all()
    assert (found < look_up(512, 8192, queue=16)).all()


def test_the_fast_simulator_needs_no_compiler() -> None:
    """Every built-in system, in a fresh interpreter; numba would cost seconds on its first use."""
    code = (
        "import sys; from elmoe.cli.main import _exit_code; "
        "code = _exit_code(['simulate', '--system', 'all', '--json']); "
        "sys.exit(code or 'numba' in sys.modules and 3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
