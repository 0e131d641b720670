"""A host with round numbers, a model with few of them, and traces by hand: what the tests of `sim/host` share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from elmoe.models.shape import ModelShape
from elmoe.sim.host.spec import KERNEL_ROWS, SECTIONS, Host, host_from_table
from elmoe.sim.model import SimModel, model_from_shape
from elmoe.sim.quantity import UNIT
from elmoe.trace.parquet import Trace, TraceWriter, read_trace
from elmoe.trace.schema import PassKind, PassRecord

SHAPE = ModelShape(
    family="qwen3_moe", layers=2, moe_layers=(0, 1), hidden=64, heads=2, kv_heads=1, head_dim=32, experts=8,
    experts_per_tok=2, expert_hidden=32, dense_hidden=0, vocab=128, max_context=512, tied_head=True,
)  # fmt: skip
MODEL: SimModel = model_from_shape(SHAPE, "small")

FREE: dict[str, dict[str, Any]] = {
    "fast": {"capacity_gb": 1.0, "gb_per_s": 1e9, "overlap_power": 10.0, "cache_mb": 0.0},
    "slow": {"capacity_gb": 100.0, "queue": 16, "latency_us": 0.0},
    "target": {f"rows_{rows}": 1e9 for rows in KERNEL_ROWS},
    "draft": {f"rows_{rows}": 1e9 for rows in KERNEL_ROWS},
    "work": {
        "threads": 2, "pass_us": 0.0, "layer_us": 0.0, "row_us": 0.0, "hidden_ns": 0.0, "attention_gmac_per_s": 1e9,
        "kv_gb_per_s": 1e9, "router_gmac_per_s": 1e9, "choice_ns": 0.0, "expert_us": 0.0, "slot_ns": 0.0,
        "check_gb_per_s": 1e9, "logit_ns": 0.0,
    },
    "engine": {
        "step_us": 0.0, "pass_us": 0.0, "row_us": 0.0, "pool_ns": 0.0, "compute_while_reading": 1.0,
        "read_while_computing": 1.0, "read_efficiency": 1.0, "prefetch_share": 0.0, "in_flight_mb": 0.001,
    },
}  # fmt: skip
FREE["slow"] |= {f"read_{size}_gb_per_s": 1e9 for size in ("16k", "64k", "256k", "1m", "4m")}
"""Everything takes no time to speak of."""


def table(changes: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """The tables of a host's file: FREE with other values."""
    values = deepcopy(FREE)
    for section, changed in (changes or {}).items():
        values[section] |= changed
    found: dict[str, Any] = {"kind": "host", "name": "test-host", "description": "made up"}
    for section, kind in SECTIONS.items():
        declared = kind.__dataclass_fields__
        found[section] = {
            name: {"value": value, "unit": declared[name].metadata[UNIT], "source": "a test", "status": "assumed"}
            for name, value in values[section].items()
        }
    return found


def host(**changes: dict[str, Any]) -> Host:
    """FREE with other values, by section."""
    return host_from_table(table(changes), "test")


def to_toml(values: dict[str, Any]) -> str:
    """The tables as a file."""
    lines = [f"{name} = {value!r}".replace("'", '"') for name, value in values.items() if isinstance(value, str)]
    for section, entries in values.items():
        if isinstance(entries, dict):
            lines.append(f"[{section}]")
            for name, entry in entries.items():
                inside = ", ".join(f"{key} = {value!r}".replace("'", '"') for key, value in entry.items())
                lines.append(f"{name} = {{ {inside} }}")
    return "\n".join(lines) + "\n"


def record(
    kind: PassKind,
    step: int,
    experts: Sequence[Sequence[int]],
    *,
    positions: Sequence[int] | None = None,
    sequences: Sequence[int] | None = None,
    kept: Sequence[bool] | None = None,
    depth: int = 0,
) -> PassRecord:
    """A pass whose rows choose `experts` [R, A] in both layers."""
    rows = len(experts)
    chosen = np.repeat(np.array(experts, dtype=np.int16)[:, None, :], len(SHAPE.moe_layers), axis=1)
    distinct = len(np.unique(chosen[:, 0]))
    return PassRecord(
        step=step,
        kind=kind,
        depth=depth,
        sequences=np.array(range(rows) if sequences is None else sequences, dtype=np.int32),
        positions=np.full(rows, 9, np.int32) if positions is None else np.array(positions, dtype=np.int32),
        tokens=np.zeros(rows, dtype=np.int32),
        kept=np.array([kind is not PassKind.DRAFT] * rows if kept is None else kept, dtype=np.bool_),
        experts=chosen,
        pool=np.ones((len(SHAPE.moe_layers), SHAPE.experts), dtype=np.bool_),
        distinct_experts=np.full(len(SHAPE.moe_layers), distinct, dtype=np.int32),
        fast_bytes=0,
        slow_bytes=0,
        kv_bytes=0,
        seconds=0.0,
    )


def write(path: Path, records: Iterable[PassRecord], settings: dict[str, Any] | None = None) -> Trace:
    """A trace of the small model."""
    with TraceWriter(path, SHAPE, settings or {}, source="by hand") as writer:
        for one in records:
            writer.record(one)
    return read_trace(path)
