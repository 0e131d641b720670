"""The choice of experts, in the one order that every backend has. Knows nothing about weights or pools' policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.backend import ordered
from elmoe.backend.protocol import Bool
from elmoe.models.program import GroupScore, Router, Scoring
from elmoe.quant.bitnested import Float32

SMALLEST_TOTAL = np.float32(1e-20)
"""Added to a sum of weights before it divides them (DeepSeek-V3, GLM); nothing beside the sums of other families."""

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Choice:
    """What R rows take; A experts per token."""

    own: Indices
    """[R, A] the model's own choice, best first."""
    used: Indices
    """[R, count] what is computed."""
    weights: Float32
    """[R, count]."""


def choose(router: Router, logits: Float32, correction: Float32 | None, allowed: Bool | None, count: int) -> Choice:
    """Route rows by their router logits [R, E], bias included.

    correction [E] is the vector that `Router.correction` names. allowed [E]: the pool that the `count` experts used
    are taken from; None: they are the first of the model's own choice. Ties go to the lower index.
    """
    scores = ordered.softmax(logits) if router.scoring is Scoring.SOFTMAX else ordered.sigmoid(logits)
    ranks = scores if correction is None else scores + correction
    kept = _in_kept_groups(router, ranks)
    own = _best_of(ranks, ~kept, router.experts_per_tok)
    # A pool may hold too few experts of the kept groups: those of the others come after them.
    used = own[:, :count] if allowed is None else _best_of(ranks, np.where(allowed, ~kept, 2), count)
    weights = np.take_along_axis(scores, used, axis=1)
    if router.renormalize:
        weights = weights / (in_order(weights, axis=1) + SMALLEST_TOTAL)[:, None]
    return Choice(own, used, weights * np.float32(router.scale))


def best(scores: Float32, count: int) -> Indices:
    """[R, E] -> the `count` best of each row, best first, ties to the lower index."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def in_order(x: Float32, axis: int) -> Float32:
    """Sum along axis 0 or 1, ascending, one after the other."""
    parts = x if axis == 0 else x.swapaxes(0, 1)
    total: Float32 = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _best_of(ranks: Float32, tier: npt.NDArray[np.integer] | Bool, count: int) -> Indices:
    """The best of each row, those of a lower tier before all of a higher one."""
    return np.lexsort((-ranks, tier), axis=1)[:, :count]


def _in_kept_groups(router: Router, ranks: Float32) -> Bool:
    """[R, E]: whether an expert's group is among the best ones."""
    if router.groups_kept == router.groups:
        return np.ones(ranks.shape, dtype=np.bool_)
    by_group = ranks.reshape(len(ranks), router.groups, -1)
    top = -np.sort(-by_group, axis=2)
    score = top[..., 0] if router.group_score is GroupScore.BEST else top[..., 0] + top[..., 1]
    kept = np.zeros(score.shape, dtype=np.bool_)
    np.put_along_axis(kept, best(score, router.groups_kept), True, axis=1)
    return np.repeat(kept, router.experts // router.groups, axis=1)
