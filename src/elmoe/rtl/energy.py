"""Energy of a synthesised block from gate-level simulation with SDF delays: toggles per net times what a toggle costs.

A toggle of a net costs the internal energy of the cell that drives it (Liberty tables, at the net's load and a typical
slew) and ``C V**2 / 2`` of the pins behind it; a flip-flop also pays for both edges of its clock. Given as a range:

* lower bound: internal energy drawn from the supply alone, no wires;
* upper bound: internal energy of both rails, and a wire of WIRE_FF per sink.

Before layout and without a clock tree. Knows nothing about what the block computes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from elmoe.rtl.liberty import Cell, Library
from elmoe.rtl.tables import transition_energy

WIRE_FF = 0.5
"""Assumed per sink in the upper bound: about 2.5 um of a lower metal layer."""
SETTLED_CYCLES = 8
"""Left out at the start of a run."""
CYCLE_FS = 1_000_000


@dataclass(frozen=True)
class Energy:
    """fJ per cycle, lower and upper bound, and where the upper one goes."""

    lower_fj: float
    upper_fj: float
    net_fj: float
    internal_fj: float
    clock_fj: float
    leakage_fj: float
    toggles: float
    """Per cycle."""

    def per(self, count: float) -> tuple[float, float]:
        """The range per operation, when a cycle does `count` of them."""
        return self.lower_fj / count, self.upper_fj / count


def energy(netlist: Mapping[str, Any], vcd: Path, cycles: int, library: Library) -> Energy:
    """Energy per cycle of a netlist (Yosys' JSON) whose simulation of `cycles` cycles was written to a VCD file."""
    counted = cycles - SETTLED_CYCLES
    clock = netlist["ports"]["clk"]["bits"][0]
    rates = {net: n / counted for net, n in _toggles(netlist, vcd).items() if net != clock}
    sinks = _sinks(netlist, library)
    volts = library.voltage
    internal, clocked, leakage = [0.0, 0.0], [0.0, 0.0], 0.0
    costs = _Costs(library)
    for cell in netlist["cells"].values():
        parsed = costs.cell(cell["type"])
        leakage += costs.leakage(cell["type"])
        clock_pin = parsed.register.attributes["clocked_on"] if parsed.register else None
        for pin in parsed.pins:
            if pin.name not in cell["connections"]:
                continue
            (net,) = cell["connections"][pin.name]
            for bound, wire in enumerate((0.0, WIRE_FF)):
                if pin.output and net in rates:
                    load = sum(sinks[net]) + wire * len(sinks[net])
                    internal[bound] += rates[net] * costs.toggle(cell["type"], pin.name, load)[bound]
                elif pin.name == clock_pin:
                    clocked[bound] += 2 * costs.toggle(cell["type"], pin.name, 0.0)[bound]
    net_fj = [
        sum(rate * 0.5 * volts**2 * (sum(sinks[net]) + wire * len(sinks[net])) for net, rate in rates.items())
        for wire in (0.0, WIRE_FF)
    ]
    return Energy(
        lower_fj=net_fj[0] + internal[0] + clocked[0] + leakage,
        upper_fj=net_fj[1] + internal[1] + clocked[1] + leakage,
        net_fj=net_fj[1],
        internal_fj=internal[1],
        clock_fj=clocked[1],
        leakage_fj=leakage,
        toggles=sum(rates.values()),
    )


class _Costs:
    """Energies of cells, looked up once per load."""

    def __init__(self, library: Library) -> None:
        self.cell = cache(library.cell)
        self.toggle = cache(self._toggle)
        self.leakage = cache(self._leakage)

    def _toggle(self, name: str, pin: str, load: float) -> tuple[float, float]:
        return transition_energy(self.cell(name), pin, load)

    def _leakage(self, name: str) -> float:
        """FJ per cycle of 1 ns: pW are 1e-6 fJ per ns."""
        found = [
            float(group.attributes["value"])
            for group in self.cell(name).group.all("leakage_power")
            if group.attributes.get("related_pg_pin", "VDD") == "VDD"
        ]
        return sum(found) / max(len(found), 1) * 1e-6


def _sinks(netlist: Mapping[str, Any], library: Library) -> dict[int, list[float]]:
    """Input capacitances, fF, behind every net."""
    capacitances: dict[str, dict[str, float]] = {}
    found: dict[int, list[float]] = defaultdict(list)
    for cell in netlist["cells"].values():
        kind = cell["type"]
        if kind not in capacitances:
            parsed: Cell = library.cell(kind)
            capacitances[kind] = {pin.name: pin.capacitance for pin in parsed.inputs}
        for pin, (net,) in cell["connections"].items():
            if pin in capacitances[kind]:
                found[net].append(capacitances[kind][pin])
    return found


def _toggles(netlist: Mapping[str, Any], vcd: Path) -> dict[int, float]:
    """Transitions of every net between 0 and 1 after SETTLED_CYCLES; a net with several names counts once."""
    bits = {
        (name, k): net
        for group in ("netnames", "ports")
        for name, found in netlist[group].items()
        for k, net in enumerate(found["bits"])
    }
    nets: dict[str, list[int | None]] = {}
    counts: dict[str, list[int]] = {}
    values: dict[str, str] = {}
    counting = False
    for line in _lines(vcd):
        if line.startswith("$var"):
            _, _, width, code, name, *rest = line.split()
            high = int(rest[0].strip("[]").split(":")[0]) if rest[0] != "$end" else 0
            nets[code] = [bits.get((name, high - k)) for k in range(int(width))]
            counts[code] = [0] * int(width)
        elif line[0] == "#":
            counting = int(line[1:]) >= SETTLED_CYCLES * CYCLE_FS
        elif line[0] in "01xzb":
            value, code = line[1:].split() if line[0] == "b" else (line[0], line[1:].strip())
            value = value.rjust(len(counts[code]), "0" if value[0] in "01" else value[0])
            for k, (old, new) in enumerate(zip(values.get(code, value), value, strict=True)):
                counts[code][k] += counting and old + new in {"01", "10"}
            values[code] = value
    found: dict[int, float] = {}
    for code, of_code in nets.items():
        for net, count in zip(of_code, counts[code], strict=True):
            if isinstance(net, int):
                found[net] = max(found.get(net, 0), count)
    return found


def _lines(vcd: Path) -> Iterator[str]:
    with vcd.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield line.rstrip("\n")
