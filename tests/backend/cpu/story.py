"""Random histories of passes: what an engine may ask of a backend, and odder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from backend.passes import int32, joined, padded, run_of, tree_of
from elmoe.backend.protocol import Backend, Bool, DraftQuality, Int32, Rows
from elmoe.models.shape import ModelShape

DEEPEST = 12


@dataclass
class Story:
    """Drives one backend. The same random numbers lead to the same passes, whatever the backend computes."""

    backend: Backend
    rng: np.random.Generator
    sequences: int = 2
    cells: int = 180
    """Beyond one span of 128 positions, and no multiple of a block of 16 keys."""
    committed: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for sequence in range(self.sequences):
            self._restart(sequence)

    def tell(self, passes: int) -> None:
        """Go on for some passes."""
        chapters: list[Callable[[], None]] = [
            self._prefill, self._prefill, self._decode, self._decode, self._trees, self._trees, self._trees, self._odd,
        ]  # fmt: skip
        for _ in range(passes):
            chapters[self.rng.integers(len(chapters))]()
            if self.rng.random() < 0.05:
                self._restart(self._one())

    # --- chapters ---

    def _restart(self, sequence: int) -> None:
        if self.rng.random() < 0.5:
            self.backend.release(sequence)
        self.backend.allocate(sequence, self.cells)
        self.committed[sequence] = 0

    def _prefill(self) -> None:
        """One sequence goes on by up to 70 tokens: over the boundaries of blocks and of spans."""
        sequence = self._one()
        room = self.cells - self.committed[sequence] - DEEPEST
        if room > 0:
            self._forward(self._run(sequence, int(self.rng.integers(1, min(room, 70) + 1))))

    def _decode(self) -> None:
        """A token each, of some sequences."""
        self._forward(joined(*(self._run(sequence, 1) for sequence in self._some())))

    def _trees(self) -> None:
        """Trees in scattered cells, or single tokens, of some sequences; one branch of a tree may be accepted."""
        parts, branches = [], {}
        for sequence in self._some():
            if self.rng.random() < 0.2:
                parts.append(self._run(sequence, 1))
                continue
            first, count = self._room(sequence), int(self.rng.integers(1, DEEPEST + 1))
            parents = [int(self.rng.integers(-1, node)) for node in range(count)]
            free = first + self.rng.permutation(self.cells - first)[:count]
            cells = free if self.rng.random() < 0.7 else np.arange(first, first + count)
            parts.append(tree_of(self._tokens(count), parents, first, cells.tolist(), sequence))
            branch = parts[-1].path[self.rng.integers(count)]
            branches[sequence] = branch[branch >= 0]
        self._forward(joined(*parts))
        for sequence, branch in branches.items():
            if self.rng.random() < 0.5:
                to = self.committed[sequence] + np.arange(len(branch), dtype=np.int32)
                self.backend.move(sequence, branch, to)
                self.committed[sequence] += len(branch)

    def _odd(self) -> None:
        """Rows of one sequence with any prefix, position and path: what no engine asks for."""
        sequence, count = self._one(), int(self.rng.integers(1, 9))
        prefix = [int(self.rng.integers(0, self.cells)) for _ in range(count)]
        paths = [self.rng.integers(0, self.cells, self.rng.integers(0, 40)).tolist() for _ in range(count)]
        paths = [path if path or seen else [0] for path, seen in zip(paths, prefix, strict=True)]
        positions = self.rng.integers(0, self.cells, count)
        if self.backend.shape.window:  # a row sees at least its last cell
            last = [seen + len(path) - 1 for seen, path in zip(prefix, paths, strict=True)]
            positions = np.minimum(positions, last)
        rows = Rows(
            self._tokens(count), int32([sequence] * count), int32(positions),
            int32(self.rng.permutation(self.cells)[:count]), int32(prefix), padded(paths), int32([]),
        )  # fmt: skip
        self._forward(rows)

    # --- choices ---

    def _one(self) -> int:
        return int(self.rng.integers(self.sequences))

    def _some(self) -> list[int]:
        """Sequences in any order, at least one."""
        return self.rng.permutation(self.sequences)[: self.rng.integers(1, self.sequences + 1)].tolist()

    def _room(self, sequence: int) -> int:
        """Committed cells, after starting anew where a tree would not fit."""
        if self.committed[sequence] + DEEPEST > self.cells:
            self._restart(sequence)
        return self.committed[sequence]

    def _run(self, sequence: int, count: int) -> Rows:
        rows = run_of(self._tokens(count).tolist(), sequence, self._room(sequence))
        self.committed[sequence] += count
        return rows

    def _tokens(self, count: int) -> Int32:
        return self.rng.integers(0, self.backend.shape.vocab, count, dtype=np.int32)

    def _forward(self, rows: Rows) -> None:
        vocab, count = self.backend.shape.vocab, rows.count
        wanted = self.rng.integers(0, count, self.rng.integers(0, count + 1))  # any order, some twice, or none
        best = int(self.rng.choice([0, 0, 1, 3, 40, vocab, vocab + 7]))
        draft = random_quality(self.rng, self.backend.shape) if self.rng.random() < 0.6 else None
        pool = random_pool(self.rng, self.backend.shape) if self.rng.random() < 0.7 else None
        self.backend.forward(replace(rows, logits=int32(wanted), best=best), pool, draft)


def random_quality(rng: np.random.Generator, shape: ModelShape) -> DraftQuality:
    """Any draft that the CPU backend has."""
    experts = int(rng.integers(1, shape.experts_per_tok + 2))
    return DraftQuality(int(rng.integers(2, 9)), experts_per_tok=experts if rng.random() < 0.5 else None)


def random_pool(rng: np.random.Generator, shape: ModelShape) -> Bool:
    """Enough experts for a token in every layer."""
    pool = np.zeros((len(shape.moe_layers), shape.experts), dtype=np.bool_)
    for layer in pool:
        layer[rng.permutation(shape.experts)[: rng.integers(shape.experts_per_tok, shape.experts + 1)]] = True
    return pool
