"""Reading and checking the TOML file of a sweep.

::

    models = ["qwen3-30b-a3b"]
    systems = ["xpu", "elmoe-3d"]
    hb_gb = [4, 8]
    batches = [1, 4, 16]

    [vary]
    "ext.gb_per_s" = [51.2, 102.4, 204.8]

Paths of models and systems are relative to the working folder, as on the command line. What the lists mean together is
`sweep.py`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from elmoe.errors import ConfigError, InputError
from elmoe.sim.model import MODELS, load_model
from elmoe.sim.profile import workloads
from elmoe.sim.quantity import UNIT, nearest, refuse_unknown
from elmoe.sim.run import MAX_BATCH
from elmoe.sim.schemes import MODES
from elmoe.sim.spec import SCHEMES, SECTIONS, Machine, Memory, load_machine, read_toml
from elmoe.sim.sweep import Sweep, Variation, with_settings
from elmoe.sim.systems import effective_bandwidth

Given = TypeVar("Given")
Made = TypeVar("Made")

EXAMPLES = {
    "models": f'["{MODELS[0]}"]',
    "systems": '["xpu", "elmoe-3d"]',
    "schemes": '["none", "elastic"]',
    "modes": '["sd"]',
    "hb_gb": "[4, 8]",
    "batches": "[1, 4]",
    "contexts": "[1024]",
    "workloads": '["mt-bench"]',
    "acceptance": "[0.6, 0.8]",
}
"""The lists that a sweep may have. Left out, they are what `elmoe simulate` does by default."""
UNITS = {
    f"{section}.{item.name}": item.metadata[UNIT]
    for section, kind in SECTIONS.items()
    for item in fields(kind)
    if UNIT in item.metadata
}
"""The fields that can be varied."""


def load_sweep(path: Path) -> Sweep:
    """Read and check a sweep. ConfigError names the file and the key; nothing has been evaluated by then."""
    table, where = read_toml(path), str(path)
    refuse_unknown(table, (*EXAMPLES, "vary"), where)
    models = {name: _at(where, load_model, name) for name in _texts(table, "models", where) or MODELS[:1]}
    machines = _machines(_texts(table, "systems", where) or ("elmoe-3d",), where)
    sizes = _numbers(table, "hb_gb", where)
    for machine, size in product(machines.values(), sizes):
        _at(where, machine.with_hb_gb, size)
    vary = _variations(table.get("vary", {}), list(machines.values()), f"{where}: vary")
    if sizes and any(item.name == "hb.capacity_gb" for item in vary):
        raise ConfigError(f"{where}: hb.capacity_gb is what hb_gb sets, with banks and PEs to match; give one of them")
    return Sweep(
        models=models,
        machines=machines,
        schemes=_texts(table, "schemes", where, SCHEMES),
        modes=_texts(table, "modes", where, MODES) or ("sd",),
        hb_gb=sizes or (None,),
        batches=_integers(table, "batches", where, MAX_BATCH) or (1,),
        contexts=_integers(table, "contexts", where, max(model.max_context for model in models.values())) or (1024,),
        workloads=_texts(table, "workloads", where, tuple(workloads())) or ("mt-bench",),
        acceptance=_shares(table, "acceptance", where) or (None,),
        vary=vary,
    )


def _machines(names: Sequence[str], where: str) -> dict[str, Machine]:
    found: dict[str, Machine] = {}
    for name in names:
        machine = _at(where, load_machine, name)
        if machine.name in found:
            raise ConfigError(f"{where}: systems: two are named {machine.name!r}; give each its own name in its file")
        found[machine.name] = machine
    return found


def _variations(table: Any, machines: Sequence[Machine], where: str) -> tuple[Variation, ...]:
    """[vary]: dotted names in quotes, or tables in tables, which is what TOML makes of dotted names without quotes."""
    if not isinstance(table, Mapping):
        raise ConfigError(f'{where} must be a table, for example [vary] and "ext.gb_per_s" = [51.2, 102.4]')
    flat: list[tuple[str, Any]] = []
    for key, value in table.items():
        nested = isinstance(value, Mapping) and key in SECTIONS
        flat += [(f"{key}.{name}", inner) for name, inner in value.items()] if nested else [(key, value)]
    _once([name for name, _ in flat], where)
    return tuple(_variation(name, values, machines, where) for name, values in flat)


def _variation(name: str, given: Any, machines: Sequence[Machine], where: str) -> Variation:
    """One field: a list in the unit of the field, or ``{ values = [...], unit = "GB/s" }``, whose unit is checked."""
    if name not in UNITS:
        raise ConfigError(f"{where}: unknown field {name!r}{nearest(name, UNITS)}")
    here = f"{where}: {name}"
    if isinstance(given, Mapping):
        refuse_unknown(given, ("values", "unit"), here)
        if given.get("unit", UNITS[name]) != UNITS[name]:
            raise ConfigError(f"{here}: is in {UNITS[name]!r}, not {given['unit']!r}; convert the values")
        given = given.get("values")
    section, _, field = name.partition(".")
    having = [machine for machine in machines if getattr(machine, section) is not None]
    if not having:
        raise ConfigError(f"{here}: no system of this sweep has {section}; leave the field out")
    made = [with_settings(having[0], [(name, value)], where) for value in _listed(given, here, "[1, 2]")]
    values = _once([getattr(getattr(machine, section), field) for machine in made], here)
    if SECTIONS[section] is Memory:
        for machine, value in product(having, values):  # the DRAM model lacks some devices and mappings
            _at(here, effective_bandwidth, with_settings(machine, [(name, value)], where))
    return Variation(section, field, values)


def _texts(table: Mapping[str, Any], key: str, where: str, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    found = _list(table, key, where)
    for value in found:
        if not isinstance(value, str):
            raise ConfigError(f"{where}: {key}: {value!r} is not a name; write {key} = {EXAMPLES[key]}")
        if known and value not in known:
            raise ConfigError(f"{where}: {key}: unknown {value!r}{nearest(value, known)}")
    return found


def _integers(table: Mapping[str, Any], key: str, where: str, most: int) -> tuple[int, ...]:
    found = _list(table, key, where)
    for value in found:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ConfigError(f"{where}: {key}: must be whole numbers from 1 to {most}, not {value!r}")
    return found


def _numbers(table: Mapping[str, Any], key: str, where: str) -> tuple[float, ...]:
    found = _list(table, key, where)
    for value in found:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise ConfigError(f"{where}: {key}: {value!r} is not a number; write {key} = {EXAMPLES[key]}")
    return tuple(float(value) for value in found)


def _shares(table: Mapping[str, Any], key: str, where: str) -> tuple[float, ...]:
    found = _numbers(table, key, where)
    for value in found:
        if not 0 <= value <= 1:
            raise ConfigError(f"{where}: {key}: must lie in 0..1, not {value:g}")
    return found


def _list(table: Mapping[str, Any], key: str, where: str) -> tuple[Any, ...]:
    """The list under a key, () where there is none."""
    if key not in table:
        return ()
    return _once(_listed(table[key], f"{where}: {key}", EXAMPLES[key]), f"{where}: {key}")


def _listed(found: Any, where: str, example: str) -> list[Any]:
    if not isinstance(found, list):
        raise ConfigError(f"{where} must be a list, for example {example}")
    if not found:
        raise ConfigError(f"{where} is empty; give for example {example}, or leave it out")
    return found


def _once(values: Sequence[Any], where: str) -> tuple[Any, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ConfigError(f"{where}: {value!r} is given twice")
    return tuple(values)


def _at(where: str, make: Callable[[Given], Made], argument: Given) -> Made:
    """make(argument), with the place in the message of what it refuses."""
    try:
        return make(argument)
    except InputError as error:
        raise type(error)(f"{where}: {error}") from None
