"""The error bound of one INT8 linear layer (docs/numerics.md), and what real activations make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.backend.decoded import Decoded
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.quant.arithmetic import SMALLEST_AMAX, quantize_activations
from elmoe.quant.bitnested import GROUP, Float32
from verify.forward import forward_batch

Float64 = npt.NDArray[np.float64]
UNIT = 2.0**-24
"""Largest relative error of one FP32 operation."""


def bound(x: Float32, weights: Float64) -> Float64:
    """Largest possible |INT8 product - exact product| [M, N]; x [M, K], dequantised weights [N, K].

    ``sum_g s_g * (1/2 + 2**-15) * sum_k |w_nk|``, and the FP32 sum over the G groups:
    ``(G + 1) * u / (1 - (G + 1) * u)`` of the sum of the magnitudes that are added.
    """
    codes, scales = quantize_activations(x)
    M, G, N = len(x), x.shape[1] // GROUP, len(weights)
    by_group = np.abs(weights).reshape(N, G, GROUP).sum(axis=2)  # [N, G]
    rounding = (scales.astype(np.float64) * (0.5 + 2.0**-15) + float(SMALLEST_AMAX) * (scales == 0)) @ by_group.T
    inputs = codes.astype(np.float64).reshape(M, G, GROUP) * scales[..., None]
    terms = np.abs(np.einsum("mgk,ngk->mng", inputs, weights.reshape(N, G, GROUP)))
    steps = (G + 1) * UNIT
    return rounding + steps / (1 - steps) * terms.sum(axis=2)


@dataclass
class BoundUse:
    """Errors of all linear layers of a pass, relative to their bounds."""

    outputs: int = 0
    largest: float = 0.0
    squares: float = 0.0
    violations: int = 0

    @property
    def rms(self) -> float:
        """Root mean square of error / bound."""
        return float(np.sqrt(self.squares / self.outputs))


class CheckedBackend(ReferenceBackend):
    """INT8 arithmetic that holds every product against the exact one."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.use = BoundUse()

    def _product(self, x: Float32, weight: Decoded) -> Float32:
        y = super()._product(x, weight)
        groups, _, outputs = weight.codes.shape
        wide = weight.codes.astype(np.float64) * weight.scales[:, None, :]
        weights = wide.reshape(groups * GROUP, outputs).T
        error, limit = np.abs(y - x.astype(np.float64) @ weights.T), bound(x, weights)
        ratio = np.divide(error, limit, out=np.zeros_like(error), where=limit > 0)
        self.use.outputs += ratio.size
        self.use.largest = max(self.use.largest, float(ratio.max()))
        self.use.squares += float((ratio**2).sum())
        self.use.violations += int((error > limit).sum())
        return y


def measure(checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> BoundUse:
    """All linear layers over all rows of the texts."""
    backend = CheckedBackend(checkpoint)
    forward_batch(backend, texts)
    return backend.use
