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
    """Simulate every cell. profile_of: other profiles than the shipped ones, for calibration."""
    specs = specs or scheme_specs()
    choose = profile_of or (lambda model: named_profile(model, WORKLOAD, specs))
    return [_compared(cell, specs, choose) for cell in cells]


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


def _compared(cell: Quoted, specs: SchemeSpecs, profile_of: Profiles) -> Compared:
    model = load_model(cell.model)
    profile = profile_of(model)
    machine = load_machine(MACHINE).with_hb_gb(cell.hb_gb)
    xpu = load_machine(BASELINE).with_hb_gb(cell.hb_gb)
    plain = Query(xpu, model, profile, batches=(cell.batch,))
    decode = Query(machine, model, profile, scheme=cell.scheme, mode="ar", batches=(cell.batch,))
    draft = Query(
        machine,
        model,
        profile,
        scheme=cell.scheme,
        mode="sd",
        batches=(cell.batch,),
        acceptance=cell.acceptance_rate,
    )
    base, ar, sd = (float(evaluate(query, specs).latency_ms[0]) for query in (plain, decode, draft))
    return Compared(cell, base / ar, base / sd)
