"""Hosts in the rows of `elmoe simulate`: a trace played on a host, or a profile where there is no trace."""

from __future__ import annotations

from typing import Any

from elmoe.errors import CapacityError
from elmoe.sim.host.cache import Budget
from elmoe.sim.host.decode import Decoded, bottleneck
from elmoe.sim.host.passes import NOTHING
from elmoe.sim.host.spec import Host
from elmoe.sim.host.trace_run import TraceRun, run_trace
from elmoe.sim.model import SimModel
from elmoe.sim.profile import SchemeSpecs, level_acceptance, profile_from_trace
from elmoe.sim.run import Query, rows
from elmoe.sim.spec import BASELINE, load_machine
from elmoe.trace.parquet import Trace

UNKNOWN_ENERGY = dict.fromkeys(("compute", "ext", "hb", "comm", "static", "total"))
"""No probe of ours measures energy; null, never 0."""


def trace_row(
    host: Host, model: SimModel, trace: Trace, budget: Budget, mode: str | None, specs: SchemeSpecs
) -> dict[str, Any]:
    """One row: the recorded run predicted on `host`. See `run_trace` for mode and errors."""
    found = run_trace(host, model, trace, budget, mode)
    drafted = found.mode == "sd"
    alpha = level_acceptance(trace) if drafted else None
    depth = specs.tree.depth
    streaming = run_trace(host, model, trace, Budget(budget.fast_bytes, policy=None), "ar")
    return {
        "model": model.name,
        "system": host.name,
        "scheme": "elastic" if drafted else "none",
        "mode": found.mode,
        "hb_gb": budget_gb(host, budget),
        "batch": found.batch,
        "context": found.context,
        "workload": "trace",
        "acceptance_rate": alpha,
        "mean_accepted_length": None if alpha is None else alpha * depth,
        **times(found.decoded, found.batch),
        "speedup_vs_xpu": _speedup_vs_xpu(model, trace, found, specs),
        "speedup_vs_streaming": found.decoded.tokens_per_s / streaming.decoded.tokens_per_s,
        "energy_mj_per_token": UNKNOWN_ENERGY,
        "miss_rate": {"msb": found.msb_miss_rate, "lsb": found.lsb_miss_rate},
        "records_per_layer": {"msb": float(found.held.msb.mean()), "lsb": float(found.held.lsb.mean())},
        "policy": None if budget.policy is None else budget.policy.value,
        "fast_bytes": budget.fast_bytes,
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


def _speedup_vs_xpu(model: SimModel, trace: Trace, found: TraceRun, specs: SchemeSpecs) -> float | None:
    """The xPU decoding plainly with the trace's locality; null where it cannot hold the model."""
    profile = profile_from_trace(trace, specs)
    query = Query(
        load_machine(BASELINE), model, profile, "trace", batches=(found.batch,), contexts=(found.context,)
    )
    try:
        xpu_ms = rows([query], specs)[0]["latency_ms_per_token"]
    except CapacityError:
        return None
    return float(xpu_ms * found.decoded.tokens_per_s / (1e3 * found.batch))
