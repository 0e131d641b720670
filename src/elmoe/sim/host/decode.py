"""Decode steps on a host, added up: tokens per second, and where the time goes.

What a step loads may come from a trace (`trace_run.py`) or from a profile (`gain.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from elmoe.sim.host.passes import NOTHING, PassClock, PassLoad, PassTime

DRAFT, VERIFY, DECODE = "draft", "verify", "decode"


@dataclass(frozen=True)
class StepLoad:
    """One decode step over all sequences: its passes in order, each with its phase, and the tokens that it emits."""

    passes: tuple[tuple[str, PassLoad], ...]
    tokens: float


@dataclass
class Decoded:
    """Sums over decode steps."""

    steps: int = 0
    tokens: float = 0.0
    engine_seconds: float = 0.0
    """The engine's own work around the passes."""
    phases: dict[str, PassTime] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """All together."""
        return self.engine_seconds + sum(spent.seconds for spent in self.phases.values())

    @property
    def tokens_per_s(self) -> float:
        """Of all sequences together."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def slow_bytes(self) -> float:
        """Read from the slow tier."""
        return sum(spent.slow_bytes for spent in self.phases.values())

    def phase_rows(self) -> dict[str, dict[str, Any]]:
        """By phase, per decode step, for JSON."""
        return {
            name: {
                "count": self.counts[name] / self.steps,
                "ms": 1e3 * spent.seconds / self.steps,
                "bottleneck": bottleneck(spent),
                "disk_ms": 1e3 * spent.disk_seconds / self.steps,
                "compute_ms": 1e3 * spent.compute_seconds / self.steps,
                "slow_bytes": spent.slow_bytes / self.steps,
                "fast_bytes": spent.fast_bytes / self.steps,
                "kv_bytes": spent.kv_bytes / self.steps,
            }
            for name, spent in self.phases.items()
        }


def decode(clock: PassClock, steps: Iterable[StepLoad]) -> Decoded:
    """Play decode steps one after the other."""
    engine, model = clock.host.engine, clock.model
    fixed_us = engine.step_us + 1e-3 * engine.pool_ns * model.moe_layers * model.experts
    found = Decoded()
    for step in steps:
        found.steps += 1
        found.tokens += step.tokens
        rows = sum(load.rows for _, load in step.passes)
        found.engine_seconds += 1e-6 * (fixed_us + engine.pass_us * len(step.passes) + engine.row_us * rows)
        for name, load in step.passes:
            found.phases[name] = found.phases.get(name, NOTHING) + clock.time(load)
            found.counts[name] = found.counts.get(name, 0) + 1
    return found


def bottleneck(spent: PassTime) -> str:
    """What most of the time goes to: the disk, products with weights, or the rest of the work on the rows."""
    rest = spent.seconds - max(spent.compute_seconds, spent.disk_seconds)
    busy = {"disk": spent.disk_seconds, "weights": spent.compute_seconds, "rows": rest}
    return max(busy, key=busy.__getitem__)
