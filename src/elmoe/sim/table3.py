"""The paper's table 3 beside the simulator: speedup over xPU of every scheme, AR and SD, at the quoted acceptance.

Simulated and quoted numbers never share a column. Knows nothing about calibration: the profiles hold its results.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations

import numpy as np

from elmoe.sim.model import SimModel, load_model
from elmoe.sim.profile import Profile, SchemeSpecs, named_profile, scheme_specs
from elmoe.sim.run import Query, evaluate
from elmoe.sim.schemes import mean_accepted_length
from elmoe.sim.spec import BASELINE, load_machine

WORKLOAD = "mt-bench"
MACHINE = "elmoe-3d"
Profiles = Callable[[SimModel], Profile]


@dataclass(frozen=True)
class Quoted:
    """One cell of the table."""

    hb_gb: float
    model: str
    scheme: str
    batch: int
    acceptance_rate: float
    ar_speedup: float
    sd_speedup: float


@dataclass(frozen=True)
class Compared:
    """A quoted cell and what the simulator says."""

    quoted: Quoted
    ar_speedup: float
    sd_speedup: float

    @property
    def ar_log_ratio(self) -> float:
        """ln(simulated / quoted), AR."""
        return math.log(self.ar_speedup / self.quoted.ar_speedup)

    @property
    def sd_log_ratio(self) -> float:
        """ln(simulated / quoted), SD."""
        return math.log(self.sd_speedup / self.quoted.sd_speedup)


@cache
def quoted_cells() -> tuple[Quoted, ...]:
    """The part of table 3 that the project has: 4 GB."""
    text = (files("elmoe.sim") / "specs" / "quoted" / "table3.csv").read_text(encoding="utf-8")
    return tuple(
        Quoted(
            hb_gb=float(row["hb_gb"]),
            model=row["model"],
            scheme=row["scheme"],
            batch=int(row["batch"]),
            acceptance_rate=float(row["acceptance_rate"]),
            ar_speedup=float(row["ar_speedup"]),
            sd_speedup=float(row["sd_speedup"]),
        )
        for row in csv.DictReader(text.splitlines())
    )


def compare(
    cells: Sequence[Quoted], specs: SchemeSpecs | None = None, profile_of: Profiles | None = None
) -> list[Compared]:
    """Simulate every cell, in order. profile_of: other profiles than the shipped ones, for calibration."""
    specs = specs or scheme_specs()
    choose = profile_of or (lambda model: named_profile(model, WORKLOAD, specs))
    groups: dict[tuple[float, str, str], list[Quoted]] = {}
    for cell in cells:
        groups.setdefault((cell.hb_gb, cell.model, cell.scheme), []).append(cell)
    found = {item.quoted: item for group in groups.values() for item in _compared(group, specs, choose)}
    return [found[cell] for cell in cells]


def mean_abs(values: Sequence[float]) -> float:
    """Mean |ln ratio|."""
    return float(np.mean(np.abs(values)))


def rank_agreement(found: Sequence[Compared]) -> tuple[int, int]:
    """(pairs of schemes in the quoted order, pairs): within each model, batch and column; quoted ties do not count."""
    kept = pairs = 0
    for one, other in combinations(found, 2):
        same = (one.quoted.model, one.quoted.batch, one.quoted.hb_gb) == (
            other.quoted.model,
            other.quoted.batch,
            other.quoted.hb_gb,
        )
        if not same:
            continue
        for column in ("ar_speedup", "sd_speedup"):
            quoted = getattr(one.quoted, column) - getattr(other.quoted, column)
            if quoted:
                pairs += 1
                kept += (getattr(one, column) - getattr(other, column)) * quoted > 0
    return kept, pairs


def _compared(cells: list[Quoted], specs: SchemeSpecs, profile_of: Profiles) -> list[Compared]:
    """Cells of one HB size, model and scheme."""
    hb_gb, model = cells[0].hb_gb, load_model(cells[0].model)
    profile, batches = profile_of(model), tuple(cell.batch for cell in cells)
    machine, xpu = load_machine(MACHINE).with_hb_gb(hb_gb), load_machine(BASELINE).with_hb_gb(hb_gb)
    base = evaluate(Query(xpu, model, profile, batches=batches), specs).latency_ms
    decode, draft = (
        evaluate(Query(machine, model, profile, WORKLOAD, cells[0].scheme, mode, batches), specs)
        for mode in ("ar", "sd")
    )
    rates = np.array([cell.acceptance_rate for cell in cells])
    emitted = 1.0 + mean_accepted_length(rates, specs.tree.depth, specs.tree.verify)
    ar, sd = base / decode.latency_ms, base / (draft.total.total_ns * 1e-6 / emitted)
    return [Compared(cell, float(ar[i]), float(sd[i])) for i, cell in enumerate(cells)]
