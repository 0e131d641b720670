"""What a design-space sweep asks for, and cutting it into chunks of work in a fixed order.

All combinations are meant, with three rules. Scheme none decodes in mode ar, whatever `modes` says. A varied field of
a section that a system lacks (``hb.*`` on xpu) is not varied there: that system is one design, not one per value.
Varied fields are applied after `hb_gb` and are final. A scenario is a model, workload, acceptance, batch and context;
the rest is the design. Knows nothing about the file that says it
(`sweep_file.py`), results or workers.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from importlib.resources import files
from itertools import islice, product
from typing import Any

from elmoe.sim.dram import load_device
from elmoe.sim.model import SimModel
from elmoe.sim.profile import scheme_specs
from elmoe.sim.quantity import UNIT, Quantity, Status, as_table
from elmoe.sim.spec import SECTIONS, Machine

Value = float | int | str

CASE_POINTS = 1024
"""At most so many (batch, context) points are evaluated at once."""
CHUNK_CASES = 128
"""Cases of a chunk: about a third of a second, which is what a killed run loses."""


@dataclass(frozen=True)
class Variation:
    """A field of the machines and the values that it takes."""

    section: str
    field: str
    values: tuple[Value, ...]

    @property
    def name(self) -> str:
        """``ext.gb_per_s``."""
        return f"{self.section}.{self.field}"


@dataclass(frozen=True)
class Design:
    """One machine and what runs on it."""

    system: str
    hb_gb: float | None
    settings: tuple[tuple[str, Value], ...]
    """Varied fields by dotted name, those that the system has."""
    scheme: str
    mode: str


@dataclass(frozen=True)
class Case:
    """What is evaluated at once: these batches at all contexts of the sweep."""

    model: str
    workload: str
    acceptance: float | None
    design: Design
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Chunk:
    """A piece of work, the same however many workers there are."""

    index: int
    cases: tuple[Case, ...]
    points: int


@dataclass(frozen=True)
class Sweep:
    """A sweep whose every value is known to be possible by itself."""

    models: Mapping[str, SimModel]
    machines: Mapping[str, Machine]
    schemes: tuple[str, ...]
    """Empty: what each system is for."""
    modes: tuple[str, ...]
    hb_gb: tuple[float | None, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    workloads: tuple[str, ...]
    acceptance: tuple[float | None, ...]
    vary: tuple[Variation, ...]

    @property
    def points(self) -> int:
        """Rows of the result."""
        scenarios = len(self.models) * len(self.workloads) * len(self.acceptance)
        return scenarios * sum(1 for _ in self.designs()) * len(self.batches) * len(self.contexts)

    def designs(self) -> Iterator[Design]:
        """All designs; the last list varies fastest."""
        for name, machine in self.machines.items():
            here = [item for item in self.vary if getattr(machine, item.section) is not None]
            ways = dict.fromkeys(
                (scheme, "ar" if scheme == "none" else mode)
                for scheme, mode in product(self.schemes or (machine.scheme,), self.modes)
            )
            for hb_gb, values in product(self.hb_gb, product(*(item.values for item in here))):
                settings = tuple((item.name, value) for item, value in zip(here, values, strict=True))
                for scheme, mode in ways:
                    yield Design(name, hb_gb, settings, scheme, mode)

    def chunks(self) -> Iterator[Chunk]:
        """The work, in the order of the rows."""
        cases = self._cases()
        index = 0
        while taken := tuple(islice(cases, CHUNK_CASES)):
            yield Chunk(index, taken, sum(len(case.batches) for case in taken) * len(self.contexts))
            index += 1

    def machine(self, design: Design) -> Machine:
        """The machine of a design."""
        made = self.machines[design.system]
        if design.hb_gb is not None:
            made = made.with_hb_gb(design.hb_gb)
        return with_settings(made, design.settings, design.system)

    def resolved(self) -> dict[str, Any]:
        """Everything that the rows follow from, for JSON; equal for equal rows."""
        axes = {item.name: list(getattr(self, item.name)) for item in fields(self) if item.name != "vary"}
        return {
            "elmoe_version": importlib.metadata.version("elmoe"),
            "simulator_sha256": _simulator_digest(),
            "sweep": axes | {"vary": {item.name: list(item.values) for item in self.vary}},
            "machines": {name: machine.as_tables() for name, machine in self.machines.items()},
            "devices": {name: as_table(load_device(name).quantities) for name in sorted(self._devices())},
            "models": {name: asdict(model) for name, model in self.models.items()},
            "schemes": scheme_specs().as_tables(),
        }

    def _devices(self) -> set[str]:
        varied = {str(value) for item in self.vary if item.field == "device" for value in item.values}
        return varied.union(*(machine.devices for machine in self.machines.values()))

    def _cases(self) -> Iterator[Case]:
        block = max(1, CASE_POINTS // len(self.contexts))
        blocks = [self.batches[at : at + block] for at in range(0, len(self.batches), block)]
        for model, workload, acceptance in product(self.models, self.workloads, self.acceptance):
            for design, batches in product(self.designs(), blocks):
                yield Case(model, workload, acceptance, design, batches)


def with_settings(machine: Machine, settings: Sequence[tuple[str, Value]], where: str) -> Machine:
    """The machine with other values in the fields named ``section.field``; its numbers then say "sweep", "assumed"."""
    made: dict[str, Any] = {}
    for name, value in settings:
        section, _, field = name.partition(".")
        spec = made.get(section) or getattr(machine, section)
        table = as_table(spec.quantities)
        unit = SECTIONS[section].__dataclass_fields__[field].metadata[UNIT]
        table[field] = Quantity(value, unit, "sweep", Status.ASSUMED).as_dict()
        made[section] = type(spec).from_table(table, f"{where}: {section}")
    return replace(machine, **made)


def _simulator_digest() -> str:
    """Of the simulator's own files: parts that another state of the code computed are not mixed with new ones."""
    digest = sha256()
    folders = [files("elmoe.sim")]
    while folders:
        for entry in sorted(folders.pop().iterdir(), key=lambda one: one.name):
            if entry.is_dir():
                if entry.name != "__pycache__":
                    folders.append(entry)
            elif not entry.name.endswith(".pyc"):
                digest.update(entry.name.encode() + b"\0" + entry.read_bytes())
    return digest.hexdigest()
