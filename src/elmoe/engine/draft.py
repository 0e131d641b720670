"""The draft tree of one sequence: EAGLE-2 style growth by cumulative score, best nodes to verification.

Node 0 is the root: the sequence's last token, whose keys and values are not in the cache yet. A level is grown by
running the draft over the frontier; each frontier node proposes its `width` best next tokens, and the `width` best new
nodes by cumulative log-probability form the next frontier. After `depth` levels the `verify` best nodes of the whole
tree are verified: a child never scores above its parent, so they form a tree. Knows nothing about models or caches.

Source: EAGLE-2 (arXiv 2406.16858), as used by the paper's Elastic-SD.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from elmoe.engine.sampler import Proposal


class DraftTree:
    """Nodes in creation order: parents before children, levels one after the other."""

    def __init__(self, root_token: int, width: int, depth: int) -> None:
        self.width, self.depth = width, depth
        self.tokens = [root_token]
        self.parents = [-1]
        self.depths = [0]
        self.scores = [0.0]
        self._lineages = {0: [0]}
        self.frontier = [0] if depth > 0 else []
        self.routing: dict[int, npt.NDArray[np.int16]] = {}
        """[L, A] the experts that the draft's routers chose for the nodes that it has run over, before the restriction
        to the pool."""
        self.forwarded: list[int] = []
        """Nodes that the draft has run over, in this order: position i has its draft keys and values in cell i of
        the sequence's scratch cells."""

    def begin_level(self) -> list[int]:
        """The nodes that the draft runs over next; empty when the tree is finished."""
        self.forwarded.extend(self.frontier)
        return self.frontier

    def grow(self, proposals: Sequence[Proposal]) -> None:
        """Add a level: for each frontier node, candidate tokens and their log-probabilities, best first."""
        first_new, depth = len(self.tokens), self.depths[-1] + 1
        for node, (tokens, log_probabilities) in zip(self.frontier, proposals, strict=True):
            score = self.scores[node]
            self.tokens.extend(tokens)
            self.scores.extend([score + min(log_probability, 0.0) for log_probability in log_probabilities])
            self.parents.extend([node] * len(tokens))
        self.depths.extend([depth] * (len(self.tokens) - first_new))
        new = range(first_new, len(self.tokens))
        self.frontier = [] if depth >= self.depth else sorted(self._best(new, self.width))

    def lineage(self, node: int) -> list[int]:
        """Nodes from the root to `node`, both included."""
        if node not in self._lineages:
            self._lineages[node] = [*self.lineage(self.parents[node]), node]
        return self._lineages[node]

    def best_nodes(self, count: int) -> list[int]:
        """The root and the `count` best other nodes, parents before children."""
        return [0, *sorted(self._best(range(1, len(self.tokens)), count))]

    def _best(self, nodes: range, count: int) -> list[int]:
        """The `count` best by score, ties to the earlier node (a reversed sort keeps the order of equals)."""
        return sorted(nodes, key=self.scores.__getitem__, reverse=True)[:count]
