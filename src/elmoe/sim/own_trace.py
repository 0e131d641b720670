"""A trace of the engine on all machines: what its routing and its drafts would be worth on each of them.

The paper's HB would swallow a small model whole, so it is cut to what a large model would find: room for dense weights,
KV and a share of the experts. Bandwidths stay. A trace knows the acceptance of Elastic-SD; that of EAGLE is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from elmoe.sim.model import SimModel, model_from_shape
from elmoe.sim.profile import profile_from_trace, scheme_specs, specs_for_trace
from elmoe.sim.run import Query, rows
from elmoe.sim.spec import SYSTEMS, Machine, load_machine
from elmoe.trace.parquet import Trace
from elmoe.trace.schema import PassKind

EXPERT_SHARE = 0.25
"""Of the experts' bytes in HB: what 8 GB hold of a 30 B model (assumed)."""
LARGE_BYTES = 32e9
"""Weights of a 30 B model: the near-memory capacity is scaled from it."""


@dataclass(frozen=True)
class OwnTrace:
    """Rows of all systems, and what they were evaluated at."""

    rows: list[dict[str, Any]]
    batch: int
    context: int
    hb_bytes: int


def machines_on_trace(trace: Trace) -> OwnTrace:
    """Every built-in system in its usual mode, at the trace's largest batch and mean context."""
    batch, context = _sizes(trace)
    specs = specs_for_trace(trace, scheme_specs())
    model, profile = model_from_shape(trace.shape, trace.source), profile_from_trace(trace, specs)
    hb_bytes = _hb_bytes(model, batch, context)
    queries = []
    for name in SYSTEMS:
        machine = _cut(load_machine(name), hb_bytes, model.total_bytes)
        mode = "ar" if machine.scheme == "none" else "sd"
        queries.append(Query(machine, model, profile, "trace", machine.scheme, mode, (batch,), (context,)))
    return OwnTrace(rows(queries, specs), batch, context, hb_bytes)


def _sizes(trace: Trace) -> tuple[int, int]:
    """(largest batch, mean context) of the target's decode passes."""
    batch, positions = 1, []
    for record in trace.passes():
        if record.kind in (PassKind.AR, PassKind.VERIFY):
            batch = max(batch, len(np.unique(record.sequences)))
            positions.append(float(record.positions.mean()))
    return batch, max(1, round(float(np.mean(positions)))) if positions else 1


def _hb_bytes(model: SimModel, batch: int, context: int) -> int:
    kv = batch * float(model.kv_bytes(np.array([float(context)]))[0])
    experts = model.moe_layers * model.experts * model.expert_bytes
    return int(model.dense_bytes + model.embedding_bytes + kv + EXPERT_SHARE * experts)


def _cut(machine: Machine, hb_bytes: int, model_bytes: float) -> Machine:
    """Capacities as a model of LARGE_BYTES would find them."""
    hb, near = machine.hb, machine.near
    if hb is not None:
        hb = replace(hb, capacity_gb=hb_bytes * 1e-9)
    if near is not None:
        near = replace(near, capacity_gb=near.capacity_gb * model_bytes / LARGE_BYTES)
    return replace(machine, hb=hb, near=near)
