"""What a pass costs, from the passes that were made: seconds by kind, draft quality and number of rows.

Machines are shared: a pass takes a tenth more or five times as long for no reason of its own, and for minutes all may
take twice as long. So a cost is kept in two factors: the size's own cost, which moves slowly, and the *pace* of the
machine, common to all passes, which moves fast. So sizes that were measured at different times stay comparable. Sizes
that were never run are interpolated. Knows nothing about why a pass was made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from elmoe.backend.protocol import DraftQuality
from elmoe.trace.schema import PassKind

FIRST = 5
"""Measurements of a size whose middle is its first cost; from then on it is corrected by each."""
PACE, CORRECTION = 0.25, 0.025
"""Shares of a measurement's surprise (in logarithms) that go to the pace and to the size's own cost. As both are fixed,
the pace cannot drift away: it returns when the machine does."""
SURPRISE = 1.5
"""The ratio of measured to expected seconds counts up to this, and down to its inverse."""
FADE, LEAST = 0.999, 5.0
"""Share of a size's weight that survives a pass of another size, and the least weight: the cost of a size that lay idle
is corrected by up to a fifth."""
SPREAD = 0.15
"""What a single measurement may be off by."""
GROWTH = 0.5
"""Assumed until measured: a pass with twice the rows costs half as much again. Between reading weights (0) and
computing with them (1)."""


class Pass(NamedTuple):
    """What the cost of a pass depends on."""

    kind: PassKind
    rows: int
    quality: DraftQuality | None = None
    """Of a draft pass."""


Key = tuple[PassKind, DraftQuality | None]
Point = tuple[float, float]
"""Rows and seconds."""


class StepLog:
    """What one decode step cost and gave. A pass counts from the end of the one before: with the engine's own work."""

    def __init__(self, batch: int, chosen: bool = True) -> None:
        """chosen: whether the controller decided about all of its trees, and answers for what they cost."""
        self.batch, self.chosen = batch, chosen
        self.passes: list[tuple[Pass, float]] = []
        """With their seconds."""
        self.trees: list[tuple[int, int]] = []
        """Levels drafted and levels accepted, of the sequences that drafted."""
        self._lap = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of its passes so far."""
        return sum(seconds for _, seconds in self.passes)

    def end_pass(self, one: Pass) -> None:
        """The work on a pass, and on what came of it, is done."""
        now = time.perf_counter()
        self.passes.append((one, now - self._lap))
        self._lap = now


class Size:
    """What passes of one size cost, at a pace of 1."""

    def __init__(self) -> None:
        self.rows = 0
        self.measured = 0
        """Measurements so far."""
        self.seconds = 0.0
        self._first: list[float] = []
        self._weight = 0.0
        self._last = 0

    def begin(self, now: int, rows: int, seconds: float) -> None:
        """Take one of the first measurements: their median counts, of two that are far apart the smaller one."""
        self._first.append(seconds)
        low, *_, high = sorted(self._first * 2)
        self.seconds = low if len(self._first) == 2 and high > SURPRISE * low else median(self._first)
        self._count(now, rows)

    def correct(self, now: int, rows: int, surprise: float) -> None:
        """Take a measurement that was `surprise` times what was expected."""
        self._weight = self.weight(now)
        self.seconds *= surprise ** max(CORRECTION, 1 / (self._weight + 1))
        self._count(now, rows)

    def weight(self, now: int) -> float:
        """How many measurements the cost is worth at pass number `now`."""
        idle = now - self._last - 1
        return max(self._weight * FADE**idle, min(self._weight, LEAST)) if idle > 0 else self._weight

    def _count(self, now: int, rows: int) -> None:
        self.rows, self._last = rows, now
        self.measured += 1
        self._weight += 1


class Quote(NamedTuple):
    """What a pass will cost, in seconds."""

    seconds: float
    """Expected: measured, else by its neighbours in size."""
    least: float
    """The least that nothing measured rules out: by the spread of measurements, or what the next smaller size costs."""
    most: float
    """The most: beyond all measured sizes, as much as the rows grow."""
    measured: int
    """Measurements of its size."""

    @property
    def known(self) -> bool:
        """Measured, or not above all measured sizes."""
        return self.measured > 0 or self.most == self.seconds


class CostModel:
    """Seconds per pass, of the engine's own work as well as the backend's."""

    def __init__(self) -> None:
        self.pace = 1.0
        """How many times as long as usual passes take now."""
        self._sizes: dict[Pass, Size] = {}
        self._curves: dict[Key, list[Point]] = {}
        self._passes = 0

    def observe(self, one: Pass, seconds: float) -> None:
        """Take the measured cost of a pass."""
        self._passes += 1
        key = sized(one)
        size = self._sizes.get(key)
        if size is None:
            size = self._sizes[key] = Size()
        if size.measured < FIRST:
            size.begin(self._passes, one.rows, seconds / self.pace)
        else:
            surprise = min(max(seconds / (size.seconds * self.pace), 1 / SURPRISE), SURPRISE)
            self.pace *= surprise**PACE
            size.correct(self._passes, one.rows, surprise)
        if self._curves:
            self._curves.clear()

    def measured(self, one: Pass) -> int:
        """Measurements of its size."""
        size = self._sizes.get(sized(one))
        return size.measured if size else 0

    def knows(self, kind: PassKind, quality: DraftQuality | None = None) -> bool:
        """Whether anything is known about such passes: then they can be quoted."""
        return bool(self._curve(kind, quality))

    def quote(self, one: Pass) -> Quote:
        """The cost of a pass of a kind that is known."""
        size, pace = self._sizes.get(sized(one)), self.pace
        if size is not None and size.measured > 1:
            seconds = size.seconds * pace
            least = seconds * (1 - SPREAD / size.weight(self._passes) ** 0.5)
            return Quote(seconds, least, seconds, size.measured)
        curve = self._curve(one.kind, one.quality)
        seconds, (last, at_last) = interpolated(curve, one.rows), curve[-1]
        smaller = [cost for rows, cost in curve if rows < one.rows]
        least, most = smaller[-1] if smaller else seconds, at_last * one.rows / last if one.rows > last else seconds
        return Quote(seconds * pace, least * pace, most * pace, size.measured if size else 0)

    def table(self) -> list[dict[str, Any]]:
        """Every size that was measured, for JSON; seconds at the present pace."""
        return [
            {
                "kind": key.kind.value,
                "quality": None if key.quality is None else key.quality.as_dict(),
                "rows": size.rows,
                "seconds": size.seconds * self.pace,
                "measured": size.measured,
            }
            for key, size in sorted(self._sizes.items(), key=lambda item: (item[0].kind.value, item[0].rows))
        ]

    def _curve(self, kind: PassKind, quality: DraftQuality | None) -> list[Point]:
        """Measured sizes at a pace of 1, ascending, none cheaper than a smaller one."""
        if (kind, quality) not in self._curves:
            mine = [size for key, size in self._sizes.items() if key.kind is kind and key.quality == quality]
            points: list[Point] = sorted((size.rows, size.seconds) for size in mine)
            if kind is PassKind.VERIFY:  # the target too: AR passes stand in for the sizes below
                least = points[0][0] if points else float("inf")
                points = [point for point in self._curve(PassKind.AR, None) if point[0] < least] + points
            self._curves[kind, quality] = rising(points)
        return self._curves[kind, quality]


def sized(one: Pass) -> Pass:
    """What stands for all passes that are measured together: exact below 32 rows, within a sixteenth above."""
    if one.rows < 32:
        return one
    shift = one.rows.bit_length() - 5
    return one._replace(rows=one.rows >> shift << shift)


def rising(points: Sequence[Point]) -> list[Point]:
    """The nearest points whose seconds do not fall (isotonic regression: neighbours that fall share their mean)."""
    blocks: list[tuple[float, int]] = []  # sum of seconds, points
    for _, seconds in points:
        total, count = seconds, 1
        while blocks and blocks[-1][0] * count > total * blocks[-1][1]:
            before, more = blocks.pop()
            total, count = total + before, count + more
        blocks.append((total, count))
    means = [total / count for total, count in blocks for _ in range(count)]
    return [(rows, mean) for (rows, _), mean in zip(points, means, strict=True)]


def interpolated(curve: Sequence[Point], rows: int) -> float:
    """Seconds at `rows` on a rising curve; beyond its end it goes on as it ended, or by `GROWTH` if that is more."""
    for (low, cheap), (high, dear) in pairwise(curve):
        if low <= rows <= high:
            return cheap + (dear - cheap) * (rows - low) / (high - low)
    (nearest, seconds) = curve[0] if rows <= curve[0][0] else curve[-1]
    grown = seconds * (1 + GROWTH * (rows / nearest - 1))
    if rows <= nearest or len(curve) == 1:
        return grown
    slope = (seconds - curve[-2][1]) / (nearest - curve[-2][0])
    return min(max(seconds + slope * (rows - nearest), grown), seconds * rows / nearest)
