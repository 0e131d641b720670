"""The simulator's front door: a query in, rows out. Latency, energy and bottleneck per token of one accelerator.

All (batch, context) points of a query are evaluated at once with NumPy; the same query gives the same rows, bit for
bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.errors import CapacityError, ConfigError
from elmoe.sim.cost import cost_usd_per_million_tokens
from elmoe.sim.energy import Energy, energy
from elmoe.sim.memory_map import MemoryMap, memory_map
from elmoe.sim.model import SimModel
from elmoe.sim.profile import Profile, SchemeSpecs, scheme_specs
from elmoe.sim.schemes import Phase, Scenario, Step, step
from elmoe.sim.spec import BASELINE, Machine, load_machine
from elmoe.sim.systems import BOUNDS, Bandwidth, Cost, cost, effective_bandwidth

Floats = npt.NDArray[np.float64]

MAX_BATCH = 4096
"""Beyond it nothing here is meant: the formulas are for decoding."""


@dataclass(frozen=True)
class Query:
    """One machine, model, scheme and mode at every combination of batch and context."""

    machine: Machine
    model: SimModel
    profile: Profile
    workload: str = "mt-bench"
    scheme: str = "none"
    mode: str = "ar"
    batches: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = (1024,)
    acceptance: float | None = None

    def __post_init__(self) -> None:
        for name, values, most in (
            ("batch", self.batches, MAX_BATCH),
            ("context", self.contexts, self.model.max_context),
        ):
            if not values:
                raise ConfigError(f"{name} is empty; give for example 1,4")
            for value in values:
                if value != int(value):
                    raise ConfigError(f"{name} must be an integer, not {value}")
                if value < 1:
                    raise ConfigError(f"{name} must be at least 1, not {value}")
                if value > most:
                    whose = "the simulator" if name == "batch" else self.model.name
                    raise ConfigError(f"{name} {value} is beyond {most}, the most for {whose}")

    @property
    def points(self) -> tuple[Floats, Floats]:
        """(batch, context) of every row: contexts vary fastest."""
        batch, context = np.meshgrid(
            np.array(self.batches, dtype=np.float64), np.array(self.contexts, dtype=np.float64), indexing="ij"
        )
        return batch.ravel(), context.ravel()


@dataclass(frozen=True)
class Outcome:
    """A query's results as arrays [N]."""

    query: Query
    places: MemoryMap
    step: Step
    phase_costs: tuple[tuple[Phase, Cost], ...]
    """Each with all of its repetitions."""
    total: Cost
    latency_ms: Floats
    """Per emitted token of a sequence."""
    energy_mj: Energy
    """Per emitted token."""


def evaluate(query: Query, specs: SchemeSpecs | None = None) -> Outcome:
    """Run one query. Raises ConfigError and CapacityError for what cannot be."""
    specs = specs or scheme_specs()
    batch, context = query.points
    places = memory_map(query.machine, query.model, query.scheme, batch, context, specs)
    scenario = Scenario(
        query.model, query.scheme, query.mode, batch, context, places, query.profile, specs, query.acceptance
    )
    work = step(scenario)
    bandwidth = effective_bandwidth(query.machine)
    reach = _near_reach(query.machine, places)
    costs = tuple((phase, _phase_cost(query.machine, bandwidth, phase, reach)) for phase in work.phases)
    total = _sum(spent for _, spent in costs)
    emitted = 1.0 + work.accepted_length
    return Outcome(
        query=query,
        places=places,
        step=work,
        phase_costs=costs,
        total=total,
        latency_ms=total.total_ns / emitted * 1e-6,
        energy_mj=energy(query.machine, total) / (emitted * batch),
    )


def rows(queries: Sequence[Query], specs: SchemeSpecs | None = None) -> list[dict[str, Any]]:
    """Results of queries as rows for JSON, in order; what their speedups are relative to is evaluated beside them."""
    made: list[dict[str, Any]] = []
    baselines: dict[tuple[object, ...], Floats] = {}
    for query in queries:
        load = (query.model.name, query.profile.name, query.batches, query.contexts)
        xpu, plain = (query.machine.compute.pes, *load), (query.machine, *load)
        outcome = evaluate(query, specs)
        if xpu not in baselines:
            baselines[xpu] = _baseline_ms(query, specs)
        if plain not in baselines:
            baselines[plain] = evaluate(plain_decoding(query), specs).latency_ms
        made += _rows(outcome, baselines[xpu], baselines[plain])
    return made


def _baseline_ms(query: Query, specs: SchemeSpecs | None) -> Floats:
    try:
        return evaluate(baseline(query), specs).latency_ms
    except CapacityError as error:
        raise CapacityError(f"{BASELINE}, which speedup_vs_xpu is relative to: {error}") from None


def baseline(query: Query) -> Query:
    """Plain decoding on the xPU with the same compute, at the same points."""
    machine = load_machine(BASELINE)
    return Query(
        machine=replace(machine, compute=replace(machine.compute, pes=query.machine.compute.pes)),
        model=query.model,
        profile=query.profile,
        workload=query.workload,
        batches=query.batches,
        contexts=query.contexts,
    )


def plain_decoding(query: Query) -> Query:
    """The same machine and load without a draft: what speculation must beat."""
    return replace(query, scheme="none", mode="ar", acceptance=None)


def _near_reach(machine: Machine, places: MemoryMap) -> Floats:
    if machine.near is None:
        return np.ones_like(places.ext)
    return np.minimum(1.0, machine.near.capacity_gb * 1e9 / places.ext)


def _phase_cost(machine: Machine, bandwidth: Bandwidth, phase: Phase, reach: Floats) -> Cost:
    return _sum(cost(machine, bandwidth, operator, reach) for operator in phase.operators).times(phase.count)


def _sum(costs: Iterable[Cost]) -> Cost:
    return reduce(add, costs)


def result_columns(outcome: Outcome) -> dict[str, Any]:
    """What comes out for every point, as arrays [N], nested and in the order of a row.

    NaN where there is nothing to say: acceptance without drafts, and the speedup, which needs a baseline.
    """
    query, (batch, _) = outcome.query, outcome.query.points
    absent = np.full(len(batch), np.nan)
    speculative = query.mode == "sd"
    return {
        "acceptance_rate": outcome.step.acceptance_rate if speculative else absent,
        "mean_accepted_length": outcome.step.accepted_length if speculative else absent,
        "latency_ms_per_token": outcome.latency_ms,
        "tokens_per_s": batch / outcome.latency_ms * 1e3,
        "speedup_vs_xpu": absent,
        "energy_mj_per_token": outcome.energy_mj.columns(),
        "cost_usd_per_million_tokens": cost_usd_per_million_tokens(
            query.machine, batch / outcome.latency_ms * 1e3, outcome.energy_mj.total
        ),
        "bottleneck": _bottleneck(outcome.total),
        "phases": _phases(outcome),
        "unique_experts": outcome.step.unique_experts,
        "miss_rate": outcome.step.miss_rate,
        "memory_bytes": outcome.places.columns(),
        "cached_experts_per_layer": outcome.places.whole_experts,
        "pool_experts_per_layer": outcome.places.draft_experts,
    }


def _rows(outcome: Outcome, xpu_ms: Floats, plain_ms: Floats) -> list[dict[str, Any]]:
    query, (batch, context) = outcome.query, outcome.query.points
    columns = result_columns(outcome) | {
        "speedup_vs_xpu": xpu_ms / outcome.latency_ms,
        "speedup_vs_ar": plain_ms / outcome.latency_ms,
    }
    undrafted = {} if query.mode == "sd" else dict.fromkeys(("acceptance_rate", "mean_accepted_length"))
    return [
        {
            "model": query.model.name,
            "system": query.machine.name,
            "scheme": query.scheme,
            "mode": query.mode,
            "hb_gb": query.machine.hb_equivalent_gb,
            "batch": int(batch[i]),
            "context": int(context[i]),
            "workload": query.workload,
            **_point(columns, i),
            **undrafted,
        }
        for i in range(len(batch))
    ]


def _point(columns: Mapping[str, Any], index: int) -> dict[str, Any]:
    """One point of nested columns, as plain values for JSON."""
    return {
        name: _point(column, index) if isinstance(column, Mapping) else column[index].item()
        for name, column in columns.items()
    }


def _bottleneck(spent: Cost) -> npt.NDArray[np.str_]:
    return np.array(BOUNDS)[spent.bound_ns.argmax(axis=-1)]


def _phases(outcome: Outcome) -> dict[str, Any]:
    """Phases of the same name added up: milliseconds per step, and which resource they wait for."""
    made: dict[str, Any] = {}
    for name in dict.fromkeys(phase.name for phase, _ in outcome.phase_costs):
        parts = [(phase, spent) for phase, spent in outcome.phase_costs if phase.name == name]
        spent = _sum(each for _, each in parts)
        macs = spent.macs_w8 + spent.macs_w4 + spent.near_macs
        made[name] = {
            "count": np.full(len(spent.total_ns), sum(phase.count for phase, _ in parts)),
            "ms": spent.total_ns * 1e-6,
            "bottleneck": _bottleneck(spent),
            "bound_ms": {key: spent.bound_ns[:, i] * 1e-6 for i, key in enumerate(BOUNDS)},
            "busy_ms": {key: getattr(spent, f"{key}_ns") * 1e-6 for key in BOUNDS},
            "ext_bytes": spent.ext_bytes,
            "hb_bytes": spent.hb_bytes,
            "link_bytes": spent.link_bytes,
            "near_bytes": spent.near_bytes,
            "macs": macs,
            "ops_per_byte": 2.0 * macs / (spent.ext_bytes + spent.hb_bytes + spent.near_bytes),
        }
    return made
