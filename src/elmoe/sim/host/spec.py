"""Hosts as data: a computer whose RAM is the fast tier and whose disk is the slow one, and which computes on its CPU.

A file with ``kind = "host"`` holds what probes measured (`bench/this_machine.py` writes one): how fast kernels stream
weights by rows, how fast the disk reads by request size, what a layer, a row and a pass cost besides. Every number
carries unit, source and status (`quantity.py`). Knows nothing about models or time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError
from elmoe.sim.quantity import UNIT, Quantity, Spec, as_table, quantity, refuse_unknown
from elmoe.sim.spec import SYSTEMS, read_system

Floats = npt.NDArray[np.float64]
SpecT = TypeVar("SpecT", bound=Spec)

KERNEL_ROWS = (1, 2, 4, 8, 16, 32, 64)
"""Rows at which kernels are timed."""
READ_BYTES = (1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
"""Request sizes at which the disk is timed."""


@dataclass(frozen=True)
class FastTier(Spec):
    """RAM: dense weights, KV cache, expert records."""

    capacity_gb: float = quantity("GB", above=0)
    gb_per_s: float = quantity("GB/s", above=0)
    """Plain reading by all threads."""
    overlap_power: float = quantity("1", minimum=1)
    """How well reading hides behind computing: together they take ``(read**p + compute**p)**(1/p)``, from the sum of
    both at 1 to the longer of them."""
    cache_mb: float = quantity("MB", minimum=0)
    """Last-level cache: passes that read no more than this find it there."""

    def streamed_ns(self, read_ns: Floats, compute_ns: Floats) -> Floats:
        """Time of computation with weights that are read meanwhile."""
        power = self.overlap_power
        longer, shorter = np.maximum(read_ns, compute_ns), np.minimum(read_ns, compute_ns)
        share = shorter / np.where(longer > 0, longer, 1.0)
        return longer * (1.0 + share**power) ** (1.0 / power)


@dataclass(frozen=True)
class SlowTier(Spec):
    """A file on a disk, read past the page cache; rates by the size of a request, with `queue` of them under way."""

    capacity_gb: float = quantity("GB", above=0)
    queue: int = quantity("request", above=0)
    latency_us: float = quantity("us", minimum=0)
    """From asking an idle disk until data flows at the rates below."""
    read_16k_gb_per_s: float = quantity("GB/s", above=0)
    read_64k_gb_per_s: float = quantity("GB/s", above=0)
    read_256k_gb_per_s: float = quantity("GB/s", above=0)
    read_1m_gb_per_s: float = quantity("GB/s", above=0)
    read_4m_gb_per_s: float = quantity("GB/s", above=0)

    def read_ns(self, size_bytes: Floats) -> Floats:
        """Time [...] that a read of `size_bytes` [...] takes of a busy disk; 0 for none.

        Between the measured sizes time is linear; below the smallest it does not fall, above the largest the rate
        stays.
        """
        rates = [self.read_16k_gb_per_s, self.read_64k_gb_per_s, self.read_256k_gb_per_s]
        rates += [self.read_1m_gb_per_s, self.read_4m_gb_per_s]
        sizes = np.array(READ_BYTES, dtype=np.float64)
        times = sizes / np.array(rates)
        found = np.where(size_bytes > sizes[-1], size_bytes / rates[-1], np.interp(size_bytes, sizes, times))
        return np.where(size_bytes > 0, found, 0.0)


@dataclass(frozen=True)
class Kernel(Spec):
    """Multiply-accumulates per second of a matrix product by its rows, all threads, weights out of the cache."""

    rows_1: float = quantity("GMAC/s", above=0)
    rows_2: float = quantity("GMAC/s", above=0)
    rows_4: float = quantity("GMAC/s", above=0)
    rows_8: float = quantity("GMAC/s", above=0)
    rows_16: float = quantity("GMAC/s", above=0)
    rows_32: float = quantity("GMAC/s", above=0)
    rows_64: float = quantity("GMAC/s", above=0)

    def weight_ns(self, rows: Floats) -> Floats:
        """Time [...] per weight of a product of `rows` [...] rows; 0 for none. Linear between the measured counts;
        beyond them as many times as long as there are times as many rows.
        """
        known = np.array(KERNEL_ROWS, dtype=np.float64)
        times = known / np.array([getattr(self, f"rows_{count}") for count in KERNEL_ROWS])
        found = np.where(rows > known[-1], times[-1] * rows / known[-1], np.interp(rows, known, times))
        return np.where(rows > 0, found, 0.0)


@dataclass(frozen=True)
class RowWork(Spec):
    """What passes cost beside streaming weights; by all threads together, unless it says per pass or layer."""

    threads: int = quantity("1", above=0)
    pass_us: float = quantity("us", minimum=0)
    """A forward pass without its layers and its head."""
    layer_us: float = quantity("us", minimum=0)
    """A layer's phases as such: threads meeting, queues being filled."""
    row_us: float = quantity("us", minimum=0)
    """Per row and layer, whatever its size."""
    hidden_ns: float = quantity("ns", minimum=0)
    """Per row, layer and hidden dimension: norms, quantisation, residual."""
    attention_gmac_per_s: float = quantity("GMAC/s", above=0)
    """Scores and values over FP16 keys and values that are in the cache."""
    kv_gb_per_s: float = quantity("GB/s", above=0)
    """Keys and values from RAM, read in short pieces; the computation comes on top."""
    router_gmac_per_s: float = quantity("GMAC/s", above=0)
    """FP32 router scores."""
    choice_ns: float = quantity("ns", minimum=0)
    """Per row, layer and expert: the best of the scores."""
    expert_us: float = quantity("us", minimum=0)
    """Per distinct expert of a layer: its tasks."""
    slot_ns: float = quantity("ns", minimum=0)
    """Per row and expert that it chose, and (hidden + expert hidden) dimension: gathering, gate, adding up."""
    check_gb_per_s: float = quantity("GB/s", above=0)
    """Checksums of fetched records, by one thread: each is checked before it is used."""
    logit_ns: float = quantity("ns", minimum=0)
    """Per row and token of the vocabulary: the best logits."""


@dataclass(frozen=True)
class EngineWork(Spec):
    """The engine around the passes, and how its reads and its computation share the machine."""

    step_us: float = quantity("us", minimum=0)
    """A decode step, however large."""
    pass_us: float = quantity("us", minimum=0)
    """Each pass of it: rows built, tokens chosen."""
    row_us: float = quantity("us", minimum=0)
    """Each row of a pass."""
    pool_ns: float = quantity("ns", minimum=0)
    """Per step and expert of all layers: hotness, the pool."""
    compute_while_reading: float = quantity("1", above=0, maximum=1)
    """Share of its speed that computation keeps while the disk is read."""
    read_while_computing: float = quantity("1", above=0, maximum=1)
    """Share of its rate that the disk keeps while all threads compute."""
    prefetch_share: float = quantity("1", minimum=0, maximum=1)
    """Share of the time before a layer's experts are known in which the disk already reads what they will need: 1 for
    a disk that is never idle, which then needs no time to start, either."""
    in_flight_mb: float = quantity("MB", above=0)
    """Reads under way at once: what keeps the disk busy. The fast tier has room for them beside what stays."""
    read_efficiency: float = quantity("1", above=0, maximum=1, default=1.0)
    """Share of the disk's rate that the engine's reader gets, computation aside: it reads and computes in waves."""


SECTIONS: dict[str, type[Spec]] = {
    "fast": FastTier,
    "slow": SlowTier,
    "target": Kernel,
    "draft": Kernel,
    "work": RowWork,
    "engine": EngineWork,
}
TEXTS = ("kind", "name", "description")
KIND = "host"


@dataclass(frozen=True)
class Host:
    """One computer."""

    name: str
    description: str
    fast: FastTier
    slow: SlowTier
    target: Kernel
    """Products with both planes of the weights."""
    draft: Kernel
    """Products with the MSB planes."""
    work: RowWork
    engine: EngineWork

    def at_pace(self, *, fast: float = 1.0, slow: float = 1.0, compute: float = 1.0) -> Host:
        """The same host at a time when its RAM, its disk and its cores were so many times as fast.

        Machines are shared: what probes say beside a run counts for that run.
        """
        why = f"at {fast:.3g} times the RAM's, {slow:.3g} the disk's, {compute:.3g} the cores' speed of the file"
        return replace(
            self,
            fast=_faster(self.fast, why, fast, "GB/s"),
            slow=_faster(self.slow, why, slow, "GB/s", "us"),
            target=_faster(self.target, why, compute, "GMAC/s"),
            draft=_faster(self.draft, why, compute, "GMAC/s"),
            work=_faster(self.work, why, compute, "GMAC/s", "GB/s", "us", "ns"),
            engine=_faster(self.engine, why, compute, "us", "ns"),
        )

    def as_tables(self) -> dict[str, dict[str, Any]]:
        """Every number with unit, source and status, by section, as plain values for JSON."""
        return {name: as_table(found) for name, found in self.quantities().items()}

    def quantities(self) -> dict[str, dict[str, Quantity]]:
        """Every number with unit, source and status, by section."""
        return {item.name: dict(getattr(self, item.name).quantities) for item in fields(self) if item.name in SECTIONS}


def _faster(section: SpecT, why: str, factor: float, *units: str) -> SpecT:
    """A section whose rates and times, by their units, are `factor` times as fast."""
    if factor == 1.0:
        return section
    changed = {
        item.name: getattr(section, item.name) * (factor if "/s" in item.metadata[UNIT] else 1.0 / factor)
        for item in fields(section)
        if item.metadata.get(UNIT) in units
    }
    return section.changed(why, **changed)


def is_host(name: str) -> bool:
    """Whether a system's file describes a host; ConfigError where it cannot be read."""
    return name not in SYSTEMS and read_system(name).get("kind") == KIND


def load_host(name: str) -> Host:
    """A host from a TOML file; ConfigError names what is wrong with it."""
    return host_from_table(read_system(name), name)


def host_from_table(table: Mapping[str, Any], where: str) -> Host:
    """Validate the tables of a host."""
    refuse_unknown(table, (*TEXTS, *SECTIONS), where)
    for key in ("kind", "name", *SECTIONS):
        if key not in table:
            raise ConfigError(f"{where}: {key} is missing; let bench/this_machine.py write a host's file")
    if table["kind"] != KIND:
        raise ConfigError(f"{where}: kind must be {KIND!r}, not {table['kind']!r}")
    sections: dict[str, Any] = {}
    for key, kind in SECTIONS.items():
        if not isinstance(table[key], Mapping):
            raise ConfigError(f"{where}: [{key}] must be a table")
        sections[key] = kind.from_table(table[key], f"{where}: {key}")
    return Host(name=str(table["name"]), description=str(table.get("description", "")), **sections)
