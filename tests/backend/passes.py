"""Rows of a pass, spelled out by hand: what the tests of all backends ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from elmoe.backend.protocol import Int32, Rows

FIELDS = ("tokens", "sequences", "positions", "cells", "prefix", "path")
POOL_OF_TINY = (8, 32)
"""Layers and experts of the built-in model: the shape of its pools."""
HALF_OF_TINY = np.tile(np.arange(POOL_OF_TINY[1]) % 2 == 0, (POOL_OF_TINY[0], 1))
"""A pool of every second expert."""


def int32(items: Iterable[int]) -> Int32:
    return np.array(list(items), dtype=np.int32)


def run_of(tokens: Sequence[int], sequence: int = 0, first: int = 0) -> Rows:
    """Plain rows of consecutive tokens, all logits wanted."""
    count = len(tokens)
    positions = np.arange(first, first + count, dtype=np.int32)
    no_path = np.zeros((count, 0), dtype=np.int32)
    return Rows(
        int32(tokens), int32([sequence] * count), positions, positions, positions + 1, no_path, int32(range(count))
    )


def chain_of(tokens: Sequence[int], prefix: int, cells: Sequence[int], sequence: int = 0) -> Rows:
    """A path of tree nodes after `prefix` committed cells, all logits wanted."""
    return tree_of(tokens, list(range(-1, len(tokens) - 1)), prefix, cells, sequence)


def tree_of(
    tokens: Sequence[int], parents: Sequence[int], prefix: int, cells: Sequence[int], sequence: int = 0
) -> Rows:
    """Tree nodes after `prefix` committed cells, parents before children (-1: a root), all logits wanted."""
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), cells[node]])
    count = len(tokens)
    positions = int32(prefix + len(path) - 1 for path in paths)
    return Rows(
        int32(tokens), int32([sequence] * count), positions, int32(cells[:count]), int32([prefix] * count),
        padded(paths), int32(range(count)),
    )  # fmt: skip


def padded(paths: Sequence[Sequence[int]]) -> Int32:
    """Paths of unequal lengths as one array [R, P]."""
    whole = np.full((len(paths), max(map(len, paths), default=0)), -1, dtype=np.int32)
    for row, path in enumerate(paths):
        whole[row, : len(path)] = path
    return whole


def joined(*parts: Rows) -> Rows:
    """Rows of several sequences as one pass."""
    width = max(part.path.shape[1] for part in parts)
    paths = [np.pad(part.path, ((0, 0), (0, width - part.path.shape[1])), constant_values=-1) for part in parts]
    first = np.cumsum([0, *(part.count for part in parts)])
    logits = [part.logits + start for part, start in zip(parts, first, strict=False)]
    fields = [np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS[:-1]]
    return Rows(*fields, np.concatenate(paths), np.concatenate(logits).astype(np.int32))


def picked(rows: Rows, which: Sequence[int]) -> Rows:
    """Some of the rows, all their logits wanted."""
    return Rows(*(getattr(rows, name)[list(which)] for name in FIELDS), int32(range(len(which))))


def same_bits(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()
