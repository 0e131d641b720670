"""Liberty files of standard cells: reading, choosing and merging cells, their functions, areas and tables.

A library may come in several files, also gzipped, as ASAP7's does. Cells are kept as text and parsed when asked for:
a library has tens of megabytes, a netlist a few dozen cells. Knows nothing about netlists.
"""

from __future__ import annotations

import fnmatch
import gzip
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from elmoe.errors import ConfigError
from elmoe.rtl.boolean import evaluate, parse_function

CONSERVATIVE = ("*x1p*", "*xp*", "SDF*", "ICG*", "DFFASRHQN*")
"""Cells that OpenROAD's flow does not use in ASAP7: fractional drive strengths, scan and clock-gating cells."""
_HEAD = re.compile(r"\n[ \t]*cell[ \t]*\([ \t]*\"?(\w+)\"?[ \t]*\)[ \t]*\{")
_TEMPLATE = re.compile(
    r"\n[ \t]*(lu_table_template|power_lut_template|operating_conditions)[ \t]*\(\"?([^\")]*)\"?\)[ \t]*\{"
)
_TOKEN = re.compile(r'"[^"]*"|[\w.+\-\[\]]+|[(){}:;,]')


@dataclass
class Group:
    """``kind (arguments) { attribute : value; group ... }``."""

    kind: str
    arguments: list[str]
    attributes: dict[str, str] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    def all(self, kind: str) -> Iterator[Group]:
        """The groups of a kind directly inside."""
        return (group for group in self.groups if group.kind == kind)

    def first(self, kind: str) -> Group | None:
        """The first of them."""
        return next(self.all(kind), None)


@dataclass(frozen=True)
class Library:
    """Cells by name, as text, and what stands before them."""

    header: str
    cells: Mapping[str, str]

    def text(self) -> str:
        """One Liberty file with all cells."""
        return self.header + "".join(self.cells.values()) + "\n}\n"

    def cell(self, name: str) -> Cell:
        """Parsed; ConfigError where the library has none of that name."""
        if name not in self.cells:
            raise ConfigError(f"the Liberty files have no cell {name}; give all files that the netlist was made with")
        return Cell(parse(self.cells[name]))

    def only(self, name: str) -> Library:
        """The library with one cell."""
        return Library(self.header, {name: self.cells[name]})

    def flip_flop(self) -> str:
        """The smallest plain D flip-flop of a rising clock. ConfigError without one.

        Yosys would take the first whose output is not inverted, in ASAP7 one that is larger than this and an inverter.
        """
        found = []
        for name, text in self.cells.items():
            if re.search(r"\bff\s*\(", text):
                cell, register = self.cell(name), self.cell(name).register
                clock = register.attributes.get("clocked_on", "") if register else ""
                plain = register is not None and not {"clear", "preset"} & set(register.attributes)
                if plain and clock in {pin.name for pin in cell.inputs} and len(cell.inputs) == 2:
                    found.append((cell.area, name))
        if not found:
            raise ConfigError("the Liberty files have no D flip-flop; give the library's sequential cells too")
        return min(found)[1]

    @property
    def voltage(self) -> float:
        """Nominal supply, V."""
        found = re.search(r"nom_voltage\s*:\s*([\d.]+)", self.header)
        if found is None:
            raise ConfigError("the Liberty files name no nom_voltage")
        return float(found[1])

    def full_adder(self) -> dict[str, str] | None:
        """The smallest inverting full adder: cell and pins by role (a, b, c, carry_n, sum_n), or None."""
        found = []
        for name, text in self.cells.items():
            outputs = len(re.findall(r'\bfunction\s*:\s*"(?!\(!VDD)', text))
            if outputs == 2 and (roles := _full_adder_roles(cell := self.cell(name))) is not None:
                found.append((cell.area, name, roles))
        return {"cell": min(found)[1], **min(found, key=lambda item: item[:2])[2]} if found else None

    def buffer(self) -> tuple[str, str]:
        """The smallest buffer and its input, as the driver of primary inputs. ConfigError without one."""
        found = []
        for name, text in self.cells.items():
            if len(re.findall(r"\bpin\s*\(", text)) == 2 and (
                match := re.search(r'\bfunction\s*:\s*"\(?(\w+)\)?"', text)
            ):
                cell = self.cell(name)
                if [pin.name for pin in cell.inputs] == [match[1]] and not cell.is_register:
                    found.append((cell.area, name, match[1]))
        if not found:
            raise ConfigError("the Liberty files have no buffer; give the library's inverters and buffers too")
        return min(found)[1:]


@dataclass(frozen=True)
class Pin:
    """One signal pin of a cell."""

    name: str
    output: bool
    capacitance: float
    """In the library's unit."""
    function: str
    group: Group


class Cell:
    """One parsed cell."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.name = group.arguments[0]
        self.area = float(group.attributes["area"])

    @cached_property
    def pins(self) -> list[Pin]:
        """In the file's order."""
        return [
            Pin(
                pin.arguments[0],
                pin.attributes.get("direction") == "output",
                float(pin.attributes.get("capacitance", 0)),
                pin.attributes.get("function", ""),
                pin,
            )
            for pin in self.group.all("pin")
        ]

    @property
    def inputs(self) -> list[Pin]:
        """Input pins."""
        return [pin for pin in self.pins if not pin.output]

    @property
    def outputs(self) -> list[Pin]:
        """Output pins."""
        return [pin for pin in self.pins if pin.output]

    @property
    def register(self) -> Group | None:
        """The ``ff`` group of a flip-flop."""
        return self.group.first("ff")

    @property
    def is_register(self) -> bool:
        """Whether it holds a value: a flip-flop or a latch."""
        return self.register is not None or self.group.first("latch") is not None


def read_library(paths: Sequence[Path], dont_use: Sequence[str] = CONSERVATIVE) -> Library:
    """Merge Liberty files (or gzipped ones), leaving out cells whose names match a pattern.

    Raises ConfigError for a file that is missing, is no Liberty, or when no cell is left.
    """
    header, cells = "", dict[str, str]()
    templates: dict[tuple[str | Any, ...], str] = {}
    for path in paths:
        text = _read(path)
        first = _HEAD.search(text)
        if first is None or "library" not in text[: first.start()]:
            raise ConfigError(
                f"{path} is no Liberty file of cells; give .lib or .lib.gz files of a standard-cell library"
            )
        for found in _TEMPLATE.finditer(head := text[: first.start()]):
            templates.setdefault(found.groups(), head[found.start() : _end(head, found.end())])
        header = header or head
        for found in _HEAD.finditer(text):
            if not any(fnmatch.fnmatchcase(found[1], pattern) for pattern in dont_use):
                cells[found[1]] = _repaired(text[found.start() : _end(text, found.end())])
    if not cells:
        raise ConfigError(f"every cell matches --dont-use {' '.join(dont_use)}; name fewer")
    missing = [text for text in templates.values() if text not in header]
    return Library(header + "".join(missing), cells)


def parse(text: str) -> Group:
    """One group and all inside it."""
    tokens = iter(_TOKEN.findall(re.sub(r"/\*.*?\*/|\\\n", " ", text, flags=re.DOTALL)))
    root = Group("", [])
    _fill(root, tokens)
    return root.groups[0]


def _full_adder_roles(cell: Cell) -> dict[str, str] | None:
    if len(cell.inputs) != 3 or len(cell.outputs) != 2 or cell.is_register:
        return None
    names = [pin.name for pin in cell.inputs]
    wanted = {"carry_n": lambda n: int(n < 2), "sum_n": lambda n: int(n % 2 == 0)}
    roles = dict(zip("abc", names, strict=True))
    for pin, (role, value) in itertools.product(cell.outputs, wanted.items()):
        points = itertools.product((0, 1), repeat=3)
        tree = parse_function(pin.function)
        if all(evaluate(tree, dict(zip(names, point, strict=True))) == value(sum(point)) for point in points):
            roles[role] = pin.name
    return roles if len(roles) == 5 else None


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; give the Liberty file (.lib or .lib.gz) of a standard-cell library"
        ) from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read as a Liberty file: {getattr(error, 'strerror', None) or error}"
        ) from None


def _end(text: str, position: int) -> int:
    """Behind the brace that closes the one before `position`."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, position):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    raise ConfigError("a Liberty file ends inside a group; it is cut short")


def _repaired(cell: str) -> str:
    """Some ``area`` lines of ASAP7 lack their semicolon."""
    return re.sub(r"(\barea\s*:\s*[\d.]+)\s*\n", r"\1;\n", cell)


def _fill(group: Group, tokens: Iterator[str]) -> None:
    words: list[str] = []
    for token in tokens:
        if token == "}":
            return
        if token == "{":
            kind, arguments = words[0], [word.strip('"') for word in words[2:] if word not in "(),"]
            inner = Group(kind, arguments)
            group.groups.append(inner)
            _fill(inner, tokens)
            words = []
        elif token == ";":
            if len(words) > 2 and words[1] == ":":
                group.attributes[words[0]] = " ".join(words[2:]).strip('"')
            elif len(words) > 2:  # a complex attribute: name (values)
                group.attributes[words[0]] = ",".join(word.strip('"') for word in words[2:] if word not in "(),")
            words = []
        else:
            words.append(token)
