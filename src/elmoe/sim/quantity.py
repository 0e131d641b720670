"""Numbers with unit, source and status, and the tables of them that TOML files hold.

A table of a specification file becomes a frozen dataclass whose fields were declared with `quantity`; in the file every
such field is an inline table:

    [ext]
    channels = { value = 8, unit = "1", source = "ELMoE-3D section 5", status = "paper" }

Knows nothing about what the numbers describe.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from enum import Enum
from typing import Any, Self

from elmoe.errors import ConfigError


class Status(Enum):
    """How far a number can be trusted."""

    DATASHEET = "datasheet"
    """A standard's or a vendor's."""
    PAPER = "paper"
    """Stated in the paper that is reproduced."""
    MEASURED = "measured"
    """By us; the source names the script."""
    ASSUMED = "assumed"
    """Chosen by us where nobody says; the source gives the reason."""
    CALIBRATED = "calibrated"
    """Fitted; the source says to what."""
    EXTRAPOLATED = "extrapolated"
    """Put together from what was measured on parts, and what is assumed about the rest."""


@dataclass(frozen=True)
class Quantity:
    """One entry of a specification file."""

    value: float | int | str
    unit: str
    source: str
    status: Status

    def as_dict(self) -> dict[str, float | int | str]:
        """The entry as a file has it."""
        return {"value": self.value, "unit": self.unit, "source": self.source, "status": self.status.value}


ENTRY = ("value", "unit", "source", "status")
UNIT, MINIMUM, ABOVE, MAXIMUM, CHOICES = "unit", "minimum", "above", "maximum", "choices"
LARGEST, SMALLEST = 1e15, 1e-15
"""Beyond them no quantity of a machine lies in any of our units; products of several stay finite."""


def quantity(
    unit: str,
    *,
    minimum: float = -math.inf,
    above: float = -math.inf,
    maximum: float = math.inf,
    choices: tuple[str, ...] = (),
    default: Any = MISSING,
) -> Any:
    """A field of a `Spec`: its unit ("1" where it has none) and its range. With a default the file may leave it out."""
    metadata = {UNIT: unit, MINIMUM: minimum, ABOVE: above, MAXIMUM: maximum, CHOICES: choices}
    return field(metadata=metadata) if default is MISSING else field(metadata=metadata, default=default)


@dataclass(frozen=True)
class Spec:
    """Base of the dataclasses that TOML tables become. `quantities` keeps unit, source and status of every field."""

    quantities: Mapping[str, Quantity] = field(default_factory=dict, kw_only=True, compare=False, repr=False)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str) -> Self:
        """Read one table; ConfigError names `where`, the field and the remedy."""
        declared = {item.name: item for item in fields(cls) if UNIT in item.metadata}
        refuse_unknown(table, declared, where)
        missing = [name for name, item in declared.items() if name not in table and item.default is MISSING]
        if missing:
            raise ConfigError(f"{where}: {missing[0]} is missing; give it a value, unit, source and status")
        entries = {name: _entry(table[name], declared[name], f"{where}.{name}") for name in table}
        return cls(**{name: entry.value for name, entry in entries.items()}, quantities=entries)

    def changed(self, source: str, **values: float) -> Self:
        """The same with other values, and `source` as where they come from."""
        entries = {
            name: replace(entry, value=values[name], source=source) if name in values else entry
            for name, entry in self.quantities.items()
        }
        return replace(self, **values, quantities=entries)


def as_table(quantities: Mapping[str, Quantity]) -> dict[str, dict[str, float | int | str]]:
    """Quantities as a table of a file has them: plain values, for JSON or to be read again."""
    return {name: entry.as_dict() for name, entry in quantities.items()}


def refuse_unknown(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """ConfigError for the first key that is not known, with the nearest one that is."""
    names = list(known)
    for key in table:
        if key not in names:
            raise ConfigError(f"{where}: unknown field {key!r}{nearest(key, names)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or the list of what is known."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"


def _entry(found: Any, item: Field[Any], where: str) -> Quantity:
    if not isinstance(found, Mapping):
        raise ConfigError(
            f'{where}: write {{ value = {found!r}, unit = "{item.metadata[UNIT]}", source = "...", status = "..." }}'
        )
    refuse_unknown(found, ENTRY, where)
    for key in ENTRY:
        if key not in found:
            raise ConfigError(f"{where}: {key} is missing; every number carries value, unit, source and status")
    if found["unit"] != item.metadata[UNIT]:
        raise ConfigError(f"{where}: is in {item.metadata[UNIT]!r}, not {found['unit']!r}; convert the value")
    if not isinstance(found["source"], str) or not found["source"].strip():
        raise ConfigError(f"{where}: source is empty; say where the number comes from")
    statuses = [status.value for status in Status]
    if found["status"] not in statuses:
        raise ConfigError(f"{where}: status {found['status']!r} is not one of {', '.join(statuses)}")
    value = _value(found["value"], item, where)
    return Quantity(value, found["unit"], found["source"], Status(found["status"]))


def _value(value: Any, item: Field[Any], where: str) -> float | int | str:
    """The value as the field's type, within its range. Field types are 'int', 'float' and 'str'."""
    wanted = str(item.type)
    if wanted == "str":
        choices = item.metadata[CHOICES]
        if not isinstance(value, str) or (choices and value not in choices):
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(choices)}")
        return value
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    if not number or (wanted == "int" and value != int(value)):
        raise ConfigError(f"{where}: {value!r} is not {'an integer' if wanted == 'int' else 'a number'}")
    if abs(value) > LARGEST or 0 < abs(value) < SMALLEST:
        raise ConfigError(f"{where}: the value is beyond any machine; check the unit")
    above, minimum, maximum = (item.metadata[key] for key in (ABOVE, MINIMUM, MAXIMUM))
    if not (above < value and minimum <= value <= maximum):
        bound = f"above {above:g}" if value <= above else f"at least {minimum:g}"
        bound = f"at most {maximum:g}" if value > maximum else bound
        raise ConfigError(f"{where}: must be {bound}, not {value:g}")
    return int(value) if wanted == "int" else float(value)
