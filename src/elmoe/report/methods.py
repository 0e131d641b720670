"""The methods section: every number that a simulated result hangs on, with unit, source and status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elmoe.sim.cost import prices
from elmoe.sim.dram import load_device
from elmoe.sim.host.spec import is_host, load_host
from elmoe.sim.model import MODELS, load_model
from elmoe.sim.profile import profile_entries, scheme_specs
from elmoe.sim.quantity import as_table
from elmoe.sim.spec import SYSTEMS, load_machine


@dataclass(frozen=True)
class Assumption:
    """One number."""

    name: str
    value: Any
    unit: str
    source: str
    status: str


def assumptions(files: Sequence[str] = ()) -> list[tuple[str, list[Assumption]]]:
    """Tables of numbers: machines (of all but the first what differs from it), DRAM, schemes, profiles, prices."""
    base = load_machine("xpu").as_tables()
    found = [("xpu", _entries(base))]
    for name in (*SYSTEMS[1:], *files):
        host = is_host(name)
        tables = load_host(name).as_tables() if host else _different(load_machine(name).as_tables(), base)
        found.append((name, _entries(tables)))
    devices = sorted({device for name in SYSTEMS for device in load_machine(name).devices})
    found += [(f"DRAM {name}", _entries({"": as_table(load_device(name).quantities)})) for name in devices]
    found.append(("speculation schemes", _entries(scheme_specs().as_tables())))
    found.append(("profiles of models and workloads", _entries(profile_entries())))
    found.append(("prices", _entries({"": as_table(prices().quantities)})))
    found.append(("models (config.json)", [_model(name) for name in MODELS]))
    return found


def _different(tables: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    return {
        section: {name: entry for name, entry in table.items() if base.get(section, {}).get(name) != entry}
        for section, table in tables.items()
    }


def _entries(tables: Mapping[str, Mapping[str, Any]]) -> list[Assumption]:
    return [
        Assumption(f"{section}.{name}" if section else name, **entry)
        for section, table in tables.items()
        for name, entry in table.items()
    ]


def _model(name: str) -> Assumption:
    model = load_model(name)
    size = f"{model.total_bytes / 1e9:.1f} GB"
    what = (
        f"{model.layers} layers, {model.moe_layers} of them with {model.experts} experts, top-{model.experts_per_tok}; "
        f"hidden {model.hidden}, expert hidden {model.expert_hidden}"
    )
    return Assumption(name, size, "", what, "datasheet")
