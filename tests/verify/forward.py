"""Logits of every row of a sequence, a batch or a tree, from an elmoe backend; for comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from elmoe.backend.protocol import Backend, ForwardResult, Rows
from elmoe.engine.draft import DraftTree
from elmoe.engine.kv_cache import RowBuilder, SequenceCache


def run_sequences(backend: Backend, texts: Sequence[Sequence[int]], spare_cells: int = 0) -> list[SequenceCache]:
    """Allocate caches, numbered from 0, for texts that a pass is about to write."""
    caches = []
    for number, text in enumerate(texts):
        backend.allocate(number, len(text) + spare_cells)
        caches.append(SequenceCache(number, len(text) + spare_cells))
    return caches


def forward_batch(backend: Backend, texts: Sequence[Sequence[int]]) -> ForwardResult:
    """All texts in one pass, one after the other; logits of every row."""
    builder = RowBuilder()
    for cache, text in zip(run_sequences(backend, texts), texts, strict=True):
        builder.add_run(cache, text, want_last=False)
    return backend.forward(_all_logits(builder.build()))


def forward_tree(
    backend: Backend, prefix: Sequence[int], tokens: Sequence[int], parents: Sequence[int]
) -> ForwardResult:
    """A tree over a committed prefix; ``parents[0]`` is -1 and logits are those of the tree's rows."""
    (cache,) = run_sequences(backend, [prefix], spare_cells=len(tokens))
    builder = RowBuilder()
    builder.add_run(cache, prefix, want_last=False)
    backend.forward(builder.build())
    cache.committed = len(prefix)
    tree = DraftTree(tokens[0], width=1, depth=1)
    tree.tokens, tree.parents = list(tokens), list(parents)
    tree.depths = depths_of(parents)
    builder = RowBuilder()
    nodes = list(range(len(tokens)))
    builder.add_nodes(cache, tree, nodes, nodes)
    return backend.forward(builder.build())


def depths_of(parents: Sequence[int]) -> list[int]:
    """Depth of every node of a tree whose parents come before their children."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths


def _all_logits(rows: Rows) -> Rows:
    return replace(rows, logits=np.arange(rows.count, dtype=np.int32))
