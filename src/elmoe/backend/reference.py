"""The oracle: every backend equals this one, exactly in integers and within a stated tolerance in floats.

NumPy only. Weights are decoded to FP32-held integer codes at first use (4 bytes of memory per weight and quality), so
it is meant for small models. INT8 products are summed by FP32 matrix products over groups of 32, which is exact
(|sum| <= 32 * 127**2 < 2**24) in whatever order BLAS takes; everything else is in the fixed order of
`backend/ordered.py`. `quant/arithmetic.py` defines the same product in integers.

Knows nothing about trees, pools or sequences beyond what a `Rows` says.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from elmoe.backend import ordered
from elmoe.backend.decoded import TARGET, Activations, gate_and_up
from elmoe.backend.protocol import BestLogits, Bool, DraftQuality, ForwardResult, Int32, Rows
from elmoe.backend.reference_attention import AttentionLayers
from elmoe.backend.routing import best, choose, in_order
from elmoe.backend.tiers import Keep, Tiers
from elmoe.backend.traffic import count_traffic
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import CheckpointError
from elmoe.models.footprint import footprint
from elmoe.models.program import GatedMlp, Linear, MixtureOfExperts
from elmoe.quant.bitnested import Float32


class ReferenceBackend(AttentionLayers):
    """See `elmoe.backend.protocol.Backend`."""

    def __init__(self, checkpoint: Checkpoint, activations: Activations = Activations.INT8) -> None:
        super().__init__(checkpoint, activations)
        self.shape = checkpoint.shape
        self.footprint = footprint(checkpoint.shape, checkpoint.program)
        self.tiers: Tiers | None = None

    def forward(
        self, rows: Rows, pool: Bool | None = None, draft: DraftQuality | None = None, keep: Keep | None = None
    ) -> ForwardResult:
        """Run the model over `rows`; see `Backend.forward`."""
        del keep  # all weights are in memory
        quality = draft or TARGET
        # A lookup reads one row, not the matrix: the draft uses the same embedding as the target.
        x = self._embed(rows.tokens)
        angles = {rope: self._angles(rope, rows.positions) for rope in self._ropes}
        scale = np.float32(self.program.residual_scale)
        blocks = self.program.moe_blocks
        chosen: list[npt.NDArray[np.int16]] = []
        read = np.zeros((len(blocks), self.shape.experts), dtype=np.bool_)
        for index, layer in enumerate(self.program.layers):
            spec = layer.attention
            hidden = self._norm(x, layer.attention_norm)
            x = x + self._attention(index, spec, hidden, rows, quality, angles[spec.rope]) * scale
            hidden = self._norm(x, layer.ffn_norm)
            if isinstance(layer.ffn, MixtureOfExperts):
                allowed = pool[layer.ffn.layer] if pool is not None and draft is not None else None
                y, own = self._moe(layer.ffn, hidden, allowed, quality, read)
                chosen.append(own)
            else:
                y = self._mlp(layer.ffn, hidden, quality) * scale
            x = x + y
        logits = self._head(x[rows.logits], quality)
        experts = np.stack(chosen, axis=1) if chosen else np.zeros((rows.count, 0, 0), dtype=np.int16)
        traffic = count_traffic(self.footprint, rows, read, pool, draft)
        if rows.best:
            return ForwardResult(logits[:0], experts, read, traffic, _best_logits(logits, rows.best))
        return ForwardResult(logits, experts, read, traffic)

    def _embed(self, tokens: Int32) -> Float32:
        table, scale = self._weights.linear(self.program.embedding, TARGET), np.float32(self.program.embedding_scale)
        if self.activations is Activations.FP32:
            return np.ascontiguousarray(table.codes[0, :, tokens]) * scale
        wide = table.codes[:, :, tokens] * table.scales[:, None, tokens]  # [G, 32, R]
        return np.ascontiguousarray(wide.reshape(-1, len(tokens)).T) * scale

    def _head(self, x: Float32, quality: DraftQuality) -> Float32:
        """Logits [Q, V]; CheckpointError where they, or the residuals, are not finite."""
        if not len(x):
            return np.empty((0, self.shape.vocab), dtype=np.float32)
        # A residual that has become infinite or not a number would be quantised to zeros.
        with np.errstate(over="ignore", invalid="ignore"):
            finite = bool(np.isfinite(ordered.lane_sum(x * x)).all())
        logits = self._linear(self._norm(x, self.program.final_norm), self.program.head, quality)
        logits = logits / np.float32(self.program.logit_divisor)
        if not finite or not np.isfinite(logits).all():
            raise CheckpointError(f"{self.checkpoint.path.name}: logits are not finite; the weights are damaged")
        return logits

    def _mlp(self, spec: GatedMlp, x: Float32, quality: DraftQuality) -> Float32:
        return self._linear(_gated(self._linear(x, spec.gate_up, quality), spec), spec.down, quality)

    def _moe(
        self, spec: MixtureOfExperts, x: Float32, allowed: Bool | None, quality: DraftQuality, read: Bool
    ) -> tuple[Float32, npt.NDArray[np.int16]]:
        """Output [R, D], residual scale included, and the router's own choice [R, A].

        Marks the experts used in ``read[layer]``.
        """
        router, scale = spec.router, np.float32(self.program.residual_scale)
        logits = ordered.product(x, self._weights.vector(router.weight))
        if router.bias is not None:
            logits = logits + self._weights.vector(router.bias)
        correction = None if router.correction is None else self._weights.vector(router.correction)
        count = min(quality.experts_per_tok or router.experts_per_tok, router.experts_per_tok)
        choice = choose(router, logits, correction, allowed, count)

        flat = choice.used.reshape(-1)
        out = np.empty((len(flat), x.shape[1]), dtype=np.float32)  # [R*A, D]
        for expert in np.unique(flat):
            slots = np.flatnonzero(flat == expert)
            gate_up, down = self._weights.expert(spec, int(expert), quality)
            inner = self._biased(self._product(x[slots // count], gate_up), spec.expert.gate_up, expert)
            out[slots] = self._biased(self._product(_gated(inner, spec.expert), down), spec.expert.down, expert)
            read[spec.layer, expert] = True
        weights = choice.weights * scale
        total = in_order(out.reshape(len(x), count, -1) * weights[:, :, None], axis=1)
        if spec.shared is not None:
            total = total + self._mlp(spec.shared, x, quality) * (self._shared_weight(spec, x) * scale)
        return total, choice.own.astype(np.int16)

    def _biased(self, y: Float32, linear: Linear, expert: np.intp) -> Float32:
        """An expert's output with its own bias."""
        return y if linear.bias is None else y + self._weights.vector(linear.bias)[expert]

    def _shared_weight(self, spec: MixtureOfExperts, x: Float32) -> Float32:
        """[R, 1] or [1, 1]: what the shared experts' output is multiplied by."""
        if spec.shared_gate is None:
            return np.ones((1, 1), dtype=np.float32)
        return ordered.sigmoid(ordered.product(x, self._weights.vector(spec.shared_gate)[None]))


def _gated(gate_up: Float32, spec: GatedMlp) -> Float32:
    """silu(gate) * up, or what takes its place."""
    gate, up = gate_and_up(gate_up, spec)
    one = np.float32(1)
    if spec.clamped is None:
        return gate / (one + ordered.exponential(-gate)) * up
    alpha, limit = np.float32(spec.clamped.alpha), np.float32(spec.clamped.limit)
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate / (one + ordered.exponential(-(gate * alpha))) * (up + one)


def _best_logits(logits: Float32, count: int) -> BestLogits:
    tokens = best(logits, count)
    return BestLogits(tokens.astype(np.int32), np.take_along_axis(logits, tokens, axis=1), ordered.log_total(logits))
