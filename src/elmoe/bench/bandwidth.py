"""How fast this machine reads memory right now: what a decode step of a memory-bound model is measured against.

The rate varies over minutes on a shared machine, so it is probed in turn with what is measured.
"""

from __future__ import annotations

import statistics

from elmoe.backend.cpu.backend import read_bandwidth

PROBE_BYTES = 1 << 29
"""Far beyond the caches."""
REPEATS = 5


class BandwidthProbe:
    """Reads memory with the threads of the C++ backend, and keeps the rates."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        """GB/s of every reading so far."""

    def __call__(self) -> float:
        """GB/s now."""
        self.rates.append(read_bandwidth(PROBE_BYTES, REPEATS))
        return self.rates[-1]

    @property
    def median(self) -> float:
        """GB/s over all readings."""
        return statistics.median(self.rates)
