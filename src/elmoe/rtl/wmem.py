"""A double-buffered WMEM in front of a PE: weights arrive at a memory's rate, half a buffer at a time, in task order.

What `sim/pe.py` assumes of it, written once more and driven by the RTL's own events, so that cycle counts of RTL and
simulator can be compared: a half is fetched when one is free, readable when it has arrived whole, free again when its
last tile is in the array's registers. A task may wait for another one's sums and the vector unit behind them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from elmoe.rtl.pe_bench import AtOnce

HALVES = 2
ROUNDING = 1e-6


@dataclass(frozen=True)
class StreamedTask:
    """The weights of one job."""

    tiles: int
    tile_words: int
    weight_bytes: int
    tiles_per_half: int
    waits_for: int | None = None
    """Index of the task whose sums, through the vector unit, are this one's activations."""
    vector_cycles: int = 0
    """Of the vector unit, when this task's sums are there and another one waits for them."""


@dataclass(frozen=True)
class _Half:
    """What fills one half of the buffer."""

    task: int
    tiles: int
    weight_bytes: int


class DoubleBuffer(AtOnce):
    """Memories whose weights come through the buffer at `bytes_per_cycle`. Activations and jobs are there at once."""

    def __init__(self, tasks: Sequence[StreamedTask], bytes_per_cycle: float) -> None:
        self.tasks, self.rate = tasks, bytes_per_cycle
        self.halves = [half for index in range(len(tasks)) for half in self._cut(index)]
        self._tiles = list(accumulate(half.tiles for half in self.halves))
        self._words = list(accumulate(half.tiles * tasks[half.task].tile_words for half in self.halves))
        self._done = list(accumulate(task.tiles for task in tasks))
        self.arrived: list[float] = []
        """Per half, in cycles."""
        self.opened: list[float] = [math.inf if task.waits_for is not None else 0.0 for task in tasks]
        self.task_finished: list[int] = []
        self._freed: list[int] = []
        self._advanced = self._finished = 0
        self._vector_free = 0.0
        self._fetch()

    def ready(self, stream: str, index: int, cycle: int) -> bool:
        """Weights when their half is there and their task open."""
        if stream != "weights":
            return True
        half = bisect_right(self._words, index)
        here = half < len(self.arrived) and self.arrived[half] - ROUNDING <= cycle
        return here and self.opened[self.halves[half].task] - ROUNDING <= cycle

    def advanced(self, cycle: int) -> None:
        """A tile has left the buffer; the last one of a half frees it."""
        self._advanced += 1
        if self._advanced == self._tiles[len(self._freed)]:
            self._freed.append(cycle)
            self._fetch()

    def finished(self, cycle: int) -> None:
        """A tile's sums are there; those of a task go through the vector unit."""
        self._finished += 1
        index = len(self.task_finished)
        if self._finished < self._done[index]:
            return
        self.task_finished.append(cycle)
        for follower, task in enumerate(self.tasks):
            if task.waits_for == index:
                self._vector_free = max(self._vector_free, cycle) + self.tasks[index].vector_cycles
                self.opened[follower] = self._vector_free

    def _cut(self, index: int) -> list[_Half]:
        task, found = self.tasks[index], []
        for start in range(0, task.tiles, task.tiles_per_half):
            stop = min(start + task.tiles_per_half, task.tiles)
            size = task.weight_bytes * stop // task.tiles - task.weight_bytes * start // task.tiles
            found.append(_Half(index, stop - start, size))
        return found

    def _fetch(self) -> None:
        while len(self.arrived) < min(len(self.halves), len(self._freed) + HALVES):
            number = len(self.arrived)
            free = self._freed[number - HALVES] if number >= HALVES else 0
            start = max(free, self.arrived[-1] if self.arrived else 0.0)
            self.arrived.append(start + self.halves[number].weight_bytes / self.rate)
