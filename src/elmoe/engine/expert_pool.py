"""The expert pool: which experts' MSB planes are in the fast tier, by hotness.

The pool is expert cache and draft model at once. Hotness is the accumulated count of *original* routing decisions
(before throttling), fading from step to step. The next pool is chosen before a target pass starts and filled only
from what that pass reads anyway, so updating it costs no traffic (paper, Algorithm 1). Knows nothing about weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from elmoe.backend.protocol import Bool
from elmoe.errors import ConfigError
from elmoe.trace.schema import routing_counts


class ExpertPool:
    """Residents per MoE layer, at least `experts_per_tok` of them.

    decay: share of the hotness that survives a step.
    """

    def __init__(self, layers: int, experts: int, experts_per_tok: int, slots: int, decay: float) -> None:
        self.experts_per_tok = experts_per_tok
        self.decay = decay
        self.hotness = np.zeros((layers, experts), dtype=np.float64)
        self._slots = self._checked(slots)
        first = np.arange(experts) < self._slots  # before anything is known, any experts will do
        self.resident: Bool = np.tile(first, (layers, 1))
        """[L, E]; replaced by another array when it changes, so a pass can keep the one it ran with."""

    @property
    def slots(self) -> int:
        """Pool slots per layer."""
        return self._slots

    @property
    def size(self) -> int:
        """The same: what `resize` takes."""
        return self._slots

    def resize(self, slots: int) -> None:
        """Change the slots per layer: the coldest leave at once, newcomers enter with the next target pass."""
        self._slots = self._checked(slots)
        if int(self.resident.sum(axis=1).max(initial=0)) > self._slots:
            self.resident = self._hottest(self.resident)

    def observe(self, experts: npt.NDArray[np.int16]) -> None:
        """Count original routing decisions [R, L, A]."""
        self.hotness += routing_counts(experts, self.hotness.shape[1])

    def choose(self) -> Bool:
        """The pool wanted after the coming target pass, bool [L, E]."""
        return highest(self.hotness, self._slots)

    def fade(self) -> None:
        """End an engine step: older decisions count less from here on."""
        self.hotness *= self.decay

    def fill(self, wanted: Bool, read: Bool) -> None:
        """After a target pass that read the experts `read` [L, E]: wanted ones among them enter, the coldest leave.

        A wanted expert that was neither resident nor read stays out: fetching it would cost traffic of its own.
        """
        if not (wanted & read & ~self.resident).any():
            return
        entering = wanted & (self.resident | read)
        staying = self.resident & ~entering
        self.resident = self._hottest(entering | staying, first=entering)

    def _hottest(self, among: Bool, first: Bool | None = None) -> Bool:
        """The `slots` hottest of `among` per layer; members of `first` come before all others."""
        rank = np.where(among, self.hotness, -1.0)
        if first is not None:
            rank = np.where(first, rank + self.hotness.max() + 1.0, rank)
        return highest(rank, self._slots) & among

    def _checked(self, slots: int) -> int:
        experts = self.hotness.shape[1]
        if not self.experts_per_tok <= slots <= experts:
            raise ConfigError(
                f"an expert pool of {slots} per layer is impossible; {self.experts_per_tok} (one token's experts) "
                f"to {experts} (all) are possible"
            )
        return slots


def highest(rank: npt.NDArray[np.float64], slots: int) -> Bool:
    """Mask [L, E] of the `slots` highest of each layer of `rank` [L, E], ties to the lower number."""
    least = np.partition(rank, -slots, axis=1)[:, -slots, None]  # cheaper than sorting: this runs at every step
    chosen = rank >= least
    if np.count_nonzero(chosen) > slots * len(rank):
        tied = rank == least
        above = chosen & ~tied
        room = slots - above.sum(axis=1, keepdims=True)
        chosen = above | (tied & (tied.cumsum(axis=1) <= room))
    return chosen
