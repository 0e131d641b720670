"""What a figure of the evaluation is: rows, how to draw them, and the command that gives any one of its numbers again.

Plain data that the page (`templates/reproduce.js`) and the images (`images.py`) draw alike. Knows nothing about where
rows come from.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elmoe.errors import ConfigError, InternalError
from elmoe.report.texts import figure_text

Row = Mapping[str, Any]
Step = str | int | Mapping[str, str]
"""A step into a JSON document: a key, an index, or ``{json key: column}``, the entry of a list that the row's columns
match."""
KINDS = ("line", "bars", "stack", "heat", "points", "tornado")
PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Command:
    """One command line per row, and where its JSON holds the row's numbers."""

    parts: tuple[str, ...]
    """With ``{column}`` for values of the row; a part whose columns are empty in the row is left out."""
    values: Mapping[str, tuple[Step, ...]]
    """Column -> steps into the document of ``--json``."""
    where: Row = field(default_factory=dict)
    """The rows that it is for: those with these values."""
    factors: Mapping[str, str] = field(default_factory=dict)
    """Column -> column that the document's number is multiplied with."""

    def serves(self, row: Row) -> bool:
        """Whether it gives this row."""
        return all(row.get(column) == value for column, value in self.where.items())

    def arguments(self, row: Row) -> list[str]:
        """As a shell would split it."""
        return [word for part in self.parts for word in _filled(part, row)]

    def text(self, row: Row) -> str:
        """To be typed."""
        return shlex.join(self.arguments(row))

    def value(self, document: Any, row: Row, column: str) -> float:
        """The number of the row's `column` in what the command printed."""
        found = document
        for step in self.values[column]:
            found = _entry(found, step, row) if isinstance(step, Mapping) else found[step]
        return float(found) * float(row[self.factors[column]] if column in self.factors else 1.0)

    def as_dict(self) -> dict[str, Any]:
        """For the page."""
        return {
            "parts": self.parts,
            "where": self.where,
            "values": {column: _path(steps) for column, steps in self.values.items()},
            "factors": self.factors,
        }


@dataclass(frozen=True)
class Chart:
    """One way of looking at a figure's rows. All fields but the texts name columns."""

    kind: str
    title: str
    x: str
    y: str
    z: str = ""
    """The colour of a heat map."""
    color: str = ""
    """One series per value."""
    dash: str = ""
    """A second way to tell series apart: line style or symbol."""
    facet: str = ""
    """One panel per value."""
    pick: Row = field(default_factory=dict)
    """Columns of which the reader chooses one value, and the first choice."""
    where: Row = field(default_factory=dict)
    """Only rows with these values."""
    x_title: str = ""
    y_title: str = ""
    z_title: str = ""
    log_x: bool = False
    log_y: bool = False
    category_x: bool = False
    lying: bool = False
    """Bars from left to right: for long names."""
    own_scale: bool = False
    """Panels differ too much for one range of y."""
    middle: float | None = None
    """Of a heat map: the value between its two colours."""
    parity: bool = False
    """Draw y = x and 15 % beside it."""
    outline: Row = field(default_factory=dict)
    """Rows of other kind, drawn as lines over a heat map: one line per value of `outline_color`."""
    outline_x: str = ""
    outline_color: str = ""
    mark: str = ""
    """A column of true and false: true points stand out."""
    hover: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InternalError(f"chart {self.title!r}: unknown kind {self.kind!r}")

    @property
    def columns(self) -> set[str]:
        """Every column that it needs."""
        named = (self.x, self.y, self.z, self.color, self.dash, self.facet, self.outline_x, self.outline_color)
        more = (self.mark, *self.pick, *self.where, *self.outline, *self.hover)
        return {name for name in (*named, *more) if name}


@dataclass(frozen=True)
class Figure:
    """A figure without its rows."""

    id: str
    """``fig14`` or ``table3``."""
    name: str
    """Another name for `--only`."""
    charts: tuple[Chart, ...]
    commands: tuple[Command, ...]
    section: str

    @property
    def title(self) -> str:
        """What it shows, in one line."""
        return figure_text(self.id, "title")

    @property
    def evidence(self) -> str:
        """How its numbers are known: simulated, measured, quoted."""
        return figure_text(self.id, "evidence")

    @property
    def says(self) -> str:
        """What to see in it; HTML without block elements, numbers of the rows in braces."""
        return figure_text(self.id, "says")

    @property
    def how(self) -> str:
        """Conditions and assumptions; HTML without block elements."""
        return figure_text(self.id, "how")

    def command(self, row: Row) -> Command | None:
        """That gives this row."""
        return next((command for command in self.commands if command.serves(row)), None)

    @property
    def columns(self) -> list[str]:
        """What the page needs of the rows."""
        needed = set().union(*(chart.columns for chart in self.charts))
        for command in self.commands:
            needed |= {*command.where, *command.values, *command.factors.values()}
            needed |= {name for part in command.parts for name in PLACE.findall(part)}
            needed |= {column for steps in command.values.values() for step in steps for column in _columns(step)}
        return sorted(needed)


def chosen(rows: Sequence[Row], **values: Any) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in values.items())]


def suited(rows: Sequence[Row], **picks: Any) -> list[Row]:
    """Rows with these values, or with none in their place."""
    return [row for row in rows if all(row.get(name) in (None, value) for name, value in picks.items())]


def select(figures: Sequence[Figure], asked: Sequence[str]) -> list[Figure]:
    """The figures with these ids or names, in the page's order. ConfigError for an unknown name."""
    known = {key: figure for figure in figures for key in (figure.id, figure.name)}
    wanted = []
    for name in asked:
        if name not in known:
            names = ", ".join(f"{figure.id} ({figure.name})" for figure in figures)
            raise ConfigError(f"--only: unknown figure {name!r}; known are {names}")
        wanted.append(known[name])
    return [figure for figure in figures if figure in wanted]


def shown(value: Any) -> str:
    """A value as a command line takes it."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _filled(part: str, row: Row) -> list[str]:
    names = PLACE.findall(part)
    if any(row.get(name) is None for name in names):
        return []
    return [PLACE.sub(lambda found: shown(row[found[1]]), word) for word in part.split(" ")]


def _entry(found: Any, match: Mapping[str, str], row: Row) -> Any:
    return next(entry for entry in found if all(entry[key] == row[column] for key, column in match.items()))


def _columns(step: Step) -> list[str]:
    return list(step.values()) if isinstance(step, Mapping) else []


def _path(steps: Sequence[Step]) -> str:
    """For people: ``rows[0].phases.draft.ms``, ``grid[bits, pool].agreement``."""
    text = ""
    for step in steps:
        if isinstance(step, str):
            text += f".{step}"
        else:
            text += f"[{step}]" if isinstance(step, int) else f"[with this {', '.join(step)}]"
    return text.removeprefix(".")
