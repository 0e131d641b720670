"""What the chat page shows while the engine works: rates, acceptance over time, the expert pool. An observer.

Costs nothing while nobody looks. Knows nothing about pages.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from elmoe.engine.engine import Engine
from elmoe.engine.request import Output
from elmoe.server.loop import Job
from elmoe.trace.schema import Acceptance

LOOKED_AT_SECONDS = 5.0
"""After the last look, the view is no longer kept up to date."""
INTERVAL_SECONDS = 0.25
WINDOW = 60
"""Points of the past."""


class LiveView:
    """The engine's state of late."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._lock = engine, threading.Lock()
        self._asked = self._taken = 0.0
        self._points: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        self._before = (0.0, 0, 0, 0)
        self._ended = Acceptance()
        self._pool: dict[str, Any] = {}
        self._take([])

    def look(self) -> dict[str, Any]:
        """The state, JSON values; and keep it up to date for a while."""
        self._asked = time.perf_counter()
        engine = self._engine
        with self._lock:
            return {
                "running": len(engine.running),
                "waiting": engine.waiting,
                "max_batch": engine.options.max_batch,
                "kept_kv_cells": engine.prefixes.cells,
                "pool": self._pool,
                "history": list(self._points),
            }

    def after_step(self, engine: Engine, jobs: Sequence[Job]) -> None:  # noqa: ARG002  it looks at its own
        """See `loop.Observer`."""
        now = time.perf_counter()
        if now - self._asked < LOOKED_AT_SECONDS and now - self._taken >= INTERVAL_SECONDS:
            self._take(jobs)

    def finished(self, job: Job, output: Output) -> None:  # noqa: ARG002
        """See `loop.Observer`."""
        self._ended.add(output.acceptance)

    def failed(self, job: Job) -> None:
        """See `loop.Observer`."""

    def _take(self, jobs: Sequence[Job]) -> None:
        engine, pool = self._engine, self._engine.pool
        total = Acceptance()
        total.add(self._ended)
        for job in jobs:
            if job.request is not None and job.request.finish_reason is None:
                total.add(job.request.acceptance)
        now = time.perf_counter()
        then, emitted, tested, accepted = self._before
        self._before = (now, total.emitted, total.tested, total.accepted)
        tested_now = total.tested - tested
        point = {
            "time": time.time(),
            "tok_s": max(total.emitted - emitted, 0) / (now - then) if now - then < 2 else 0.0,
            "acceptance_rate": (total.accepted - accepted) / tested_now if tested_now > 0 else None,
            "depth": engine.decoder.depth,
            "batch": len(engine.running),
        }
        hottest = pool.hotness.max(axis=1, keepdims=True)
        heat = pool.hotness / hottest.clip(min=1e-9)
        shown = {
            "slots": pool.slots,
            "heat": [[round(float(value), 2) for value in layer] for layer in heat],
            "resident": [[int(value) for value in layer] for layer in pool.resident],
        }
        with self._lock:
            self._taken = now
            self._pool = shown
            self._points.append(point)
