"""FP32 sums, exponentials, softmax and attention in one fixed order: a row's result never depends on its neighbours.

NumPy's element-wise operations are correctly rounded per element whatever the array's shape; its reductions, BLAS calls
and transcendental functions are neither order-stable nor the same on every machine. So everything here is a chain of
element-wise operations, in the order that the kernels of `native/` have, which give the same bits:

* `lane_sum`: element i is added to lane ``i % 32`` in ascending order; the lanes are folded in halves.
* `eight_sum` (over dimensions and positions): eight elements are folded in halves; blocks of eight are added in order.
* `exponential`: a polynomial.
* softmax over positions is online: rescaled after every 128 positions.

Padding with zeros adds exact zeros and changes no bit. Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.backend.protocol import Int32
from elmoe.quant.bitnested import Float32

LANES = 32
BLOCK = 8
SPAN = 128
"""Positions between two rescalings of the online softmax."""
CHUNK_ELEMENTS = 1 << 18
"""Elements of a temporary: about what stays in a core's L2 cache."""


def fold(x: Float32, axis: int) -> Float32:
    """Sum along `axis`, whose length is a power of two: the upper half onto the lower one until one is left."""
    before: tuple[Any, ...] = (slice(None),) * (axis % x.ndim)
    while (half := x.shape[axis] // 2) > 0:
        x = x[(*before, slice(0, half))] + x[(*before, slice(half, None))]
    return x[(*before, 0)]


def lane_sum(x: Float32) -> Float32:
    """Sum over the last axis in 32 lanes."""
    blocks = _blocks(x, -1, LANES)
    lanes = blocks[..., 0, :]
    for i in range(1, blocks.shape[-2]):
        lanes = lanes + blocks[..., i, :]
    return fold(lanes, -1)


def eight_sum(x: Float32, axis: int, total: Float32 | None = None) -> Float32:
    """Sum along an axis in blocks of 8. `total` carries on a sum whose blocks came before."""
    axis %= x.ndim
    blocks = np.moveaxis(fold(_blocks(x, axis, BLOCK), axis + 1), axis, 0)
    for block in blocks:
        total = block if total is None else total + block
    return np.zeros(blocks.shape[1:], dtype=np.float32) if total is None else total


def _blocks(x: Float32, axis: int, size: int) -> Float32:
    """Split an axis in two, [blocks, size], padded with zeros."""
    axis %= x.ndim
    length = x.shape[axis]
    if length % size:
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, -length % size)
        x = np.pad(x, padding)
    return x.reshape(*x.shape[:axis], -(-length // size), size, *x.shape[axis + 1 :])


def exponential(x: Float32) -> Float32:
    """exp(x) for x <= 88, below 2 ulp from exact: range reduction to |r| <= ln(2)/2 and a polynomial (Cephes expf).

    Below -87.3, where the result would not be a normal number, exactly 0; above 88, exp(88).
    """
    f = np.float32
    inside = np.minimum(np.maximum(x, f(-87.3)), f(88.0))
    n = np.rint(inside * f(1.44269504))
    r = (inside - n * f(0.693359375)) + n * f(2.12194440e-4)
    p = np.full_like(r, f(1.9875691500e-4))
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f(coefficient)
    p = p * (r * r) + (r + f(1.0))
    return np.where(x >= f(-87.3), np.ldexp(p, n.astype(np.int32)), f(0.0))


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    """``x * weight / sqrt(mean(x**2) + eps)`` over the last axis."""
    mean = lane_sum(x * x) / np.float32(x.shape[-1])
    return x / np.sqrt(mean + np.float32(eps))[..., None] * weight


def softmax(x: Float32) -> Float32:
    """Over the last axis."""
    e = exponential(x - x.max(axis=-1, keepdims=True))
    return e / lane_sum(e)[..., None]


def sigmoid(x: Float32) -> Float32:
    """``1 / (1 + exp(-x))``."""
    return np.float32(1) / (np.float32(1) + exponential(-x))


def log_total(x: Float32) -> Float32:
    """``log(sum(exp(x)))`` over the last axis."""
    top = x.max(axis=-1)
    return top + np.log(lane_sum(exponential(x - top[..., None])))


def product(x: Float32, weight: Float32) -> Float32:
    """FP32 matrix product x [M, K] times weight [N, K] transposed, for the few FP32 weights (routers)."""
    step = max(1, CHUNK_ELEMENTS // weight.size)
    parts = [lane_sum(x[i : i + step, None, :] * weight) for i in range(0, len(x), step)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Sees:
    """Which cells the R rows of one sequence attend to, in the order of positions."""

    prefix: Int32
    """[R] as in `Rows`."""
    path: Int32
    """[R, P] as in `Rows`."""
    first: Int32
    """[R] first visible position: above 0 where a sliding window has left some behind."""

    def of(self, rows: npt.NDArray[np.intp]) -> Sees:
        """Some of the rows."""
        return Sees(self.prefix[rows], self.path[rows], self.first[rows])


def attention(query: Float32, keys: Float32, values: Float32, sees: Sees, sinks: Float32 | None = None) -> Float32:
    """Attention of R rows of one sequence over its cache.

    query [R, H, d], already scaled; keys [H_kv, d, cells]; values [H_kv, cells, v]; sinks [H]: a score per head that
    has no value. Returns [R, H, v]. Query head h reads key-value head ``h // (H / H_kv)``.
    """
    R, H, d = query.shape
    kv_heads, width = keys.shape[0], values.shape[-1]
    grouped = query.reshape(R, kv_heads, H // kv_heads, d)
    out = np.empty((R, kv_heads, H // kv_heads, width), dtype=np.float32)
    by_head = None if sinks is None else sinks.reshape(kv_heads, -1)
    # A path begins where its row's prefix ends, so rows with paths are computed together only for equal prefixes.
    has_path, prefix = bool(sees.path.shape[1]), sees.prefix
    together = [prefix == length for length in np.unique(prefix)] if has_path else [np.ones(R, dtype=np.bool_)]
    for member in together:
        rows, longest = np.flatnonzero(member), int(prefix[member].max())
        step = max(1, CHUNK_ELEMENTS // (H * d * max(longest, 1)))
        for begin in range(0, len(rows), step):
            chunk = rows[begin : begin + step]
            mine = sees.of(chunk)
            scores = _scores(grouped[chunk], keys, mine, longest)
            out[chunk] = _mix(scores, values, mine.path, longest, by_head)
    return out.reshape(R, H, width)


def _scores(query: Float32, keys: Float32, sees: Sees, longest: int) -> Float32:
    """Scores [r, H_kv, H/H_kv, longest + P] of a chunk, -inf where a row does not look; query [r, H_kv, H/H_kv, d]."""
    seen = keys[None, :, None, :, :longest]  # [1, H_kv, 1, d, longest]
    scores = eight_sum(query[..., None] * seen, axis=-2)
    positions = np.arange(longest)
    hidden = (positions >= sees.prefix[:, None]) | (positions < sees.first[:, None])  # [r, longest]
    scores[np.broadcast_to(hidden[:, None, None], scores.shape)] = -np.inf
    if not sees.path.shape[1]:
        return scores
    of_path = keys[:, :, sees.path].transpose(2, 0, 1, 3)[:, :, None]  # [r, H_kv, 1, d, P]
    branch = eight_sum(query[..., None] * of_path, axis=-2)
    further = longest + np.arange(sees.path.shape[1])
    shown = (sees.path >= 0) & (further >= sees.first[:, None])
    branch = np.where(shown[:, None, None], branch, np.float32(-np.inf))
    return np.concatenate([scores, branch], axis=-1)


def _mix(scores: Float32, values: Float32, path: Int32, longest: int, sinks: Float32 | None) -> Float32:
    """Online softmax of `_scores` over the values -> [r, H_kv, H/H_kv, v]; sinks [H_kv, H/H_kv]."""
    rows, width = len(scores), scores.shape[-1]
    # Whole blocks of the prefix are shared by all rows; the last ones end in each row's own path.
    shared = longest - longest % BLOCK
    tail = np.concatenate(
        [
            np.broadcast_to(values[None, :, shared:longest], (rows, *values[:, shared:longest].shape)),
            values[:, path].transpose(1, 0, 2, 3),
        ],
        axis=2,
    )  # [r, H_kv, width - shared, v]
    top = np.full(scores.shape[:-1], -np.inf, dtype=np.float32)
    total = np.zeros_like(top)
    if sinks is not None:  # a position with this score whose value is zero, before all others
        top[:], total[:] = sinks, 1.0
    mixed = np.zeros((*scores.shape[:-1], values.shape[-1]), dtype=np.float32)
    for first in range(0, width, SPAN):
        last = min(first + SPAN, width)
        before, top = top, np.maximum(top, scores[..., first:last].max(axis=-1))
        finite_top = np.where(np.isneginf(top), np.float32(0), top)  # spans that a window hides whole
        factor = exponential(before - finite_top)
        weights = exponential(scores[..., first:last] - finite_top[..., None])
        total = total * factor + lane_sum(weights)
        mixed = mixed * factor[..., None]
        own = min(max(shared - first, 0), last - first)  # positions of this span whose values are shared
        if own:
            part = weights[..., :own, None] * values[None, :, None, first : first + own]
            mixed = eight_sum(part, axis=-2, total=mixed)
        if own < last - first:
            part = weights[..., own:, None] * tail[:, :, None, first + own - shared : last - shared]
            mixed = eight_sum(part, axis=-2, total=mixed)
    return np.divide(mixed, total[..., None], dtype=np.float32)
