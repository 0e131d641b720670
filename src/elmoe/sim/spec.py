"""Machines as data: what a TOML file of a system may say, and reading it.

A file names a `base` (a built-in system) and overrides what differs, or describes a whole machine. Every number carries
unit, source and status (`quantity.py`). Knows nothing about models, schemes or time.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from elmoe.errors import ConfigError
from elmoe.sim.quantity import Quantity, Spec, as_table, nearest, quantity, refuse_unknown

SYSTEMS = ("xpu", "xpu-pim", "xpu-logicpim", "xpu-nmp", "hb-xpu", "elmoe-3d")
MEASURED = ("this-machine",)
"""Computers that `bench/this_machine.py` measured."""
BASELINE = "xpu"
SCHEMES = ("none", "eagle", "slm", "quant", "elastic")


@dataclass(frozen=True)
class Compute(Spec):
    """Processing elements (PEs): arrays of rows x columns x inputs multiply-accumulate units of 8-bit x 5-bit."""

    pes: int = quantity("1", above=0)
    rows: int = quantity("1", above=0)
    """Activation rows that one weight tile serves at once."""
    columns: int = quantity("1", above=0)
    inputs: int = quantity("1", above=0)
    """Length of the dot product of one cycle."""
    clock_ghz: float = quantity("GHz", above=0)
    cycles_w8: int = quantity("cycle", above=0)
    """Passes of the array over an 8-bit weight tile."""
    cycles_w4: int = quantity("cycle", above=0)
    """Passes over a 4-bit tile: half of cycles_w8 where the multipliers are bit-sliced."""
    wmem_bytes: int = quantity("B", above=0)
    iomem_bytes: int = quantity("B", above=0)
    wmem_port_bytes: int = quantity("B", minimum=0, default=0)
    """Weights that WMEM delivers to the array per cycle. 0: not modelled, a tile is there when its turn comes."""
    pipeline_cycles: int = quantity("cycle", minimum=0, default=0)
    """From a tile's last pass to its sums. 0: not modelled."""

    def macs_per_ns(self, bits: int) -> float:
        """Multiply-accumulates per ns of all PEs, every row in use, for weights of 8 or 4 bits."""
        passes = self.cycles_w8 if bits == 8 else self.cycles_w4
        return self.pes * self.rows * self.columns * self.inputs * self.clock_ghz / passes

    def tops(self, bits: int) -> float:
        """Peak throughput, two operations per multiply-accumulate."""
        return 2e-3 * self.macs_per_ns(bits)


@dataclass(frozen=True)
class Memory(Spec):
    """Channels (or banks) of a DRAM device of `specs/dram.toml`, and how they are driven."""

    device: str = quantity("name")
    channels: int = quantity("1", above=0)
    capacity_gb: float = quantity("GB", above=0)
    gb_per_s: float = quantity("GB/s", above=0)
    """Peak bandwidth of all channels."""
    energy_pj_per_bit: float = quantity("pJ/bit", above=0)
    mapping: str = quantity("name", choices=("bgint", "bgint64", "page", "RoBaRaCoCh"))
    queue: int = quantity("request", above=0)
    refresh: str = quantity("name", choices=("none", "ab", "pb"))
    chunk_bytes: int = quantity("B", above=0)
    """Contiguous bytes per request stream and channel: what the DRAM model's efficiency is looked up for."""


@dataclass(frozen=True)
class Links(Spec):
    """On-die networks."""

    streamline_gb_per_s: float = quantity("GB/s", above=0)
    """External weights to the weight memories of all PEs (broadcast)."""
    aggregation_gb_per_s: float = quantity("GB/s", above=0)
    """Per PE: activations and partial sums between PEs."""
    aggregation_pj_per_bit: float = quantity("pJ/bit", minimum=0)


@dataclass(frozen=True)
class NearMemory(Spec):
    """Compute inside or beside (part of) the external memory."""

    gb_per_s: float = quantity("GB/s", above=0)
    """Peak bandwidth that the near-memory units see."""
    efficiency: float = quantity("1", above=0, maximum=1)
    """Share of it that they get: rows must be closed and opened."""
    tops: float = quantity("TOPS", above=0)
    capacity_gb: float = quantity("GB", above=0)
    """Weights that the near-memory units can reach."""
    external_share: float = quantity("1", minimum=0, maximum=1)
    """Share of the external bandwidth that the xPU keeps for itself while the near-memory units work."""
    energy_pj_per_bit: float = quantity("pJ/bit", above=0)
    mac_pj: float = quantity("pJ", above=0)


@dataclass(frozen=True)
class Power(Spec):
    """Energy that does not follow bytes moved over a memory."""

    mac_w8_pj: float = quantity("pJ", above=0)
    """One 8-bit x 8-bit multiply-accumulate, with its share of registers, adder tree and local memory."""
    mac_w4_pj: float = quantity("pJ", above=0)
    transport_pj_per_bit: float = quantity("pJ/bit", minimum=0)
    """External bits from the memory interface to the PEs."""
    static_w: float = quantity("W", minimum=0)
    """Leakage and clock of the logic die and standby of the memories."""
    hb_static_w_per_gb: float = quantity("W/GB", minimum=0)


MAC_ENERGIES = ("literature", "rtl")
"""Where the energy of a multiply-accumulate comes from: the files of the systems, or `specs/mac_energy.toml`."""


@dataclass(frozen=True)
class MacEnergy(Spec):
    """Energies of a multiply-accumulate that the RTL has, for the two kinds of PEs."""

    sliced_w8_pj: float = quantity("pJ", above=0)
    """Two passes of the LSB-augmented bit-sliced multiplier."""
    sliced_w4_pj: float = quantity("pJ", above=0)
    native_w8_pj: float = quantity("pJ", above=0)
    """Conventional 8-bit multipliers, which 4-bit weights pass, too."""


SECTIONS: dict[str, type[Spec]] = {
    "compute": Compute,
    "ext": Memory,
    "hb": Memory,
    "links": Links,
    "near": NearMemory,
    "power": Power,
}
REQUIRED = ("compute", "ext", "power")
TEXTS = ("base", "name", "description", "scheme")


@dataclass(frozen=True)
class Machine:
    """One system."""

    name: str
    description: str
    compute: Compute
    ext: Memory
    power: Power
    hb: Memory | None = None
    links: Links | None = None
    near: NearMemory | None = None
    scheme: str = "none"
    """What the paper runs on it, and the default of `elmoe simulate`."""

    def with_hb_gb(self, hb_gb: float) -> Machine:
        """The same design for another HB capacity: one PE and one bank per share of it, as stacks are built.

        Machines without HB get the same PEs, so that compute is equal in every comparison. Raises ConfigError where
        the capacity is no whole number of banks.
        """
        share = PE_SHARE_GB if self.hb is None else self.hb.capacity_gb / self.compute.pes
        count = hb_gb / share
        if not (0 < count <= MAX_PES and count == int(count)):
            raise ConfigError(
                f"hb-gb must be a positive multiple of {share:g} (one bank per PE) up to {MAX_PES * share:g}, "
                f"not {hb_gb:g}"
            )
        pes, why = int(count), f"{hb_gb:g} GB of HB, one bank and PE per {share:g} GB"
        hb = None
        if self.hb is not None:
            per_bank = self.hb.gb_per_s / self.hb.channels
            hb = self.hb.changed(why, channels=pes, capacity_gb=hb_gb, gb_per_s=per_bank * pes)
        return replace(self, compute=self.compute.changed(why, pes=pes), hb=hb)

    def with_mac_energy(self, origin: str) -> Machine:
        """The same with the energy of a multiply-accumulate from one of MAC_ENERGIES; ConfigError for others."""
        if origin not in MAC_ENERGIES:
            raise ConfigError(f"unknown mac-energy {origin!r}{nearest(origin, MAC_ENERGIES)}")
        if origin == "literature":
            return self
        table = tomllib.loads((files("elmoe.sim") / "specs" / "mac_energy.toml").read_text(encoding="utf-8"))
        found = MacEnergy.from_table(table["rtl"], "mac_energy.toml: rtl")
        sliced = self.compute.cycles_w4 < self.compute.cycles_w8
        names = ("sliced_w8_pj", "sliced_w4_pj") if sliced else ("native_w8_pj", "native_w8_pj")
        values = dict(zip(("mac_w8_pj", "mac_w4_pj"), names, strict=True))
        entries = {field: found.quantities[name] for field, name in values.items()}
        numbers = {field: getattr(found, name) for field, name in values.items()}
        power = replace(self.power, **numbers, quantities=dict(self.power.quantities) | entries)
        return replace(self, power=power)

    @property
    def hb_equivalent_gb(self) -> float:
        """HB capacity, or for a machine without HB that of the stack with as many PEs."""
        return self.hb.capacity_gb if self.hb is not None else self.compute.pes * PE_SHARE_GB

    @property
    def devices(self) -> set[str]:
        """DRAM devices of its memories."""
        return {memory.device for memory in (self.ext, self.hb) if memory is not None}

    def as_tables(self) -> dict[str, dict[str, Any]]:
        """Every number with unit, source and status, by section, as plain values for JSON."""
        return {name: as_table(found) for name, found in self.quantities().items()}

    def quantities(self) -> dict[str, dict[str, Quantity]]:
        """Every number with unit, source and status, by section."""
        found = {name: getattr(self, name) for name in SECTIONS}
        return {name: dict(section.quantities) for name, section in found.items() if section is not None}


PE_SHARE_GB = 0.25
"""HB capacity per PE: 4 GB with 16 PEs, 8 GB with 32 (paper)."""
MAX_PES = 1 << 16
"""Of a stack that is scaled by `Machine.with_hb_gb`."""


def load_machine(name: str) -> Machine:
    """A built-in system by name, or a TOML file; ConfigError names what is wrong with it."""
    return machine_from_table(machine_table(name), name)


def machine_table(name: str) -> dict[str, Any]:
    """The resolved tables of a system: those of its base, with its own entries in their place."""
    table = read_system(name)
    if table.get("kind") == "host":
        raise ConfigError(f"{name} describes a host, not an accelerator; elmoe simulate takes it")
    if "base" not in table:
        return table
    base = table.pop("base")
    if base not in SYSTEMS:
        raise ConfigError(f"{name}: unknown base {base!r}{nearest(str(base), SYSTEMS)}")
    merged = machine_table(base)
    if name not in SYSTEMS:
        merged["name"] = Path(name).stem  # never the base's: results would pass for its own
    for key, value in table.items():
        known = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = deepcopy(merged[key]) | dict(value) if known else value
    return merged


def machine_from_table(table: Mapping[str, Any], where: str) -> Machine:
    """Validate resolved tables."""
    refuse_unknown(table, (*TEXTS, *SECTIONS), where)
    for key in ("name", *REQUIRED):
        if key not in table:
            raise ConfigError(f"{where}: {key} is missing; start from a built-in system with base = 'elmoe-3d'")
    sections = {}
    for key, kind in SECTIONS.items():
        if key in table:
            if not isinstance(table[key], Mapping):
                raise ConfigError(f"{where}: [{key}] must be a table")
            sections[key] = kind.from_table(table[key], f"{where}: {key}")
    if "hb" in sections and "links" not in sections:
        raise ConfigError(f"{where}: a machine with [hb] needs [links] between its PEs")
    if "hb" in sections and "near" in sections:
        raise ConfigError(f"{where}: [hb] and [near] in one machine are not modelled; leave one of them out")
    scheme = table.get("scheme", "none")
    if scheme not in SCHEMES:
        raise ConfigError(f"{where}: unknown scheme {scheme!r}{nearest(str(scheme), SCHEMES)}")
    description = str(table.get("description", ""))
    return Machine(name=str(table["name"]), description=description, scheme=scheme, **sections)  # type: ignore[arg-type]


def read_system(name: str) -> dict[str, Any]:
    """The tables of a built-in system or of a TOML file as they stand there; ConfigError where there are none."""
    if name in SYSTEMS:
        return tomllib.loads((files("elmoe.sim") / "specs" / f"{name}.toml").read_text(encoding="utf-8"))
    if name in MEASURED:
        return tomllib.loads((files("elmoe.sim") / "specs" / "measured" / f"{name}.toml").read_text(encoding="utf-8"))
    path = Path(name)
    if path.suffix != ".toml":
        raise ConfigError(f"unknown system {name!r}{nearest(name, (*SYSTEMS, *MEASURED))}; or give a .toml file")
    return read_toml(path)


def read_toml(path: Path) -> dict[str, Any]:
    """A user's TOML file; ConfigError where it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
