"""Rows of the simulator for figures, and the command that gives each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from elmoe.errors import CapacityError, ConfigError
from elmoe.report.figure import Command, Step
from elmoe.sim.host.cache import Budget
from elmoe.sim.host.rows import Load, Point, profile_row
from elmoe.sim.host.spec import load_host
from elmoe.sim.model import MODELS, load_model
from elmoe.sim.profile import named_profile, scheme_specs
from elmoe.sim.run import Query, rows
from elmoe.sim.spec import Machine, load_machine
from elmoe.sim.what_if import parse_setting, what_if
from elmoe.sim.write_rows import flatten

BATCHES = (1, 2, 4, 8, 16)
PLAIN = ("none", "ar")
SETTINGS = ("model", "system", "scheme", "mode", "hb_gb", "batch", "context", "workload")
ENERGY = ("compute", "ext", "hb", "comm", "static")
HOST_BYTES, HOST_CONTEXT = 8_000_000_000, 1024
"""As much as the larger HB."""
SHOWN = ("latency_ms_per_token", "speedup_vs_xpu", "energy_mj_per_token.total", "acceptance_rate", "bottleneck")
"""What a reader wants to know of every point."""
PARTS = (
    *("elmoe simulate", "--model {model}", "--system {system}", "--system {system_file}", "--hb-gb {hb_gb}"),
    "--fast-bytes {fast_bytes}",
    *("--scheme {scheme}", "--mode {mode}", "--batch {batch}", "--context {context}", "--workload {workload}"),
    *("--acceptance {acceptance}", "--vary {vary}", "--vary {vary_too}", "--json"),
)


@dataclass(frozen=True)
class Study:
    """Points of the simulator: all combinations."""

    systems: tuple[str, ...]
    ways: tuple[tuple[str, str], ...] = (PLAIN,)
    """(scheme, mode)."""
    models: tuple[str, ...] = MODELS
    hb_gb: tuple[float, ...] = (8,)
    batches: tuple[int, ...] = BATCHES
    contexts: tuple[int, ...] = (1024,)
    workloads: tuple[str, ...] = ("mt-bench",)
    acceptance: float | None = None
    vary: tuple[str, ...] = ()
    """At most two, as ``hb.gb_per_s=1638.4``."""

    def rows(self, keep: Sequence[str] = ()) -> list[dict[str, Any]]:
        """One row per point that can be: settings, SHOWN, and the columns of `keep`, by their dotted names."""
        wanted = (*SETTINGS, *SHOWN, *keep)
        vary = dict(zip(("vary", "vary_too"), (*self.vary, None, None)[:2], strict=True))
        return [
            {name: row.get(name) for name in wanted}
            | {"acceptance": self.acceptance if row["mode"] == "sd" else None}
            | vary
            for row in self._points()
        ]

    def _points(self) -> Iterator[dict[str, Any]]:
        asked = list(product(self.systems, self.hb_gb))
        machines, specs = what_if(
            [load_machine(name).with_hb_gb(size) for name, size in asked],
            scheme_specs(),
            [parse_setting(text) for text in self.vary],
        )
        for name, workload in product(self.models, self.workloads):
            model = load_model(name)
            profile = named_profile(model, workload, specs)
            contexts = tuple(context for context in self.contexts if context <= model.max_context)
            for ((_, size), machine), (scheme, mode) in product(zip(asked, machines, strict=True), self.ways):
                given = None if mode == "ar" else self.acceptance
                query = Query(machine, model, profile, workload, scheme, mode, self.batches, contexts, given)
                for row in possible(query, specs):
                    yield flatten(row) | {"hb_gb": float(size)}  # as asked for, not as varied


def possible(query: Query, specs: Any) -> list[dict[str, Any]]:
    """Rows of the points that fit into the machine's memory."""
    try:
        return rows([query], specs)
    except CapacityError:
        points = list(product(query.batches, query.contexts))
    if len(points) == 1:
        return []
    found = []
    for batch, context in points:
        found += possible(replace(query, batches=(batch,), contexts=(context,)), specs)
    return found


def machine_rows(machine: Machine, path: str, ways: Sequence[tuple[str, str]], keep: Sequence[str] = ()) -> list[Any]:
    """Rows of a machine that a file describes, as it is: all models at all batches."""
    made, specs = [], scheme_specs()
    for name, (scheme, mode) in product(MODELS, ways):
        model = load_model(name)
        profile = named_profile(model, "mt-bench", specs)
        for row in possible(Query(machine, model, profile, "mt-bench", scheme, mode, BATCHES), specs):
            flat = flatten(row)
            named = {"shown_system": machine.name, "system_file": path, "system": None, "hb_gb": None}
            made.append({name: flat.get(name) for name in (*SETTINGS, *SHOWN, *keep)} | named)
    return made


def host_rows(path: str, keep: Sequence[str] = ()) -> list[Any]:
    """Rows of a host (RAM in front of a disk) with a budget of HOST_BYTES, for the models that it can run."""
    made, specs, host = [], scheme_specs(), load_host(path)
    for name in MODELS:
        model = load_model(name)
        load = Load(model, named_profile(model, "mt-bench", specs), "mt-bench")
        for mode, batch in product(("ar", "sd"), BATCHES):
            try:
                row = profile_row(host, load, Budget(HOST_BYTES), Point(mode, batch, HOST_CONTEXT), specs)
            except (CapacityError, ConfigError):  # too small a budget, or MXFP4 experts, which it does not model
                continue
            flat = flatten(row)
            named = {"shown_system": host.name, "system_file": path, "system": None, "hb_gb": None}
            made.append({name: flat.get(name) for name in (*SETTINGS, *SHOWN, *keep, "fast_bytes")} | named)
    return made


def command(*columns: str, where: dict[str, Any] | None = None, **paths: tuple[Step, ...]) -> Command:
    """For rows of a study: columns that are called as in the simulator's rows, and others with their paths."""
    values: dict[str, tuple[Step, ...]] = {column: ("rows", 0, *column.split(".")) for column in columns}
    values |= {column: ("rows", 0, *steps) for column, steps in paths.items()}
    return Command(PARTS, values, where or {})


def long_rows(found: Sequence[dict[str, Any]], parts: dict[str, str], name: str, value: str) -> list[dict[str, Any]]:
    """One row per part: its label in the column `name`, its number, of the column `parts[label]`, in `value`."""
    drop = set(parts.values())
    return [
        {key: item for key, item in row.items() if key not in drop} | {name: label, value: row[column]}
        for row in found
        for label, column in parts.items()
        if row[column] is not None
    ]
