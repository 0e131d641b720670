"""Which drafted tokens to verify, when a verify pass has to read experts from a slow tier.

Plain selection takes the likeliest nodes. But the draft has recorded which experts each of them asks for, so what a
node costs is known before the pass: the bytes of those experts that are not in the fast tier and that no other
verified row reads anyway. A node is worth verifying if it adds expected tokens per second to the step; trees stay
whole (a node needs its parent). Lossless by construction: whatever is verified, the target decides. Beyond the paper.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt

from elmoe.engine.draft import DraftTree
from elmoe.trace.schema import routing_counts

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SlowTier:
    """What reading costs."""

    cold_bytes: Float64
    """[L, E] what a pass reads of an expert that it needs."""
    seconds_per_byte: float
    base_seconds: float
    """Of a step, whatever is verified: its draft, and the pass without reads."""


def choose_nodes(trees: Sequence[DraftTree], most: Sequence[int], slow: SlowTier) -> list[list[int]]:
    """For each tree the nodes to verify, the root first, parents before children; at most `most` beside the root.

    Nodes are taken one by one, the one with most expected tokens per added second next, and of the sets on this way the
    one that gives most tokens per second counts: the first sequences to take a node pay for experts that the later ones
    then find paid. A node's chance is its score; the experts of a node that the draft has not run over, a leaf, are
    like those of its parent, but for as many new ones as nodes bring on average.
    """
    picker = _Picker(trees, slow)
    room = list(most)
    heap: list[tuple[float, int, int, int]] = []
    children = [_children(tree) for tree in trees]

    def take(tree: int, node: int) -> None:
        picker.take(tree, node)
        for child in children[tree].get(node, ()):
            heapq.heappush(heap, (-picker.rate_of(tree, child), tree, child, picker.taken))

    for tree in range(len(trees)):
        take(tree, 0)
    best, best_rate = picker.taken, picker.rate
    while heap:
        _, tree, node, known = heapq.heappop(heap)
        if room[tree] == 0:
            continue
        if known != picker.taken:  # others may read its experts by now: it can only have become cheaper
            again = -picker.rate_of(tree, node)
            if heap and again > heap[0][0]:
                heapq.heappush(heap, (again, tree, node, picker.taken))
                continue
        take(tree, node)
        room[tree] -= 1
        if picker.rate >= best_rate:
            best, best_rate = picker.taken, picker.rate
    return picker.first(best)


def routing_of(trees: Sequence[DraftTree], verified: Sequence[Sequence[int]], experts: int) -> Int64 | None:
    """[L, E] how many of the verified nodes asked for an expert in the draft; None where nothing is known."""
    known = [
        tree.routing[node]
        for tree, nodes in zip(trees, verified, strict=True)
        for node in nodes
        if node in tree.routing
    ]
    if not known:
        return None
    return routing_counts(np.stack(known), experts)


class _Picker:
    """The set so far, what it reads and what it gives."""

    def __init__(self, trees: Sequence[DraftTree], slow: SlowTier) -> None:
        self._trees, self._slow = trees, slow
        self._left = slow.cold_bytes.ravel().copy()  # what an expert would still add
        self._offsets = np.arange(len(slow.cold_bytes)) * slow.cold_bytes.shape[1]
        self._all = float(self._left.sum())
        self._order: list[tuple[int, int]] = []
        self._tokens = 0.0
        self._seconds = slow.base_seconds
        self._novel = self._mean_novelty()

    @property
    def rate(self) -> float:
        """Expected tokens per second."""
        return self._tokens / self._seconds

    @property
    def taken(self) -> int:
        """Nodes so far, roots included."""
        return len(self._order)

    def first(self, count: int) -> list[list[int]]:
        """The first `count` nodes, by tree."""
        chosen: list[list[int]] = [[] for _ in self._trees]
        for tree, node in self._order[:count]:
            chosen[tree].append(node)
        return [sorted(nodes) for nodes in chosen]

    def rate_of(self, tree: int, node: int) -> float:
        """Expected tokens per second that a node adds."""
        return self._chance(tree, node) / max(self._added(tree, node), 1e-12)

    def take(self, tree: int, node: int) -> None:
        """Verify a node."""
        self._seconds += self._added(tree, node)
        self._tokens += self._chance(tree, node)
        self._order.append((tree, node))
        places = self._places(tree, node)
        if places is not None:
            self._left[places] = 0.0

    def _chance(self, tree: int, node: int) -> float:
        return exp(self._trees[tree].scores[node])

    def _added(self, tree: int, node: int) -> float:
        places = self._places(tree, node)
        if places is not None:
            more = float(self._left[places].sum())
        else:
            more = self._novel * (float(self._left.sum()) / self._all if self._all else 0.0)
        return more * self._slow.seconds_per_byte

    def _places(self, tree: int, node: int) -> npt.NDArray[np.intp] | None:
        routing = self._trees[tree].routing.get(node)
        return None if routing is None else np.unique(routing + self._offsets[:, None])

    def _mean_novelty(self) -> float:
        """Cold bytes that a node asks for and its parent does not."""
        bytes_of = self._left
        found = []
        for number, tree in enumerate(self._trees):
            for node in tree.routing:
                mine, above = self._places(number, node), self._places(number, tree.parents[node]) if node else None
                if mine is not None and above is not None:
                    found.append(float(bytes_of[np.setdiff1d(mine, above, assume_unique=True)].sum()))
        return float(np.mean(found)) if found else 0.0


def _children(tree: DraftTree) -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents):
        if node:
            children.setdefault(parent, []).append(node)
    return children
