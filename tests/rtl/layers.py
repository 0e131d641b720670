"""Random layers as the PE is given them."""

from __future__ import annotations

import numpy as np

from elmoe.quant.arithmetic import quantize_activations
from elmoe.quant.bitnested import Float16, Float32, Int8, quantize


def random_layer(rows: int, outputs: int, inputs: int, seed: int) -> tuple[tuple[Int8, Float32], tuple[Int8, Float16]]:
    """Activations [rows, inputs] and weights [outputs, inputs] with their scales; magnitudes vary by group."""
    rng = np.random.default_rng(seed)
    spread = 4.0 ** rng.integers(-6, 3, size=inputs // 32).repeat(32)
    x = rng.normal(size=(rows, inputs)) * spread
    w = rng.normal(size=(outputs, inputs)) / spread[::-1]
    return quantize_activations(x.astype(np.float32)), quantize(w.astype(np.float32))
