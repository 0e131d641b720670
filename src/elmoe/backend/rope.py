"""Rotary angles, the same numbers for every backend. Knows nothing about caches or rows."""

from __future__ import annotations

import numpy as np

from elmoe.models.program import Rope
from elmoe.quant.bitnested import Float32

ROPE_BLOCK = 4096
"""Positions whose rotary angles are computed together."""


def rope_block(rope: Rope, block: int) -> Float32:
    """Cos and sin [2, ROPE_BLOCK, head_dim/2] of the positions from ``block * ROPE_BLOCK`` on.

    Angles are FP32 products, as in transformers. Always a block of one size: a vectorised cosine need not give the
    same bits for another array length.
    """
    exponents = np.arange(0, rope.head_dim, 2, dtype=np.float64) / rope.head_dim
    frequencies = (1.0 / rope.theta**exponents).astype(np.float32)
    positions = np.arange(block * ROPE_BLOCK, (block + 1) * ROPE_BLOCK, dtype=np.float32)
    angles = positions[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)])
