"""Runs forward passes: times them, counts them, records them. Knows nothing about which rows and why."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from elmoe.backend.protocol import Backend, Bool, DraftQuality, ForwardResult, Rows
from elmoe.engine.expert_pool import ExpertPool
from elmoe.engine.tiered_pool import TieredPool
from elmoe.errors import ExpertReadError
from elmoe.trace.schema import PassKind, PassRecord, Recorder, RunStats


class Passes:
    """What the passes of an engine share."""

    def __init__(self, backend: Backend, pool: ExpertPool | TieredPool) -> None:
        self.backend, self.pool = backend, pool
        self.tiered = pool if isinstance(pool, TieredPool) else None
        """The pool, where experts must be read from a slow tier."""
        self.stats = RunStats()
        self.recorder: Recorder | None = None
        self.step = 0
        """Number of the engine's step."""

    def forward(
        self, rows: Rows, draft: DraftQuality | None = None, announced: npt.NDArray[np.int64] | None = None
    ) -> tuple[ForwardResult, float]:
        """The result of a pass and its seconds. announced: [L, E] how many rows asked for an expert in the draft.

        Raises ExpertReadError, which says whose rows needed the expert.
        """
        keep = None if self.tiered is None else self.tiered.keep(rows.count, announced)
        started = time.perf_counter()
        try:
            result = self.backend.forward(rows, self.pool.resident, draft, keep)
        except ExpertReadError as error:
            if self.tiered is not None:
                self.tiered.refresh()  # the pass had read some records until then
            error.sequences = frozenset(int(rows.sequences[row]) for row in error.rows)
            raise
        seconds = time.perf_counter() - started
        if self.tiered is not None and draft is None:
            self.tiered.count_read(seconds, result.traffic.slow_bytes)
        return result, seconds

    def record(self, kind: PassKind, depth: int, rows: Rows, result: ForwardResult, seconds: float, kept: Bool) -> None:
        """Count a pass; kept [R]: rows that became part of their sequences. Before the pool changes."""
        record = PassRecord(
            step=self.step,
            kind=kind,
            depth=depth,
            sequences=rows.sequences,
            positions=rows.positions,
            tokens=rows.tokens,
            kept=kept,
            experts=result.experts,
            pool=self.pool.resident,
            distinct_experts=result.read.sum(axis=1, dtype="int32"),
            fast_bytes=result.traffic.fast_bytes,
            slow_bytes=result.traffic.slow_bytes,
            kv_bytes=result.traffic.kv_bytes,
            seconds=seconds,
        )
        self.stats.count(record)
        if self.recorder is not None:
            self.recorder.record(record)
