"""Devices and controllers as data, address mappings, and whole streams through several channels."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from elmoe.errors import ConfigError
from elmoe.sim.dram import MAPPINGS, REFRESHES, Controller, DramDevice, DramResult, decode, load_device, run
from elmoe.sim.request_stream import stream

pytestmark = pytest.mark.timeout(120)

LPDDR5, HB = load_device("lpddr5-6400-x16"), load_device("hb-bank")
DEVICES = [pytest.param(LPDDR5, id="lpddr5"), pytest.param(HB, id="hb")]


def reads(device: DramDevice, pattern: str, bursts: int, controller: Controller | None = None) -> DramResult:
    """Run a stream over everything that the controller drives."""
    controller = controller or Controller()
    capacity = device.bursts * controller.ranks * controller.channels
    return run(device, controller, stream(pattern, bursts, device.burst_bytes, capacity, seed=1))


# --- devices and controllers as data ---


@pytest.mark.parametrize("device", DEVICES)
def test_built_in_devices_are_whole_and_consistent(device: DramDevice) -> None:
    assert device.gb_per_s == pytest.approx(device.burst_bytes / (device.bl * device.clock_ns))
    assert device.rc == device.ras + device.rp
    assert all(entry.source for entry in device.quantities.values())
    assert device.columns * device.burst_bytes == device.row_bytes
    assert device.bursts * device.burst_bytes == device.capacity_gib * 2**30


def test_the_reference_runs_device() -> None:
    assert (LPDDR5.groups, LPDDR5.banks_per_group, LPDDR5.columns, LPDDR5.bursts) == (4, 4, 64, 2**26)
    assert (LPDDR5.bl, LPDDR5.ccd_l, LPDDR5.rcd, LPDDR5.rp, LPDDR5.ras, LPDDR5.rc) == (2, 4, 15, 15, 34, 49)
    assert (LPDDR5.rrd, LPDDR5.faw, LPDDR5.cl) == (4, 16, 17)
    in_ns = [clocks * LPDDR5.clock_ns for clocks in (LPDDR5.rfc_ab, LPDDR5.rfc_pb, LPDDR5.refi, LPDDR5.refi_pb)]
    assert in_ns == pytest.approx([280, 140, 3906, 488], abs=1)


def written(device: DramDevice, folder: Path, **changes: object) -> str:
    """A device's TOML file, with some values changed."""
    path = folder / "mine.toml"
    entries = {name: (changes.get(name, entry.value), entry.unit) for name, entry in device.quantities.items()}
    lines = [
        f'{name} = {{ value = {value}, unit = "{unit}", source = "a test", status = "assumed" }}'
        for name, (value, unit) in entries.items()
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_a_device_of_ones_own(tmp_path: Path) -> None:
    found = load_device(written(LPDDR5, tmp_path, rcd=20))
    assert found == LPDDR5.changed("a test", rcd=20)
    assert found != LPDDR5
    assert load_device(written(LPDDR5, tmp_path)) == LPDDR5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 3}, "DRAM device: groups = 3 is not a power of two"),
        ({"row_bytes": 3000}, "row_bytes = 3000 is not a power of two"),
        ({"row_bytes": 32}, "a row of 32 B holds no two bursts of 32 B"),
        ({"capacity_gib": 2**-20}, "hold no row for each of 16 banks"),
        ({"capacity_gib": 2**40}, "capacity_gib: must be at most 1.04858e+06"),
        ({"rcd": 100_001}, "rcd is above 100000 clocks; check the unit"),
        ({"rcd": 0}, "rcd: must be above 0, not 0"),
        ({"aad": -1}, "aad: must be at least 0, not -1"),
        ({"rcd": 1.5}, "rcd: 1.5 is not an integer"),
        ({"rfc_ab": 3125}, "no time beside refreshes; rfc_ab must be below refi"),
        ({"rfc_pb": 16 * 390}, "rfc_pb below refi_pb x banks"),
    ],
)
def test_devices_that_cannot_be(tmp_path: Path, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_device(written(LPDDR5, tmp_path, **changes))


def test_device_names_and_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown DRAM device 'hb-bnk'; did you mean 'hb-bank'\?; or give a .toml"):
        load_device("hb-bnk")
    with pytest.raises(ConfigError, match=r"nowhere.toml does not exist"):
        load_device("nowhere.toml")
    path = tmp_path / "mine.toml"
    path.write_text('rdc = { value = 1, unit = "clock", source = "x", status = "assumed" }', encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown field 'rdc'; did you mean 'rc'"):
        load_device(str(path))
    path.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="clock_ns is missing; give it a value, unit, source and status"):
        load_device(str(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mapping": "bgin"}, "unknown mapping 'bgin'; did you mean 'bgint'?"),
        ({"refresh": "all"}, "unknown refresh 'all'"),
        ({"queue": 0}, "queue must be 1 to 1024, not 0"),
        ({"queue": 1025}, "queue must be 1 to 1024, not 1025"),
        ({"ranks": 3}, "ranks must be a power of two up to 1024, not 3"),
        ({"ranks": 0}, "ranks must be a power of two up to 1024, not 0"),
        ({"channels": 6}, "channels must be a power of two up to 1024, not 6"),
        ({"channels": 2**40}, "channels must be a power of two up to 1024"),
        ({"gap": 0}, "gap must be 1 to 100000 clocks, not 0"),
        ({"gap": 2**53}, "gap must be 1 to 100000 clocks"),
    ],
)
def test_controllers_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Controller(**settings)


def test_an_empty_stream_has_no_bandwidth() -> None:
    with pytest.raises(ConfigError, match="an empty stream of requests has no bandwidth"):
        run(LPDDR5, Controller(), np.zeros(0, np.int64))


# --- mappings ---


@pytest.mark.parametrize(
    ("mapping", "lanes"),
    [
        ("bgint", [0, 1, 2, 3, 0, 1, 2, 3]),
        ("bgint64", [0, 0, 1, 1, 2, 2, 3, 3]),
        ("page", [0] * 8),
        ("RoBaRaCoCh", [0] * 8),
    ],
)
def test_neighbours(mapping: str, lanes: list[int]) -> None:
    """Bank groups of the first bursts; they all lie in row 0 of the first bank of their group."""
    found = decode(LPDDR5, Controller(mapping=mapping, ranks=2), np.arange(8))
    assert found.lane.tolist() == lanes
    assert (found.bank == 4 * found.lane).all()
    assert not found.row.any()
    assert not found.rank.any()


@pytest.mark.parametrize(
    ("mapping", "order"),
    [
        ("bgint", {4 * 64: "bank", 4 * 64 * 4: "rank", 4 * 64 * 4 * 2: "row"}),
        ("bgint64", {2: "lane", 4 * 64: "bank", 4 * 64 * 4: "rank", 4 * 64 * 4 * 2: "row"}),
        ("page", {64: "rank", 64 * 2: "lane", 64 * 2 * 4: "bank", 64 * 2 * 4 * 4: "row"}),
        ("RoBaRaCoCh", {64: "rank", 64 * 2: "lane", 64 * 2 * 4: "bank", 64 * 2 * 4 * 4: "row"}),
    ],
)
def test_what_a_step_of_the_address_changes(mapping: str, order: dict[int, str]) -> None:
    """Of rank, lane within the rank, bank within the lane, and row; only one."""
    found = decode(LPDDR5, Controller(mapping=mapping, ranks=2), np.array([0, *order]))
    parts = {"rank": found.rank, "lane": found.lane % 4, "bank": found.bank % 4, "row": found.row}
    for place, name in enumerate(order.values(), 1):
        assert {part: int(values[place]) for part, values in parts.items() if values[place]} == {name: 1}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_mappings_fill_every_row_once(device: DramDevice, mapping: str, ranks: int) -> None:
    banks = ranks * 16
    found = decode(device, Controller(mapping=mapping, ranks=ranks), np.arange(3 * banks * device.columns))
    assert np.bincount(found.bank * 3 + found.row).tolist() == [device.columns] * (3 * banks)
    assert (found.lane == found.bank // 4).all()
    assert (found.rank == found.lane // 4).all()


# --- smoke ---


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("refresh", REFRESHES)
def test_everything_runs(device: DramDevice, mapping: str, refresh: str) -> None:
    for ranks, channels, pattern in product((1, 2), (1, 8), ("seq", "u1K")):
        controller = Controller(mapping=mapping, refresh=refresh, ranks=ranks, channels=channels)
        found = reads(device, pattern, 400 * channels, controller)
        assert 0 < found.pct_peak <= 100
        assert found.gb_per_s == pytest.approx(found.pct_peak / 100 * device.gb_per_s * channels)
        assert found.row_hit + found.row_miss + found.row_conflict == pytest.approx(1)
        assert found.avg_read_latency_ns >= (device.cl + device.bl + 1) * device.clock_ns
        assert found == reads(device, pattern, 400 * channels, controller)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("refresh", REFRESHES)
@pytest.mark.parametrize(
    "settings", [{"queue": 1}, {"gap": 50}, {"queue": 1, "gap": 50}, {"queue": 1024}, {"ranks": 64}, {"channels": 64}]
)
def test_odd_settings_end(device: DramDevice, refresh: str, settings: dict[str, int]) -> None:
    controller = Controller(refresh=refresh, **settings)
    assert 0 < reads(device, "rand64", 500, controller).pct_peak <= 100
    single = device.changed("one bank", groups=1, banks_per_group=1)
    assert 0 < reads(single, "rand64", 500, controller).pct_peak <= 100


# --- closed form ---


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_one_read(device: DramDevice, mapping: str) -> None:
    found = reads(device, "rand64", 1, Controller(mapping=mapping))
    ns = device.clock_ns
    assert found.avg_read_latency_ns == pytest.approx((device.rcd + device.cl + device.bl + 1) * ns)
    assert found.gb_per_s == pytest.approx(device.burst_bytes / ((device.rcd + 1) * ns))
    assert (found.row_hit, found.row_miss, found.row_conflict) == (0, 1, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_sequential_reads_over_bank_groups_reach_the_peak(device: DramDevice) -> None:
    found = reads(device, "seq", 50_000, Controller(mapping="bgint"))
    assert 99.9 < found.pct_peak < 100
    assert found.row_hit == pytest.approx(1 - 1 / device.columns, abs=1e-4)


def test_a_page_at_a_time_is_one_bank_group_at_a_time() -> None:
    """A queue of one does not see the next page: precharge, activation, and then reads ccd_l apart."""
    found = reads(HB, "seq", 16_000, Controller(mapping="page", queue=1))
    page = 1 + HB.rp + HB.rcd + (HB.columns - 1) * HB.ccd_l
    assert found.pct_peak == pytest.approx(100 * HB.columns * HB.bl / page, rel=0.005)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("refresh", REFRESHES)
@pytest.mark.parametrize("mapping", ["bgint", "RoBaRaCoCh"])
def test_eight_channels_read_in_sequence_are_eight_times_one(device: DramDevice, refresh: str, mapping: str) -> None:
    one = Controller(mapping=mapping, refresh=refresh)
    single, eight = reads(device, "seq", 4000, one), reads(device, "seq", 8 * 4000, replace(one, channels=8))
    assert eight == replace(single, gb_per_s=pytest.approx(8 * single.gb_per_s))


def test_the_slowest_channel_sets_the_time() -> None:
    """Seven of eight bursts on one of two channels."""
    bursts = np.array([2 * i if i % 8 else 1 for i in range(8000)])
    both = run(LPDDR5, Controller(channels=2), bursts)
    alone = run(LPDDR5, Controller(), bursts[bursts % 2 == 0] // 2)
    assert both.gb_per_s == pytest.approx(alone.gb_per_s * 8 / 7)


@pytest.mark.parametrize("device", DEVICES)
def test_all_bank_refresh_takes_its_share(device: DramDevice) -> None:
    found = reads(device, "seq", 60_000, Controller(mapping="bgint", refresh="ab"))
    lost = (device.rtp + device.rp + device.rfc_ab + device.rcd) / device.refi
    assert found.pct_peak == pytest.approx(100 * (1 - lost), abs=0.3)
    per_bank = reads(device, "seq", 60_000, Controller(mapping="bgint", refresh="pb"))
    assert found.pct_peak < per_bank.pct_peak < 99


def test_offered_load_is_served_as_long_as_it_can_be() -> None:
    """Every 8 clocks where 2 suffice: a quarter of the peak, and hits that wait for nobody."""
    found = reads(LPDDR5, "seq", 20_000, Controller(mapping="bgint", gap=8))
    assert found.pct_peak == pytest.approx(25, abs=0.1)
    hit = (LPDDR5.cl + LPDDR5.bl + 1) * LPDDR5.clock_ns
    assert hit < found.avg_read_latency_ns < 1.1 * hit


def test_deeper_queues_and_longer_chunks_help_random_reads() -> None:
    by_queue = [reads(LPDDR5, "rand64", 8000, Controller(queue=queue)).pct_peak for queue in (1, 4, 16, 64)]
    assert by_queue == sorted(by_queue)
    assert by_queue[-1] > 2 * by_queue[0]
    by_chunk = [reads(LPDDR5, f"chunk{size}", 16_000).pct_peak for size in ("64", "512", "4K", "64K")]
    assert by_chunk == sorted(by_chunk)
