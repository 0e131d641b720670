"""The draft tree of one sequence: EAGLE-2 style growth by cumulative score, best nodes to verification.

Node 0 is the root: the sequence's last token, whose keys and values are not in the cache yet. A level is grown by
running the draft over the frontier; each frontier node proposes its `width` best next tokens, and the `width` best new
nodes by cumulative log-probability form the next frontier. After `depth` levels the `verify` best nodes of the whole
tree are verified: a child never scores above its parent, so they form a tree. Knows nothing about models or caches.

Source: EAGLE-2 (arXiv 2406.16858), as used by the paper's Elastic-SD.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy.typing as npt

Candidates = tuple[npt.NDArray, npt.NDArray]  # type: ignore[type-arg]


class DraftTree:
    """Nodes in creation order: parents before children, levels one after the other."""

    def __init__(self, root_token: int, width: int, depth: int) -> None:
        self.width, self.depth = width, depth
        self.tokens = [root_token]
        self.parents = [-1]
        self.depths = [0]
        self.scores = [0.0]
        self.frontier = [0] if depth > 0 else []
        self.forwarded: list[int] = []
        """Nodes that the draft has run over, in this order: position i has its draft keys and values in cell i of
        the sequence's scratch cells."""

    def begin_level(self) -> list[int]:
        """The nodes that the draft runs over next; empty when the tree is finished."""
        self.forwarded.extend(self.frontier)
        return self.frontier

    def grow(self, proposals: Sequence[Candidates]) -> None:
        """Add a level: for each frontier node, candidate tokens and their log-probabilities, best first."""
        first_new = len(self.tokens)
        for node, (tokens, log_probabilities) in zip(self.frontier, proposals, strict=True):
            for token, log_probability in zip(tokens, log_probabilities, strict=True):
                self.tokens.append(int(token))
                self.parents.append(node)
                self.depths.append(self.depths[node] + 1)
                self.scores.append(self.scores[node] + min(float(log_probability), 0.0))
        new = range(first_new, len(self.tokens))
        finished = self.depths[-1] >= self.depth
        self.frontier = [] if finished else sorted(self._best(new, self.width))

    def lineage(self, node: int) -> list[int]:
        """Nodes from the root to `node`, both included."""
        path = [node]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        return path[::-1]

    def best_nodes(self, count: int) -> list[int]:
        """The root and the `count` best other nodes, parents before children."""
        return [0, *sorted(self._best(range(1, len(self.tokens)), count))]

    def _best(self, nodes: range, count: int) -> list[int]:
        return sorted(nodes, key=lambda node: (-self.scores[node], node))[:count]
