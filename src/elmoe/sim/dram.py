"""DRAM timing: devices as data, address mappings, and a stream of reads through FR-FCFS controllers.

A channel is what one controller drives: ranks of bank groups of banks. Channels are served independently. Knows nothing
about who reads what; `request_stream.py` makes streams, `efficiency.py` tables.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError
from elmoe.sim.quantity import UNIT, Spec, nearest, quantity
from elmoe.sim.spec import read_toml

Int64 = npt.NDArray[np.int64]

REFRESHES = ("none", "ab", "pb")
MAPPINGS: dict[str, tuple[str, ...]] = {
    "bgint": ("group", "column", "bank"),
    "bgint64": ("pair", "group", "column", "bank"),
    "page": ("column", "rank", "group", "bank"),
    "RoBaRaCoCh": ("column", "rank", "group", "bank"),
}
"""Fields of a burst's address above the channel, least significant first; then the rank, where it is not named, and the
row. `page` is Ramulator's RoBaRaCoCh by another name. `pair` is the lowest bit of the column, so that 64 B stay in a
bank group of an LPDDR5 channel."""
MAX_QUEUE = MAX_RANKS = MAX_CHANNELS = 1024
MAX_CLOCKS = 100_000
"""Of any timing and of the gap between requests; longer ones are mistakes, and would simulate for hours."""


@dataclass(frozen=True)
class DramDevice(Spec):
    """One channel of one rank; timings in clocks, names as in JEDEC standards without the leading t."""

    clock_ns: float = quantity("ns", above=0)
    gb_per_s: float = quantity("GB/s", above=0)
    groups: int = quantity("1", above=0)
    banks_per_group: int = quantity("1", above=0)
    row_bytes: int = quantity("B", above=0)
    burst_bytes: int = quantity("B", above=0)
    capacity_gib: float = quantity("GiB", above=0, maximum=2**20)
    bl: int = quantity("clock", above=0)
    ccd_l: int = quantity("clock", above=0)
    rcd: int = quantity("clock", above=0)
    rp: int = quantity("clock", above=0)
    ras: int = quantity("clock", above=0)
    rc: int = quantity("clock", above=0)
    rtp: int = quantity("clock", above=0)
    rrd: int = quantity("clock", above=0)
    faw: int = quantity("clock", above=0)
    cl: int = quantity("clock", above=0)
    rfc_ab: int = quantity("clock", above=0)
    rfc_pb: int = quantity("clock", above=0)
    refi: int = quantity("clock", above=0)
    refi_pb: int = quantity("clock", above=0)
    rank_switch: int = quantity("clock", minimum=0)
    aad: int = quantity("clock", minimum=0)

    def __post_init__(self) -> None:
        for name in ("groups", "banks_per_group", "row_bytes", "burst_bytes"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ConfigError(f"DRAM device: {name} = {value} is not a power of two")
        if self.row_bytes < 2 * self.burst_bytes:
            raise ConfigError(f"DRAM device: a row of {self.row_bytes} B holds no two bursts of {self.burst_bytes} B")
        peak = self.burst_bytes / (self.bl * self.clock_ns)
        if abs(self.gb_per_s / peak - 1) > 0.01:
            raise ConfigError(
                f"DRAM device: gb_per_s = {self.gb_per_s:g}, but bursts of {self.burst_bytes} B every {self.bl} clocks "
                f"are {peak:g} GB/s"
            )
        banks = self.groups * self.banks_per_group
        if self.bursts < banks * self.columns:
            raise ConfigError(f"DRAM device: {self.capacity_gib:g} GiB hold no row for each of {banks} banks")
        for item in fields(self):
            if item.metadata.get(UNIT) == "clock" and getattr(self, item.name) > MAX_CLOCKS:
                raise ConfigError(f"DRAM device: {item.name} is above {MAX_CLOCKS} clocks; check the unit")
        if self.rfc_ab >= self.refi or self.rfc_pb >= self.refi_pb * banks:
            raise ConfigError(
                "DRAM device: no time beside refreshes; rfc_ab must be below refi and rfc_pb below refi_pb x banks"
            )

    @property
    def columns(self) -> int:
        """Bursts of a row."""
        return self.row_bytes // self.burst_bytes

    @property
    def bursts(self) -> int:
        """Bursts of the device."""
        return int(self.capacity_gib * 2**30) // self.burst_bytes


@dataclass(frozen=True)
class Controller:
    """How a device is driven."""

    mapping: str = "bgint64"
    queue: int = 32
    """Requests that one channel's controller holds and chooses from."""
    refresh: str = "none"
    ranks: int = 1
    channels: int = 1
    gap: int = 1
    """Clocks between requests offered to a channel."""

    def __post_init__(self) -> None:
        for value, known, what in ((self.mapping, MAPPINGS, "mapping"), (self.refresh, REFRESHES, "refresh")):
            if value not in known:
                raise ConfigError(f"unknown {what} {value!r}{nearest(value, known)}")
        if not 1 <= self.queue <= MAX_QUEUE:
            raise ConfigError(f"queue must be 1 to {MAX_QUEUE}, not {self.queue}")
        for name, most in (("ranks", MAX_RANKS), ("channels", MAX_CHANNELS)):
            value = getattr(self, name)
            if not 1 <= value <= most or value & (value - 1):
                raise ConfigError(f"{name} must be a power of two up to {most}, not {value}")
        if not 1 <= self.gap <= MAX_CLOCKS:
            raise ConfigError(f"gap must be 1 to {MAX_CLOCKS} clocks, not {self.gap}")


@dataclass(frozen=True)
class DramResult:
    """What a stream got."""

    gb_per_s: float
    pct_peak: float
    row_hit: float
    """Share of reads that found their row open; likewise closed (miss) and another one open (conflict)."""
    row_miss: float
    row_conflict: float
    avg_read_latency_ns: float


def load_device(name: str) -> DramDevice:
    """A built-in device, or the one of a TOML file with a single table of `specs/dram.toml`'s fields."""
    if name in _devices():
        return _devices()[name]
    if not name.endswith(".toml"):
        raise ConfigError(f"unknown DRAM device {name!r}{nearest(name, _devices())}; or give a .toml file")
    return DramDevice.from_table(read_toml(Path(name)), name)


def run(device: DramDevice, controller: Controller, bursts: Int64) -> DramResult:
    """Read bursts [N] (burst numbers, in order of arrival). Time ends with the last read command, as in the
    reference runs.
    """
    from elmoe.sim.frfcfs import serve  # numba compiles on first use

    if len(bursts) == 0:
        raise ConfigError("an empty stream of requests has no bandwidth")
    channel, above = bursts % controller.channels, bursts // controller.channels
    clocks, sums = 0, np.zeros(4, dtype=np.int64)
    sizes = (controller.ranks, device.groups, device.banks_per_group)
    refresh = REFRESHES.index(controller.refresh)
    nothing = np.zeros((0, 3), dtype=np.int64)
    for number in range(controller.channels):
        mine = above[channel == number]
        if len(mine):
            requests = decode(device, controller, mine)
            found = serve(requests, sizes, timing(device), controller.queue, controller.gap, refresh, nothing)
            clocks = max(clocks, int(found[0]))
            sums += np.array(found[1:5], dtype=np.int64)
    count = len(bursts)
    gb_per_s = count * device.burst_bytes / (clocks * device.clock_ns)
    return DramResult(
        gb_per_s=gb_per_s,
        pct_peak=100.0 * gb_per_s / (device.gb_per_s * controller.channels),
        row_hit=sums[0] / count,
        row_miss=sums[1] / count,
        row_conflict=sums[2] / count,
        avg_read_latency_ns=sums[3] / count * device.clock_ns,
    )


def timing(device: DramDevice) -> Any:
    """The kernel's tuple of clocks."""
    from elmoe.sim.frfcfs import Timing

    return Timing(**{name: getattr(device, name) for name in Timing._fields})


def decode(device: DramDevice, controller: Controller, bursts: Int64) -> Any:
    """Where bursts [N] of one channel lie: the kernel's `Requests`."""
    from elmoe.sim.frfcfs import Requests

    sizes = {
        "pair": 2,
        "column": device.columns // 2 if "pair" in MAPPINGS[controller.mapping] else device.columns,
        "group": device.groups,
        "bank": device.banks_per_group,
        "rank": controller.ranks,
    }
    order = MAPPINGS[controller.mapping]
    order = order if "rank" in order else (*order, "rank")
    found, rest = {}, bursts
    for name in order:
        found[name] = rest % sizes[name]
        rest = rest // sizes[name]
    lane = found["rank"] * device.groups + found["group"]
    bank = lane * device.banks_per_group + found["bank"]
    return Requests(*(np.ascontiguousarray(item, dtype=np.int64) for item in (found["rank"], lane, bank, rest)))


@cache
def _devices() -> dict[str, DramDevice]:
    text = (files("elmoe.sim") / "specs" / "dram.toml").read_text(encoding="utf-8")
    return {name: DramDevice.from_table(table, f"dram.toml: {name}") for name, table in tomllib.loads(text).items()}
