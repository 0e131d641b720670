"""Matrix products and norms of the reference backend over a checkpoint's weights. Knows nothing about layers."""

from __future__ import annotations

import numpy as np

from elmoe.backend import ordered
from elmoe.backend.decoded import Activations, Decoded, DecodedWeights
from elmoe.backend.protocol import DraftQuality
from elmoe.backend.routing import in_order
from elmoe.checkpoint.folder import Checkpoint
from elmoe.models.program import Linear, RmsNorm
from elmoe.quant.arithmetic import quantize_activations
from elmoe.quant.bitnested import GROUP, Float32

PRODUCT_ELEMENTS = 1 << 22
"""Group sums held at once by a matrix product: 16 MB, whatever the vocabulary and the number of rows."""


class Products:
    """What attention and feed-forward blocks are made of."""

    def __init__(self, checkpoint: Checkpoint, activations: Activations) -> None:
        self.checkpoint = checkpoint
        self.activations = activations
        self._weights = DecodedWeights(checkpoint, activations)

    def _norm(self, x: Float32, norm: RmsNorm) -> Float32:
        return ordered.rms_norm(x, self._weights.vector(norm.name), norm.eps)

    def _linear(self, x: Float32, linear: Linear, quality: DraftQuality) -> Float32:
        y = self._product(x, self._weights.linear(linear, quality))
        return y if linear.bias is None else y + self._weights.vector(linear.bias)

    def _product(self, x: Float32, weight: Decoded) -> Float32:
        """X [M, K] float32 -> [M, N]; groups are added in ascending order, see `quant.arithmetic.linear`."""
        if self.activations is Activations.FP32:
            return np.asarray(x @ weight.codes[0])
        codes, scales = quantize_activations(x)
        grouped = codes.astype(np.float32).reshape(len(x), -1, GROUP).transpose(1, 0, 2)  # [G, M, 32]
        step = max(1, PRODUCT_ELEMENTS // weight.scales.size)
        parts = []
        for first in range(0, len(x), step):
            part = slice(first, first + step)
            sums = np.matmul(np.ascontiguousarray(grouped[:, part]), weight.codes)  # [G, m, N], exact
            sums *= weight.scales[:, None, :] * scales.T[:, part, None]
            parts.append(in_order(sums, axis=0))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
