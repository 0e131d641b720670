"""Keys and values of sequences that have ended, kept for prompts that begin as they did.

The least recently used go first where there is no room. Knows nothing about arrays: the backend owns them, and the
engine copies the cells of a common beginning into the new sequence's own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elmoe.backend.protocol import Int32

LEAST_SHARED = 16
"""Common tokens below which nothing is copied."""
MOST_SEQUENCES = 256
"""Sequences kept at most: all of them are looked through for each prompt."""


@dataclass(frozen=True)
class Kept:
    """One sequence that has ended."""

    tokens: Int32
    """Those whose keys and values are in its first cells."""
    cells: int
    """Cells that it holds, with those that were written beyond its tokens."""
    head: bytes
    """Its first tokens: what begins otherwise need not be compared."""


def common_length(one: Int32, other: Int32) -> int:
    """Tokens that both begin with."""
    shorter = min(len(one), len(other))
    apart = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(apart[0]) if len(apart) else shorter


def _head(tokens: Int32) -> bytes:
    return tokens[:LEAST_SHARED].tobytes()


class PrefixCache:
    """Sequences by their number, at most `max_cells` cells in all."""

    def __init__(self, max_cells: int) -> None:
        self.max_cells = max_cells
        self.cells = 0
        """In use."""
        self._kept: OrderedDict[int, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def longest(self, prompt: Sequence[int]) -> tuple[int, int]:
        """(sequence, common tokens) of the one that shares the longest beginning with a prompt; (-1, 0) for none."""
        wanted, best = np.asarray(prompt, dtype=np.int32), (-1, 0)
        head = _head(wanted)
        for sequence, kept in self._kept.items():
            if kept.head == head and (length := common_length(wanted, kept.tokens)) > best[1]:
                best = sequence, length
        if best[1]:
            self._kept.move_to_end(best[0])
        return best

    def keep(self, sequence: int, tokens: Sequence[int], cells: int) -> list[int]:
        """Take a sequence in; returns those that must be given back, perhaps itself."""
        array = np.asarray(tokens, dtype=np.int32)
        new = Kept(array, cells, _head(array))
        if cells > self.max_cells or len(new.tokens) < LEAST_SHARED:
            return [sequence]
        dropped = []
        for other, kept in [each for each in self._kept.items() if each[1].head == new.head]:
            common = common_length(new.tokens, kept.tokens)
            if common == len(new.tokens):  # another one begins with all of it
                self._kept.move_to_end(other)
                return [sequence]
            if common == len(kept.tokens):
                dropped.append(self._drop(other))
        self._kept[sequence] = new
        self.cells += cells
        return dropped + self.shrink(self.max_cells)

    def shrink(self, cells: int) -> list[int]:
        """Make do with `cells` cells; returns the sequences that must be given back."""
        dropped = []
        while self.cells > cells or len(self._kept) > MOST_SEQUENCES:
            dropped.append(self._drop(next(iter(self._kept))))
        return dropped

    def _drop(self, sequence: int) -> int:
        self.cells -= self._kept.pop(sequence).cells
        return sequence
