"""INT8 activations and the batch-invariant product of the design (decision 3), in plain NumPy integers.

This is the definition that every backend and the RTL are held to: INT8 x INT8 products are summed exactly
inside a group of 32; group sums are scaled and added in FP32 in ascending group order. Written for clarity;
`backend/reference.py` computes the same bits faster, a test compares the two.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from elmoe.quant.bitnested import GROUP, Float16, Float32, Int8

SMALLEST_AMAX = np.float32(2.0**-100)
"""Activation groups whose largest magnitude is below this are zero: 127/amax would leave the FP32 range."""


def quantize_activations(x: Float32) -> tuple[Int8, Float32]:
    """Activations [M, K] float32 -> codes int8 [M, K] in [-127, 127], scales float32 [M, K/32].

    Per group of 32: ``scale = amax / 127``, ``code = round_half_even(x * (127 / amax))``, all in FP32.
    """
    groups = (x.shape[0], x.shape[1] // GROUP, GROUP)
    blocks = np.ascontiguousarray(x, dtype=np.float32).reshape(groups)
    amax = np.abs(blocks).max(axis=2)
    live = amax >= SMALLEST_AMAX
    inverse = np.divide(np.float32(127.0), amax, out=np.zeros_like(amax), where=live)
    codes = np.rint(blocks * inverse[..., None])
    scales = np.where(live, amax / np.float32(127.0), np.float32(0))
    return codes.reshape(x.shape).astype(np.int8), scales


def group_sums(x_codes: Int8, w_codes: Int8) -> npt.NDArray[np.int32]:
    """Exact sums of products per group: x [M, K] int8, w [N, K] int8 -> int32 [K/32, M, N]."""
    x = x_codes.reshape(x_codes.shape[0], x_codes.shape[1] // GROUP, GROUP).astype(np.int32)
    w = w_codes.reshape(w_codes.shape[0], w_codes.shape[1] // GROUP, GROUP).astype(np.int32)
    sums: npt.NDArray[np.int32] = np.einsum("mgk,ngk->gmn", x, w, dtype=np.int32)
    return sums


def linear(x_codes: Int8, x_scales: Float32, w_codes: Int8, w_scales: Float16 | Float32) -> Float32:
    """Y [M, N] float32 = x [M, K] times w [N, K] transposed; groups added in ascending order.

    MXFP4 weights enter as `mxfp4.doubled` codes and `mxfp4.halved_scales`.
    """
    sums = group_sums(x_codes, w_codes)
    wide = w_scales.astype(np.float32)
    scaled = [sums[g].astype(np.float32) * (wide[None, :, g] * x_scales[:, g, None]) for g in range(len(sums))]
    y: Float32 = scaled[0]
    for term in scaled[1:]:
        y = y + term
    return y
