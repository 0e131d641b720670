"""When speculation may be tried: an account of the time it lost against plain decoding, and pauses between trials.

Knows nothing about depths or passes.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.01
"""Share of the decoding time that speculation may lose against plain decoding."""
START = 2.0
"""What it may lose before it has earned anything, in AR steps: the first trials."""
MOST = 12.0
"""What can be saved up, and what may be owed while the estimates promise a gain, in AR steps."""
SHORTEST_PAUSE, LONGEST_PAUSE = 8, 4096
"""Steps between two trials."""
HOPELESS = 0.8
"""Speed against AR below which a trial that went a little better than the last one is no encouragement."""


class Account:
    """Seconds that speculation may still lose against plain decoding."""

    def __init__(self) -> None:
        self.balance: float | None = None
        """None until an AR step was measured."""

    def open(self, ar_seconds: float) -> None:
        """Give what the first trials may lose; once."""
        if self.balance is None:
            self.balance = START * ar_seconds

    @property
    def is_open(self) -> bool:
        """Whether there is an AR step to reckon with."""
        return self.balance is not None

    def settle(self, spent: float, lost: float, ar_seconds: float) -> None:
        """A step took `spent` seconds, `lost` (below 0: won) of them against plain decoding."""
        if self.balance is not None:
            self.balance = min(self.balance + SHARE * spent - lost, MOST * ar_seconds)

    def affords(self, loss: float) -> bool:
        """Whether a trial that is expected to lose this much may be made."""
        return self.balance is not None and self.balance >= max(loss, 0.0)

    def overdrawn(self, ar_seconds: float) -> bool:
        """Whether speculation has lost so much that its estimates cannot be right."""
        return self.balance is not None and self.balance < -MOST * ar_seconds


@dataclass
class Pause:
    """The pause between trials of one kind: twice as long after each that promised no more than the one before."""

    due: int = 0
    """Step from which the next trial may be made."""
    steps: int = SHORTEST_PAUSE
    gain: float = 0.0
    """Speed against AR that the last trial promised."""

    def after(self, step: int, gain: float) -> None:
        """A trial was made and now promises this speed against AR."""
        better = gain > max(self.gain, HOPELESS)
        self.steps = max(self.steps // 2, SHORTEST_PAUSE) if better else min(self.steps * 2, LONGEST_PAUSE)
        self.due, self.gain = step + self.steps, gain
