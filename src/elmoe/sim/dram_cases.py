"""Cases for the DRAM model from a CSV file: one row per stream, columns as in ``tests/sim/dram_reference.csv``.

Needed are `pattern`, `mapping` and `bursts`; the others have defaults. Columns that hold results are not read.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elmoe.errors import ConfigError
from elmoe.sim.dram import Controller, DramDevice, load_device, run
from elmoe.sim.request_stream import stream

LPDDR5, HB = "lpddr5-6400-x16", "hb-bank"
NEEDED = ("pattern", "mapping", "bursts")
HB_TIMINGS = {"tRCD": ("rcd", "cl"), "tRP": ("rp",), "tRAS": ("ras",), "tCCDL": ("ccd_l",)}
"""Timings in ns that an HB device's name may carry, and the fields that follow (the read latency is taken as tRCD)."""
FIXED = {"sched": ("FRFCFSRowHit", "FRFCFS"), "row_policy": ("open",)}
MAX_BURSTS = 50_000_000
LONGEST_NS = 1e9


@dataclass(frozen=True)
class Case:
    """One row."""

    device: DramDevice
    controller: Controller
    pattern: str
    bursts: int
    seed: int
    given: Mapping[str, str]
    """The row itself, by column."""


def run_cases(path: Path) -> list[dict[str, float]]:
    """Results in the file's order. Raises ConfigError naming line and column."""
    return [simulate(case) for case in read_cases(path)]


def read_cases(path: Path) -> list[Case]:
    """All rows of a file, checked before anything is simulated."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(f"{path}: the column {missing[0]!r} is missing; see docs/simulator.md for the format")
            return [_case(row, f"{path} line {reader.line_num}") for row in reader]
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as CSV: {error}") from None


def simulate(case: Case) -> dict[str, float]:
    """What the stream got: the fields of `DramResult`."""
    device = case.device
    capacity = device.bursts * case.controller.ranks * case.controller.channels
    bursts = stream(case.pattern, case.bursts, device.burst_bytes, capacity, case.seed)
    return asdict(run(device, case.controller, bursts))


def _case(row: Mapping[str, Any], where: str) -> Case:
    values = {name: (value or "").strip() for name, value in row.items() if isinstance(name, str)}
    if None in row:
        raise ConfigError(f"{where}: more fields than the header has")
    for name, allowed in FIXED.items():
        if values.get(name) and values[name] not in allowed:
            raise ConfigError(f"{where}: {name} = {values[name]!r} is not modelled; known are {', '.join(allowed)}")
    try:
        device = _device(values, where)
        controller = Controller(
            mapping=values["mapping"],
            queue=_integer(values, "queue", 32, where),
            refresh=values.get("refresh") or "none",
            ranks=_integer(values, "ranks", 1, where),
            channels=_channels(values, device, where),
            gap=max(1, _integer(values, "issue_gap_nCK", 1, where)),
        )
        bursts = _integer(values, "bursts", 0, where)
        if not 1 <= bursts <= MAX_BURSTS:
            raise ConfigError(f"bursts must be 1 to {MAX_BURSTS}, not {bursts}")
        seed = _integer(values, "seed", 1, where)
        if seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {seed}")
        stream(values["pattern"], 1, device.burst_bytes, device.bursts, 0)  # is it known, does a chunk fit?
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from None
    return Case(device, controller, values["pattern"], bursts, seed, values)


def _device(values: Mapping[str, str], where: str) -> DramDevice:
    """The device named, with the row's organisation."""
    name = values.get("device") or LPDDR5
    if name.endswith(".toml"):
        device = load_device(name)
    elif re.match(r"LPDDR5(-6400|(?![\dX-]))", name, re.IGNORECASE):
        device = load_device(LPDDR5)
    elif name.upper().startswith("HB"):
        device = _named_timings(load_device(HB), name)
    else:
        device = load_device(name)
    changes: dict[str, int] = {}
    if values.get("banks"):
        match = re.fullmatch(r"(\d{1,9})BGx(\d{1,9})", values["banks"])
        if match is None:
            raise ConfigError(f"banks = {values['banks']!r}; write for example 4BGx4")
        changes |= {"groups": int(match[1]), "banks_per_group": int(match[2])}
    changes["row_bytes"] = _integer(values, "row_bytes", device.row_bytes, where)
    burst = changes["burst_bytes"] = _integer(values, "tx_bytes", device.burst_bytes, where)
    if burst < 1 or device.bl * burst % device.burst_bytes:
        raise ConfigError(
            f"tx_bytes = {burst}: {device.burst_bytes} B take {device.bl} clocks, so this no whole number"
        )
    changes["bl"] = device.bl * burst // device.burst_bytes  # as many pins
    return device.changed(where, **changes)


def _named_timings(device: DramDevice, name: str) -> DramDevice:
    """``HB-like tRCD14/tRP14/tRAS33 tCCDL5.0``: ns, rounded up to clocks."""
    changes: dict[str, int] = {}
    for label, targets in HB_TIMINGS.items():
        match = re.search(rf"{label}(\d+(?:\.\d+)?)", name)
        if match:
            clocks = max(1, math.ceil(min(float(match[1]), LONGEST_NS) / device.clock_ns - 1e-9))
            changes |= dict.fromkeys(targets, clocks)
    made = device.changed(name, **changes)
    return made.changed(name, rc=made.ras + made.rp)


def _channels(values: Mapping[str, str], device: DramDevice, where: str) -> int:
    """The column `channels`, or ``8ch`` / ``x8 channels`` in the name, or the quoted peak over one channel's."""
    if values.get("channels"):
        return _integer(values, "channels", 1, where)
    match = re.search(r"(\d{1,9})[\s-]*(?:x\s*)?(?:ch\b|chan)", values.get("device", ""), re.IGNORECASE)
    if match:
        return int(match[1])
    if values.get("peak_GBps"):
        try:
            return max(1, round(float(values["peak_GBps"]) / device.gb_per_s))
        except (ValueError, OverflowError):
            raise ConfigError(f"{where}: peak_GBps = {values['peak_GBps']!r} is not a number") from None
    return 1


def _integer(values: Mapping[str, str], name: str, default: int, where: str) -> int:
    text = values.get(name) or ""
    try:
        number = float(text) if text else float(default)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number != int(number) or abs(number) > 2**53:
        raise ConfigError(f"{where}: {name} = {text!r} is not an integer")
    return int(number)
