"""How well drafts of every kind agree with their target: the two elasticities, measured teacher-forced.

For each position of given sequences, the draft predicts the next token from the *target's* KV cache plus its own last
position, as the first draft step of Elastic-SD does, and is compared with the target's prediction. Pools are fixed
for a block of positions and chosen from the target's own routing of the positions before it. Knows nothing about
files or the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt

from elmoe.backend.ordered import softmax
from elmoe.backend.protocol import Backend, Bool, DraftQuality, Rows
from elmoe.engine.expert_pool import highest
from elmoe.engine.kv_cache import RowBuilder, SequenceCache
from elmoe.quant.bitnested import MAX_DRAFT_BITS, MIN_DRAFT_BITS, Float32, Treatment
from elmoe.trace.schema import routing_counts

BLOCK = 8
"""Positions that share one pool: about two verify steps."""
WINDOW = 32
"""Positions before a block whose routing makes its hot pool."""
POOL_FRACTIONS = (1.0, 0.75, 0.5, 0.375, 0.25)
ELASTICITY_SEQUENCE = -1
"""KV number used while measuring; requests are numbered from 0."""


class PoolChoice(Enum):
    """How a measured pool is chosen."""

    HOT = "hot"
    RANDOM = "random"


@dataclass(frozen=True)
class Setting:
    """One draft to measure; 8 bits are undegraded weights (the expert axis alone)."""

    bits: int
    treatment: Treatment = Treatment.AUGMENT
    pool_fraction: float = 1.0
    pool: PoolChoice = PoolChoice.HOT


@dataclass
class Agreement:
    """What was measured for a setting."""

    setting: Setting
    positions: int = 0
    agreed: int = 0
    """Positions at which draft and target have the same most likely token."""
    overlap_sum: float = 0.0

    @property
    def agreement(self) -> float:
        """Share of positions with the same most likely token."""
        return self.agreed / self.positions if self.positions else 0.0

    @property
    def overlap(self) -> float:
        """Mean of 1 - total variation between the two next-token distributions."""
        return self.overlap_sum / self.positions if self.positions else 0.0


def full_grid() -> list[Setting]:
    """Bits x hot pools; every treatment at every width; random pools beside hot ones at 4 and 8 bits."""
    widths = range(MIN_DRAFT_BITS, MAX_DRAFT_BITS + 1)
    grid = [Setting(bits, pool_fraction=share) for bits in (*widths, 8) for share in POOL_FRACTIONS]
    others = (Treatment.TRUNCATE, Treatment.ROUND, Treatment.DEDICATED)
    grid += [Setting(bits, treatment) for bits in widths for treatment in others]
    grid += [Setting(bits, pool_fraction=f, pool=PoolChoice.RANDOM) for bits in (4, 8) for f in POOL_FRACTIONS[1:]]
    return grid


def measure(
    backend: Backend,
    sequences: Sequence[tuple[Sequence[int], int]],
    grid: Sequence[Setting],
    progress: Callable[[int, int], None] | None = None,
) -> list[Agreement]:
    """Measure every setting over `sequences`, each (tokens, index of the first token that counts as predicted).

    The random pools are drawn from a fixed seed: same input, same result.
    """
    results = [Agreement(setting) for setting in grid]
    random = np.random.default_rng(0)
    for index, (tokens, first) in enumerate(sequences):
        teacher = Teacher(backend, tokens)
        for result in results:
            setting = result.setting
            quality = DraftQuality(setting.bits, setting.treatment)
            for start, pool in _pools(backend, teacher.experts, setting, max(first, 1) - 1, random):
                end = len(tokens) - 1 if pool is None else min(start + BLOCK, len(tokens) - 1)
                if start < end:
                    _compare(result, teacher.logits[start:end], teacher.draft_logits(start, end, quality, pool))
        backend.release(ELASTICITY_SEQUENCE)
        if progress is not None:
            progress(index + 1, len(sequences))
    return results


class Teacher:
    """The target's pass over one sequence, and drafts that lean on its KV cache."""

    def __init__(self, backend: Backend, tokens: Sequence[int]) -> None:
        self.backend, self.tokens = backend, tokens
        backend.allocate(ELASTICITY_SEQUENCE, 2 * len(tokens))
        self._cache = SequenceCache(ELASTICITY_SEQUENCE, 2 * len(tokens))
        builder = RowBuilder()
        builder.add_run(self._cache, tokens, want_last=True)
        rows = builder.build()
        result = backend.forward(replace(rows, logits=np.arange(len(tokens), dtype=np.int32)))
        self.logits: Float32 = result.logits
        """[T, V]."""
        self.experts = result.experts
        """[T, L, A]."""

    def draft_logits(self, start: int, end: int, quality: DraftQuality, pool: Bool | None) -> Float32:
        """[end - start, V]: after each position, from the target's cache of all positions before it."""
        positions = np.arange(start, end, dtype=np.int32)
        scratch = np.arange(len(self.tokens), len(self.tokens) + end - start, dtype=np.int32)
        rows = Rows(
            tokens=np.array(self.tokens[start:end], dtype=np.int32),
            sequences=np.full(end - start, ELASTICITY_SEQUENCE, dtype=np.int32),
            positions=positions,
            cells=scratch,
            prefix=positions,
            path=scratch[:, None],
            logits=np.arange(end - start, dtype=np.int32),
        )
        return self.backend.forward(rows, pool, quality).logits


def _pools(
    backend: Backend, experts: npt.NDArray[np.int16], setting: Setting, first: int, random: np.random.Generator
) -> Iterator[tuple[int, Bool | None]]:
    """(first position, pool) of each block; one block with no pool where all experts are in it."""
    total = backend.shape.experts
    slots = max(backend.shape.experts_per_tok, round(setting.pool_fraction * total))
    if slots >= total:
        yield first, None
        return
    for start in range(first, len(experts), BLOCK):
        yield start, _pool(experts[max(0, start - WINDOW) : start], total, slots, setting.pool, random)


def _pool(
    history: npt.NDArray[np.int16], experts: int, slots: int, choice: PoolChoice, random: np.random.Generator
) -> Bool:
    """Bool [L, E] with `slots` experts per layer: the most used in `history` [T, L, A], or random ones."""
    if choice is PoolChoice.RANDOM:
        return highest(random.random((history.shape[1], experts)), slots)
    return highest(routing_counts(history, experts).astype(np.float64), slots)


def _compare(result: Agreement, target: Float32, draft: Float32) -> None:
    p, q = softmax(target), softmax(draft)
    result.positions += len(p)
    result.agreed += int((target.argmax(axis=1) == draft.argmax(axis=1)).sum())
    result.overlap_sum += float(np.minimum(p, q).sum())
