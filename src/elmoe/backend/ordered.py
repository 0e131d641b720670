"""FP32 sums, softmax and attention in one fixed order, so that a row's result never depends on its neighbours.

NumPy's element-wise operations are correctly rounded per element whatever the array's shape; its reductions and
BLAS calls are not order-stable. So every FP32 sum here is a chain of element-wise additions whose association
depends on the length of the summed axis alone:

* `tree_sum` folds the upper half onto the lower one until one element is left;
* attention sums over positions in blocks of 32 (`tree_sum` inside a block, blocks in ascending order), so padding
  with zeros, which adds exact zeros, changes no bit.

Knows nothing about models.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from elmoe.backend.protocol import Int32
from elmoe.quant.bitnested import Float32

POSITION_BLOCK = 32
CHUNK_ELEMENTS = 1 << 18
"""Elements of a temporary: about what stays in a core's L2 cache."""


def tree_sum(x: Float32, axis: int = -1) -> Float32:
    """Sum along `axis` by folding halves; the order depends on the axis' length alone."""
    before: tuple[Any, ...] = (slice(None),) * (axis % x.ndim)
    length = x.shape[axis]
    while length > 1:
        half = 1 << ((length - 1).bit_length() - 1)  # largest power of two below length
        rest = length - half
        folded = x[(*before, slice(0, rest))] + x[(*before, slice(half, length))]
        x = folded if rest == half else np.concatenate([folded, x[(*before, slice(rest, half))]], axis=axis)
        length = half
    return x[(*before, 0)]


def block_sum(x: Float32, axis: int, total: Float32 | None = None) -> Float32:
    """Sum along an axis whose length is a multiple of 32: blocks by `tree_sum`, then one after the other.

    `total` carries on a sum whose blocks came before; it is updated in place and returned.
    """
    x = np.moveaxis(x, axis, 0)
    blocks = tree_sum(x.reshape(-1, POSITION_BLOCK, *x.shape[1:]), axis=1)
    if total is None:
        total = np.zeros(x.shape[1:], dtype=np.float32)
    for block in blocks:
        total += block
    return total


def rms_norm(x: Float32, weight: Float32, eps: float) -> Float32:
    """``x * weight / sqrt(mean(x**2) + eps)`` over the last axis."""
    mean = tree_sum(x * x) / np.float32(x.shape[-1])
    return x / np.sqrt(mean + np.float32(eps))[..., None] * weight


def softmax(x: Float32) -> Float32:
    """Over the last axis."""
    e = np.exp(np.ascontiguousarray(x - x.max(axis=-1, keepdims=True)))
    return e / tree_sum(e)[..., None]


def product(x: Float32, weight: Float32) -> Float32:
    """FP32 matrix product x [M, K] times weight [N, K] transposed, for the few FP32 weights (routers)."""
    step = max(1, CHUNK_ELEMENTS // weight.size)
    parts = [tree_sum(x[i : i + step, None, :] * weight) for i in range(0, len(x), step)]
    return np.concatenate(parts)


def attention(query: Float32, keys: Float32, values: Float32, prefix: Int32, path: Int32) -> Float32:
    """Attention of R rows of one sequence over its cache.

    query [R, H, d], already scaled by 1/sqrt(d); keys [H_kv, d, cells]; values [H_kv, cells, d]; prefix [R] and
    path [R, P] as in `Rows`. Returns [R, H, d]. Query head h reads key-value head ``h // (H / H_kv)``.
    """
    R, H, d = query.shape
    kv_heads = keys.shape[0]
    grouped = query.reshape(R, kv_heads, H // kv_heads, d)
    out = np.empty_like(grouped)
    # A path begins where its row's prefix ends, so rows with paths are computed together only for equal prefixes.
    together = [prefix == length for length in np.unique(prefix)] if path.shape[1] else [np.ones(R, dtype=np.bool_)]
    for member in together:
        rows, longest = np.flatnonzero(member), int(prefix[member].max())
        step = max(1, CHUNK_ELEMENTS // (H * d * max(longest, 1)))
        for first in range(0, len(rows), step):
            chunk = rows[first : first + step]
            out[chunk] = _attend(grouped[chunk], keys, values, prefix[chunk], path[chunk], longest)
    return out.reshape(R, H, d)


def _attend(query: Float32, keys: Float32, values: Float32, prefix: Int32, path: Int32, longest: int) -> Float32:
    """One chunk of `attention`; query [r, H_kv, H/H_kv, d] -> the same shape."""
    rows, kv_heads, per_kv, _ = query.shape
    width = longest + path.shape[1]
    padded = -(-width // POSITION_BLOCK) * POSITION_BLOCK
    scores = np.full((rows, kv_heads, per_kv, padded), -np.inf, dtype=np.float32)

    seen = keys[None, :, None, :, :longest]  # [1, H_kv, 1, d, longest]
    scores[..., :longest] = tree_sum(query[..., None] * seen, axis=-2)
    hidden = np.arange(longest) >= prefix[:, None]  # [r, longest]
    scores[..., :longest][np.broadcast_to(hidden[:, None, None], scores[..., :longest].shape)] = -np.inf
    if path.shape[1]:
        of_path = keys[:, :, path].transpose(2, 0, 1, 3)[:, :, None]  # [r, H_kv, 1, d, P]
        branch = tree_sum(query[..., None] * of_path, axis=-2)
        scores[..., longest:width] = np.where((path >= 0)[:, None, None], branch, np.float32(-np.inf))

    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total = block_sum(weights, axis=-1)

    # Whole blocks of the prefix are shared by all rows; the last ones end in each row's own path.
    shared = longest - longest % POSITION_BLOCK
    tail = np.zeros((rows, kv_heads, padded - shared, values.shape[2]), dtype=np.float32)
    tail[:, :, : longest - shared] = values[:, shared:longest]
    tail[:, :, longest - shared : width - shared] = values[:, path].transpose(1, 0, 2, 3)
    mixed = block_sum(weights[..., :shared, None] * values[None, :, None, :shared], axis=-2)
    mixed = block_sum(weights[..., shared:, None] * tail[:, :, None], axis=-2, total=mixed)
    return mixed / total[..., None]
