"""What if: other values in the fields of machines and schemes, by dotted name, as ``hb.gb_per_s`` or ``tree.depth``.

Machines without the section stay as they are. Knows nothing about where the values come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from elmoe.errors import ConfigError
from elmoe.sim.profile import SchemeSpecs
from elmoe.sim.quantity import UNIT, Quantity, Spec, Status, as_table, nearest
from elmoe.sim.spec import SECTIONS, Machine
from elmoe.sim.sweep import Value, with_settings

SCHEME_SECTIONS = tuple(item.name for item in fields(SchemeSpecs))
Setting = tuple[str, Value]


def parse_setting(text: str) -> Setting:
    """``hb.gb_per_s=1638.4`` -> its name and value. ConfigError where it is none."""
    name, equals, written = text.partition("=")
    if not equals or not name or not written:
        raise ConfigError(f"--vary: cannot read {text!r}; write for example hb.gb_per_s=1638.4")
    try:
        number = float(written)
    except ValueError:
        return name, written
    return name, int(number) if number.is_integer() else number


def what_if(
    machines: Sequence[Machine], specs: SchemeSpecs, settings: Sequence[Setting]
) -> tuple[list[Machine], SchemeSpecs]:
    """The same with other values. ConfigError for unknown fields, impossible values, and fields that no machine has."""
    made = list(machines)
    for name, value in settings:
        section, _, field = name.partition(".")
        known = _known(made, specs)
        if name not in known:
            raise ConfigError(f"--vary: unknown field {name!r}{nearest(name, known)}")
        if section in SCHEME_SECTIONS:
            changed: Any = {section: _changed(getattr(specs, section), field, value, f"--vary {section}")}
            specs = replace(specs, **changed)
            continue
        made = [
            machine if getattr(machine, section) is None else with_settings(machine, [(name, value)], "--vary")
            for machine in made
        ]
    return made, specs


def _known(machines: Sequence[Machine], specs: SchemeSpecs) -> list[str]:
    """Fields that some machine or the schemes have."""
    of_machines = {
        section: kind for section, kind in SECTIONS.items() if any(getattr(one, section) for one in machines)
    }
    of_schemes: dict[str, Any] = {section: type(getattr(specs, section)) for section in SCHEME_SECTIONS}
    return [
        f"{section}.{item.name}"
        for section, kind in (of_machines | of_schemes).items()
        for item in fields(kind)
        if UNIT in item.metadata
    ]


def _changed(spec: Spec, field: str, value: Value, where: str) -> Spec:
    table = as_table(spec.quantities)
    unit = spec.__dataclass_fields__[field].metadata[UNIT]
    table[field] = Quantity(value, unit, "what if", Status.ASSUMED).as_dict()
    return type(spec).from_table(table, where)
