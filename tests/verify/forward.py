"""Logits of every row of a sequence, a batch or a tree, from an elmoe backend; for comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from elmoe.backend.protocol import Backend, Bool, DraftQuality, ForwardResult, Rows
from elmoe.engine.draft import DraftTree
from elmoe.engine.kv_cache import RowBuilder, SequenceCache
from elmoe.quant.bitnested import Float32


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
    cache = _committed(backend, prefix, spare_cells=len(tokens))
    nodes = list(range(len(tokens)))
    return _forward_nodes(backend, cache, _tree(tokens, parents), nodes, nodes)


def forward_speculatively(
    backend: Backend,
    text: Sequence[int],
    start: int,
    tokens: Sequence[int],
    parents: Sequence[int],
    path: Sequence[int],
    draft: DraftQuality,
    pool: Bool,
) -> Float32:
    """Logits [T - start, V] of the rows from `start` on, by speculative decoding whose drafts are right twice.

    The text up to `start` is run at once. Then, twice: the draft runs over a tree level by level, all nodes but the
    leaves outside of `path` are verified, and `path` is committed. The rest follows at once. Nodes on the path hold the
    text's tokens, the others `tokens`. parents come before their children, levels one after the other.
    """
    cache = _committed(backend, text[:start], spare_cells=len(text) - start + len(tokens))
    levels = depths_of(parents)
    nodes = range(len(tokens))
    verified = [node for node in nodes if node in path or node in parents]
    found = []
    for _ in range(2):
        tree = _tree(tokens, parents)
        for depth, node in enumerate(path):
            tree.tokens[node] = text[cache.committed + depth]
        for level in range(max(levels) + 1):
            now = [node for node in nodes if levels[node] == level]
            _forward_nodes(backend, cache, tree, now, nodes, pool, draft)
        logits = _forward_nodes(backend, cache, tree, verified, verified, pool).logits
        found.append(logits[[verified.index(node) for node in path]])
        cache.commit_tree(backend, verified, path)
    builder = RowBuilder()
    builder.add_run(cache, text[cache.committed :], want_last=False)
    found.append(backend.forward(_all_logits(builder.build())).logits)
    return np.concatenate(found)


def _committed(backend: Backend, prefix: Sequence[int], spare_cells: int) -> SequenceCache:
    """A sequence whose cache holds a prefix."""
    (cache,) = run_sequences(backend, [prefix], spare_cells)
    builder = RowBuilder()
    builder.add_run(cache, prefix, want_last=False)
    backend.forward(builder.build())
    cache.committed = len(prefix)
    return cache


def _tree(tokens: Sequence[int], parents: Sequence[int]) -> DraftTree:
    tree = DraftTree(tokens[0], width=1, depth=1)
    tree.tokens, tree.parents, tree.depths = list(tokens), list(parents), depths_of(parents)
    return tree


def _forward_nodes(
    backend: Backend,
    cache: SequenceCache,
    tree: DraftTree,
    nodes: Sequence[int],
    in_cache: Sequence[int],
    pool: Bool | None = None,
    draft: DraftQuality | None = None,
) -> ForwardResult:
    builder = RowBuilder()
    builder.add_nodes(cache, tree, nodes, in_cache)
    return backend.forward(builder.build(), pool, draft)


def depths_of(parents: Sequence[int]) -> list[int]:
    """Depth of every node of a tree whose parents come before their children."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths


def _all_logits(rows: Rows) -> Rows:
    return replace(rows, logits=np.arange(rows.count, dtype=np.int32))
