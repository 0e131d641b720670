"""How much of a memory's peak bandwidth a stream of chunks gets: a table made by the DRAM model.

The shipped table (``specs/efficiency.json``, made by ``bench/dram_efficiency.py``) covers the built-in devices, so that
the fast simulator needs no DRAM run; other devices and settings are simulated when they are first asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError
from elmoe.sim.dram import Controller, DramDevice, load_device, run
from elmoe.sim.quantity import UNIT
from elmoe.sim.request_stream import chunks, useful_share

Floats = npt.NDArray[np.float64]

CHUNKS = tuple(64 * 2**i for i in range(17))
"""64 B to 4 MiB; shorter chunks count as 64 B, longer ones as 4 MiB."""
QUEUES = (8, 16, 32, 64)
BURSTS = 32_768
"""Reads of one run: enough that start and end are below 0.1 %."""
SEED = 1
TABLE_VERSION = 2
DECIMALS = 5


def efficiency(device: str, *, mapping: str, queue: int, refresh: str, chunk_bytes: Floats, aligned: bool) -> Floats:
    """Share of peak bandwidth [N] for random chunks of `chunk_bytes` [N], between 0 and 1.

    device: a built-in name or a TOML file. aligned: chunks start at multiples of their size, otherwise at any 64 B.
    Interpolates linearly in the logarithm of the size. Raises ConfigError for what the device or controller cannot be.
    """
    asked = np.asarray(chunk_bytes, dtype=np.float64)
    if not np.all(np.isfinite(asked)) or np.any(asked <= 0):
        raise ConfigError("a chunk must be a positive number of bytes")
    controller = Controller(mapping=mapping, queue=queue, refresh=refresh)
    column = _column(load_device(device), controller, aligned)
    return np.interp(np.log(asked), np.log(np.array(CHUNKS)), np.array(column))


def simulate_column(device: DramDevice, controller: Controller, aligned: bool) -> list[float]:
    """Efficiency of every size of CHUNKS: the bandwidth of its bursts, less what of them nobody asked for."""
    found = []
    for size in CHUNKS:
        bursts = chunks(size, aligned, BURSTS, device.burst_bytes, device.bursts, SEED)
        share = run(device, controller, bursts).pct_peak / 100.0 * useful_share(size, aligned, device.burst_bytes)
        found.append(round(share, DECIMALS))
    return found


def column_key(mapping: str, queue: int, refresh: str, aligned: bool) -> str:
    """Name of a column in the table."""
    return f"{mapping}/{queue}/{refresh}/{'aligned' if aligned else 'any'}"


def fingerprint(device: DramDevice) -> str:
    """Of everything that a device's efficiency follows from."""
    values = {item.name: getattr(device, item.name) for item in fields(device) if UNIT in item.metadata}
    text = json.dumps([TABLE_VERSION, BURSTS, SEED, CHUNKS, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _column(device: DramDevice, controller: Controller, aligned: bool) -> Sequence[float]:
    shipped = _shipped().get(fingerprint(device), {})
    key = column_key(controller.mapping, controller.queue, controller.refresh, aligned)
    return shipped[key] if key in shipped else simulate_column(device, controller, aligned)


@cache
def _shipped() -> dict[str, dict[str, list[float]]]:
    """Device fingerprint -> column -> efficiencies."""
    text = (files("elmoe.sim") / "specs" / "efficiency.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, list[float]]] = json.loads(text)["devices"]
    return found
