"""Rotary angles, the same numbers for every backend. Knows nothing about caches or rows."""

from __future__ import annotations

import math

import numpy as np

from elmoe.models.program import Rope, Yarn
from elmoe.quant.bitnested import Float32

ROPE_BLOCK = 4096
"""Positions whose rotary angles are computed together."""


def rope_block(rope: Rope, block: int) -> Float32:
    """Cos and sin [2, ROPE_BLOCK, head_dim/2] of the positions from ``block * ROPE_BLOCK`` on.

    Angles are FP32 products, as in transformers. Always a block of one size: a vectorised cosine need not give the
    same bits for another array length.
    """
    frequencies = _frequencies(rope)
    positions = np.arange(block * ROPE_BLOCK, (block + 1) * ROPE_BLOCK, dtype=np.float32)
    angles = positions[:, None] * frequencies
    factor = np.float32(1.0 if rope.yarn is None else rope.yarn.attention_factor)
    return np.stack([np.cos(angles), np.sin(angles)]) * factor


def _frequencies(rope: Rope) -> Float32:
    """Radians per position [head_dim/2]."""
    exponents = np.arange(0, rope.head_dim, 2, dtype=np.float64) / rope.head_dim
    plain = 1.0 / rope.theta**exponents
    if rope.yarn is None:
        return plain.astype(np.float32)
    # Dimensions that turn often keep their frequency, those that turn seldom are stretched, with a ramp in between.
    yarn = rope.yarn
    low, high = (_dimension_of(rope, yarn, turns) for turns in (yarn.beta_fast, yarn.beta_slow))
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.head_dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(rope.head_dim // 2) - low) / (high - low), 0, 1)
    return (plain / yarn.factor * ramp + plain * (1 - ramp)).astype(np.float32)


def _dimension_of(rope: Rope, yarn: Yarn, turns: float) -> float:
    """The dimension pair that turns so many times over the original context."""
    wave = yarn.original_context / (turns * 2 * math.pi)
    return rope.head_dim * math.log(wave) / (2 * math.log(rope.theta))
