"""What products are tested on: planes at aligned addresses, and activations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from elmoe.quant.bitnested import Float32, UInt8

rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def aligned(data: npt.NDArray[np.uint8], shift: int = 0) -> UInt8:
    """A copy that begins `shift` bytes after a multiple of 64."""
    room = np.empty(data.nbytes + 128, dtype=np.uint8)
    begin = -room.ctypes.data % 64 + shift
    copy = room[begin : begin + data.nbytes]
    copy[:] = data
    return copy


def values(rng: np.random.Generator, *shape: int) -> Float32:
    """FP32 of all magnitudes that activations may have, zeros among them."""
    x = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 3, shape)).astype(np.float32)
    return np.where(rng.random(shape) < 0.1, np.float32(0), x)
