"""Hosts in the rows of `elmoe simulate`: a trace played on a host, or a profile where there is no trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elmoe.errors import CapacityError, ConfigError
from elmoe.sim.host.cache import Budget, slots
from elmoe.sim.host.decode import Decoded, bottleneck
from elmoe.sim.host.gain import Shape, run_profile
from elmoe.sim.host.passes import NOTHING
from elmoe.sim.host.spec import Host
from elmoe.sim.host.trace_run import run_trace
from elmoe.sim.model import SimModel
from elmoe.sim.profile import Profile, SchemeSpecs, level_acceptance
from elmoe.sim.run import Query, rows
from elmoe.sim.spec import BASELINE, load_machine
from elmoe.trace.parquet import Trace

UNKNOWN_ENERGY = dict.fromkeys(("compute", "ext", "hb", "comm", "static", "total"))
"""No probe of ours measures energy; null, never 0."""


@dataclass(frozen=True)
class Load:
    """What is decoded, apart from the machine."""

    model: SimModel
    profile: Profile
    workload: str
    trace: Trace | None = None
    """Played step by step where given; else tokens are drawn by the profile."""


def trace_row(
    host: Host, load: Load, trace: Trace, budget: Budget, mode: str | None, specs: SchemeSpecs
) -> dict[str, Any]:
    """One row: the recorded run predicted on `host`. See `run_trace` for mode and errors."""
    found = run_trace(host, load.model, trace, budget, mode)
    streaming = run_trace(host, load.model, trace, replace(budget, policy=None), "ar")
    alpha = level_acceptance(trace) if found.mode == "sd" else None
    shape = Shape(found.batch, found.context)
    row = _row(host, load, budget, found.mode, shape, found.decoded, specs)
    return row | {
        "acceptance_rate": alpha,
        "mean_accepted_length": None if alpha is None else alpha * specs.tree.depth,
        "speedup_vs_streaming": found.decoded.tokens_per_s / streaming.decoded.tokens_per_s,
        "miss_rate": {"msb": found.msb_miss_rate, "lsb": found.lsb_miss_rate},
        "records_per_layer": {"msb": float(found.held.msb.mean()), "lsb": float(found.held.lsb.mean())},
    }


@dataclass(frozen=True)
class Point:
    """How many sequences are decoded, and how; drafts have the tree of the schemes."""

    mode: str
    batch: int
    context: int
    acceptance: float | None = None
    """Accepted draft tokens / tree depth; None: the profile's, for the pool that the budget leaves room for."""


def profile_row(host: Host, load: Load, budget: Budget, at: Point, specs: SchemeSpecs) -> dict[str, Any]:
    """One row of tokens drawn by the profile. Raises CapacityError where the budget is too small."""
    plain = Shape(at.batch, at.context)
    shape = plain if at.mode == "ar" else _drafting(host, load, budget, at, specs)
    streaming = run_profile(host, load.model, load.profile, replace(budget, policy=None), plain)
    decoded = run_profile(host, load.model, load.profile, budget, shape)
    cached = run_profile(host, load.model, load.profile, budget, plain) if shape.depth else decoded
    return _row(host, load, budget, at.mode, shape, decoded, specs) | {
        "acceptance_rate": shape.accepted_length / shape.depth if shape.depth else None,
        "mean_accepted_length": shape.accepted_length if shape.depth else None,
        "speedup_vs_streaming": decoded.tokens_per_s / streaming.tokens_per_s,
        "speedup_vs_ar": decoded.tokens_per_s / cached.tokens_per_s,
    }


def _drafting(host: Host, load: Load, budget: Budget, at: Point, specs: SchemeSpecs) -> Shape:
    tree = specs.tree
    alpha = at.acceptance
    if alpha is None:
        cells = at.batch * (at.context + max(tree.width * (tree.depth - 1), tree.verify) + 1)
        pool = slots(host, load.model, budget, np.array([cells])).msb.astype(np.float64)
        alpha = float(load.profile.acceptance_rate("elastic", pool)[0])
    if not 0 <= alpha <= 1:
        raise ConfigError(f"acceptance must lie in 0..1, not {alpha:g}")
    accepted = min(alpha * tree.depth, tree.verify)
    return Shape(at.batch, at.context, tree.width, tree.depth, tree.verify, accepted)


def _row(
    host: Host, load: Load, budget: Budget, mode: str, shape: Shape, decoded: Decoded, specs: SchemeSpecs
) -> dict[str, Any]:
    return {
        "model": load.model.name,
        "system": host.name,
        "scheme": "elastic" if mode == "sd" else "none",
        "mode": mode,
        "hb_gb": budget_gb(host, budget),
        "batch": shape.batch,
        "context": shape.context,
        "workload": load.workload,
        "acceptance_rate": None,
        "mean_accepted_length": None,
        **times(decoded, shape.batch),
        "speedup_vs_xpu": _speedup_vs_xpu(load, shape, decoded, specs),
        "energy_mj_per_token": UNKNOWN_ENERGY,
        "policy": None if budget.policy is None else budget.policy.value,
        "fast_bytes": budget.fast_bytes,
        "lsb_share": budget.lsb_share,
    }


def times(decoded: Decoded, batch: int) -> dict[str, Any]:
    """Latency, throughput and phases."""
    spent = sum(decoded.phases.values(), start=NOTHING)
    return {
        "latency_ms_per_token": 1e3 * batch / decoded.tokens_per_s,
        "tokens_per_s": decoded.tokens_per_s,
        "bottleneck": bottleneck(spent),
        "phases": decoded.phase_rows(),
        "engine_ms": 1e3 * decoded.engine_seconds / decoded.steps,
        "tokens_per_step": decoded.tokens / decoded.steps,
        "slow_bytes_per_token": decoded.slow_bytes / decoded.tokens,
    }


def budget_gb(host: Host, budget: Budget) -> float:
    """The fast tier in GB, where other rows have their HB."""
    return host.fast.capacity_gb if budget.fast_bytes is None else budget.fast_bytes / 1e9


def _speedup_vs_xpu(load: Load, shape: Shape, decoded: Decoded, specs: SchemeSpecs) -> float | None:
    """Over plain decoding on the xPU with the same locality; null where it cannot hold the model."""
    contexts = (min(shape.context, load.model.max_context),)
    query = Query(
        load_machine(BASELINE), load.model, load.profile, load.workload, batches=(shape.batch,), contexts=contexts
    )
    try:
        xpu_ms = rows([query], specs)[0]["latency_ms_per_token"]
    except CapacityError:
        return None
    return float(xpu_ms * decoded.tokens_per_s / (1e3 * shape.batch))
