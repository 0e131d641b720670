"""How far INT8 activations move the logits, against what rounding errors of the same size would do by chance.

Rounding to INT8 in groups of 32 puts an error of at most s/2 into every linear input, where s is the group's scale;
rounding keys and values to FP16 puts one of at most half a unit in the last place into the cache. `NoisyBackend`
computes in FP32 and adds *random* errors of these sizes instead. If INT8 does nothing but round, its logits are as far
from those of FP32 as one such draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.backend.decoded import Activations, Decoded
from elmoe.backend.protocol import ForwardResult
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.quant.arithmetic import quantize_activations
from elmoe.quant.bitnested import GROUP, Float32
from verify.forward import forward_batch

FP16_MANTISSA_BITS = 10
FP16_SMALLEST_EXPONENT = -14


class Noise(Enum):
    """Kinds of random errors of linear inputs."""

    UNIFORM = "uniform"
    """Uniform in ±s/2, variance s**2/12. Slightly too much: a group's largest element is exact in INT8, and elements
    below s/2 err by their own magnitude only."""
    SIGNS = "signs"
    """INT8's own rounding errors with random signs."""


class NoisyBackend(ReferenceBackend):
    """FP32 arithmetic; every linear input, key and value gets an independent uniform error of a rounding's size."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, Activations.FP32)
        self.draw(Noise.UNIFORM, 0)

    def draw(self, noise: Noise, seed: int) -> None:
        """Use other errors from now on."""
        self._noise, self._seed = noise, seed
        self._drawn: dict[bytes, Float32] = {}

    def _product(self, x: Float32, weight: Decoded) -> Float32:
        return super()._product(np.stack([self._disturbed(row) for row in x]), weight)

    def _stored(self, x: Float32) -> Float32:
        _, exponent = np.frexp(x)  # |x| in [2**(exponent-1), 2**exponent)
        unit = np.ldexp(np.float32(1), np.maximum(exponent - 1, FP16_SMALLEST_EXPONENT) - FP16_MANTISSA_BITS)
        return x + unit * self._uniform(x.tobytes(), x.shape)

    def _disturbed(self, row: Float32) -> Float32:
        """The same input row has the same error wherever it goes: to all experts of a token, for instance."""
        key = row.tobytes()
        if key not in self._drawn:
            codes, scales = quantize_activations(row[None])
            uniform, wide = self._uniform(key, row.shape), np.repeat(scales[0], GROUP)
            own = codes[0].astype(np.float32) * wide - row
            self._drawn[key] = row + (wide * uniform if self._noise is Noise.UNIFORM else own * np.sign(uniform))
        return self._drawn[key]

    def _uniform(self, key: bytes, shape: tuple[int, ...]) -> Float32:
        """In [-0.5, 0.5), from the seed and the values that are disturbed."""
        words = np.frombuffer(key, dtype=np.uint32)
        entropy = [self._seed, int(words.sum(dtype=np.uint64)), int(np.bitwise_xor.reduce(words))]
        return np.random.default_rng(entropy).random(shape, dtype=np.float32) - np.float32(0.5)


@dataclass(frozen=True)
class Distance:
    """How far one computation of some rows is from that in FP32."""

    typical: float
    """Median over the rows of the RMS difference of a row's logits; rows that a router sent elsewhere left out."""
    largest: float
    """Largest difference of a logit in these rows."""
    flipped_rows: int
    """Rows that at least one router sent to another set of experts."""
    flipped_decisions: int
    """Row and layer pairs of this kind."""
    argmax_changed: int
    """Rows whose best token is another, among all rows."""


@dataclass(frozen=True)
class NoiseStudy:
    """INT8 and repeated random errors, both against FP32."""

    rows: int
    decisions: int
    int8: Distance
    uniform: list[Distance]
    signs: list[Distance]


def study(checkpoint: Checkpoint, texts: Sequence[Sequence[int]], repetitions: int) -> NoiseStudy:
    """Compare all rows of the texts."""
    exact = forward_batch(ReferenceBackend(checkpoint, Activations.FP32), texts)
    int8 = distance(forward_batch(ReferenceBackend(checkpoint), texts), exact)
    noisy = NoisyBackend(checkpoint)
    distances: dict[Noise, list[Distance]] = {noise: [] for noise in Noise}
    for noise, found in distances.items():
        for seed in range(repetitions):
            noisy.draw(noise, seed)
            found.append(distance(forward_batch(noisy, texts), exact))
    rows, blocks, _ = exact.experts.shape
    return NoiseStudy(rows, rows * blocks, int8, distances[Noise.UNIFORM], distances[Noise.SIGNS])


def distance(result: ForwardResult, exact: ForwardResult) -> Distance:
    """Of one computation from the exact one."""
    flipped = flips(result.experts, exact.experts)
    same = ~flipped.any(axis=1)
    error = (result.logits - exact.logits)[same]
    return Distance(
        typical=typical_difference(error),
        largest=float(np.abs(error).max()),
        flipped_rows=int((~same).sum()),
        flipped_decisions=int(flipped.sum()),
        argmax_changed=int((result.logits.argmax(axis=1) != exact.logits.argmax(axis=1)).sum()),
    )


def typical_difference(error: Float32) -> float:
    """Median over rows of the root mean square: rows after one that was routed otherwise do not distort it."""
    return float(np.median(np.sqrt(np.mean(error.astype(np.float64) ** 2, axis=1))))


def band(values: Sequence[float]) -> tuple[float, float]:
    """Four standard deviations around the mean."""
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    return mean - 4 * spread, mean + 4 * spread


def flips(ours: npt.NDArray[Any], exact: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """[R, L]: whether the set of experts differs; their order does not matter."""
    changed: npt.NDArray[np.bool_] = (np.sort(ours, axis=2) != np.sort(exact, axis=2)).any(axis=2)
    return changed
