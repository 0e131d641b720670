"""Where each row of a pass keeps its keys and values: committed cells, then scratch cells for a tree.

A sequence's cache is one contiguous run of cells. Cells ``0..committed-1`` hold its tokens in order, target quality;
what lies above is scratch: a draft writes its nodes there, the verify pass overwrites them, and `commit` moves the
accepted ones down. Nothing ever attends to a scratch cell except along a path of the pass that wrote it, so rejected
nodes leave no trace. Knows nothing about arrays: the backend owns them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elmoe.backend.protocol import Backend, Rows
from elmoe.engine.draft import DraftTree


@dataclass
class SequenceCache:
    """The cells of one sequence."""

    sequence: int
    capacity: int
    committed: int = 0

    @property
    def spare_cells(self) -> int:
        """Cells for tree nodes beside the root's."""
        return self.capacity - self.committed - 1

    def commit_tree(self, backend: Backend, verified: Sequence[int], path: Sequence[int]) -> None:
        """Keep the accepted nodes of a verify pass: node ``verified[i]`` was computed in cell ``committed + i``.

        path: accepted nodes, root first; they become the next committed cells, in order.
        """
        base = self.committed
        cell_of = {node: base + i for i, node in enumerate(verified)}
        moves = [(cell_of[node], base + i) for i, node in enumerate(path) if cell_of[node] != base + i]
        if moves:
            source, destination = np.array(moves, dtype=np.int32).T
            backend.move(self.sequence, source, destination)
        self.committed += len(path)


class RowBuilder:
    """Collects the rows of one pass."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._sequences: list[int] = []
        self._positions: list[int] = []
        self._cells: list[int] = []
        self._prefix: list[int] = []
        self._paths: list[list[int]] = []
        self._logits: list[int] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def add_run(self, cache: SequenceCache, tokens: Sequence[int], want_last: bool) -> None:
        """Consecutive tokens from the first uncommitted position on; each sees all before it and itself.

        want_last: whether the last one's logits are wanted.
        """
        first, count = cache.committed, len(tokens)
        self._tokens.extend(tokens)
        self._sequences += [cache.sequence] * count
        self._positions += range(first, first + count)
        self._cells += range(first, first + count)
        self._prefix += range(first + 1, first + count + 1)
        self._paths += [[]] * count
        if want_last:
            self._logits.append(len(self) - 1)

    def add_nodes(self, cache: SequenceCache, tree: DraftTree, nodes: Sequence[int], in_cache: Sequence[int]) -> None:
        """Tree nodes, logits wanted: each sees the committed cells and its own lineage.

        in_cache: all nodes that have a scratch cell, in cell order; `nodes` are among them.
        """
        base = cache.committed
        cell_of = {node: base + i for i, node in enumerate(in_cache)}
        self._logits += range(len(self), len(self) + len(nodes))
        self._sequences += [cache.sequence] * len(nodes)
        self._prefix += [base] * len(nodes)
        for node in nodes:
            self._tokens.append(tree.tokens[node])
            self._positions.append(base + tree.depths[node])
            self._cells.append(cell_of[node])
            self._paths.append([cell_of[ancestor] for ancestor in tree.lineage(node)])

    def build(self, best: int = 0) -> Rows:
        """The rows, sequences adjacent because they were added so. best: see `Rows.best`."""
        columns = (self._tokens, self._sequences, self._positions, self._cells, self._prefix)
        tokens, sequences, positions, cells, prefix = np.array(columns, dtype=np.int32)
        longest = max(map(len, self._paths))
        padded = [path + [-1] * (longest - len(path)) for path in self._paths]
        path = np.array(padded, dtype=np.int32).reshape(len(self), longest)
        logits = np.array(self._logits, dtype=np.int32)
        return Rows(tokens, sequences, positions, cells, prefix, path, logits, best)


def scratch_cells(width: int, depth: int, verify: int) -> int:
    """Cells above the committed ones that drafting and verifying a tree can touch: the root's and its nodes'."""
    return 1 + max(width * (depth - 1), verify) if depth else 1


def deepest_tree(width: int, spare_cells: int) -> int:
    """The most levels that can be drafted with `spare_cells` beside the root's: the last level is not run."""
    return spare_cells // width + 1 if spare_cells else 0
