"""The simulator's front door: a query in, rows out. Latency, energy and bottleneck per token of one accelerator.

All (batch, context) points of a query are evaluated at once with NumPy; the same query gives the same rows, bit for
bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.errors import CapacityError, ConfigError
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
    total = costs[0][1]
    for _, spent in costs[1:]:
        total = total + spent
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
    """Results of queries as rows for JSON, in order; the baseline of `speedup_vs_xpu` is evaluated beside them."""
    made: list[dict[str, Any]] = []
    baselines: dict[tuple[object, ...], Floats] = {}
    for query in queries:
        key = (query.model.name, query.profile.name, query.machine.compute.pes, query.batches, query.contexts)
        outcome = evaluate(query, specs)
        if key not in baselines:
            baselines[key] = _baseline_ms(query, specs)
        made += _rows(outcome, baselines[key])
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


def _near_reach(machine: Machine, places: MemoryMap) -> Floats:
    if machine.near is None:
        return np.ones_like(places.ext)
    return np.minimum(1.0, machine.near.capacity_gb * 1e9 / places.ext)


def _phase_cost(machine: Machine, bandwidth: Bandwidth, phase: Phase, reach: Floats) -> Cost:
    spent = cost(machine, bandwidth, phase.operators[0], reach)
    for operator in phase.operators[1:]:
        spent = spent + cost(machine, bandwidth, operator, reach)
    return spent.times(phase.count)


def _rows(outcome: Outcome, xpu_ms: Floats) -> list[dict[str, Any]]:
    query, batch, context = outcome.query, *outcome.query.points
    speculative = query.mode == "sd"
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
            "acceptance_rate": float(outcome.step.acceptance_rate[i]) if speculative else None,
            "mean_accepted_length": float(outcome.step.accepted_length[i]) if speculative else None,
            "latency_ms_per_token": float(outcome.latency_ms[i]),
            "tokens_per_s": float(batch[i] / outcome.latency_ms[i] * 1e3),
            "speedup_vs_xpu": float(xpu_ms[i] / outcome.latency_ms[i]),
            "energy_mj_per_token": outcome.energy_mj.at(i),
            "bottleneck": BOUNDS[int(outcome.total.bound_ns[i].argmax())],
            "phases": _phases(outcome, i),
            "unique_experts": float(outcome.step.unique_experts[i]),
            "miss_rate": float(outcome.step.miss_rate[i]),
            "memory_bytes": outcome.places.as_dict(i),
            "cached_experts_per_layer": float(outcome.places.whole_experts[i]),
            "pool_experts_per_layer": float(outcome.places.draft_experts[i]),
        }
        for i in range(len(batch))
    ]


def _phases(outcome: Outcome, index: int) -> dict[str, Any]:
    """Phases of the same name added up: milliseconds per step, and which resource they wait for."""
    made: dict[str, Any] = {}
    for name in dict.fromkeys(phase.name for phase, _ in outcome.phase_costs):
        parts = [(phase, spent) for phase, spent in outcome.phase_costs if phase.name == name]
        spent = parts[0][1]
        for _, more in parts[1:]:
            spent = spent + more
        bound = spent.bound_ns[index]
        made[name] = {
            "count": sum(phase.count for phase, _ in parts),
            "ms": float(spent.total_ns[index]) * 1e-6,
            "bottleneck": BOUNDS[int(bound.argmax())],
            "bound_ms": {key: float(value) * 1e-6 for key, value in zip(BOUNDS, bound, strict=True)},
            "busy_ms": {key: float(getattr(spent, f"{key}_ns")[index]) * 1e-6 for key in BOUNDS},
            "ext_bytes": float(spent.ext_bytes[index]),
            "hb_bytes": float(spent.hb_bytes[index]),
            "link_bytes": float(spent.link_bytes[index]),
            "near_bytes": float(spent.near_bytes[index]),
            "macs": float((spent.macs_w8 + spent.macs_w4 + spent.near_macs)[index]),
        }
    return made
