"""The oracle: every backend equals this one, exactly in integers and within a stated tolerance in floats.

NumPy only. Weights are decoded to FP32-held integer codes at first use (4 bytes of memory per weight and quality), so
it is meant for small models. INT8 products are summed by FP32 matrix products over groups of 32, which is exact
(|sum| <= 32 * 127**2 < 2**24) in whatever order BLAS takes; everything else is in the fixed order of
`backend/ordered.py`. `quant/arithmetic.py` defines the same product in integers.

Knows nothing about trees, pools or sequences beyond what a `Rows` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from elmoe.backend import ordered
from elmoe.backend.decoded import TARGET, Activations, Decoded, DecodedWeights, gate_and_up
from elmoe.backend.protocol import BestLogits, Bool, DraftQuality, ForwardResult, Int32, Rows
from elmoe.backend.rope import ROPE_BLOCK, rope_block
from elmoe.backend.traffic import count_traffic
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import CheckpointError
from elmoe.models.footprint import footprint
from elmoe.models.program import GatedMlp, GroupedQueryAttention, Linear, MixtureOfExperts, RmsNorm, Rope
from elmoe.quant.arithmetic import quantize_activations
from elmoe.quant.bitnested import GROUP, Float32

PRODUCT_ELEMENTS = 1 << 22
"""Group sums held at once by a matrix product: 16 MB, whatever the vocabulary and the number of rows."""

FP16_MAX = np.float32(65504.0)


@dataclass
class KvCache:
    """Keys and values of one sequence; FP16 values held in FP32."""

    keys: Float32
    """[layers, H_kv, d, cells]."""
    values: Float32
    """[layers, H_kv, cells, d]."""


class ReferenceBackend:
    """See `elmoe.backend.protocol.Backend`."""

    def __init__(self, checkpoint: Checkpoint, activations: Activations = Activations.INT8) -> None:
        self.checkpoint = checkpoint
        self.program = checkpoint.program
        self.shape = checkpoint.shape
        self.footprint = footprint(checkpoint.shape, checkpoint.program)
        self.activations = activations
        self._weights = DecodedWeights(checkpoint, activations)
        self._kv: dict[int, KvCache] = {}
        self._rope_blocks: dict[tuple[Rope, int], Float32] = {}
        self._ropes = {layer.attention.rope for layer in self.program.layers}

    # --- KV cache -------------------------------------------------------------------------------------------------

    def allocate(self, sequence: int, cells: int) -> None:
        """Give `sequence` a KV cache of `cells` cells."""
        dims = (self.shape.layers, self.shape.kv_heads)
        self._kv[sequence] = KvCache(
            keys=np.zeros((*dims, self.shape.head_dim, cells), dtype=np.float32),
            values=np.zeros((*dims, cells, self.shape.head_dim), dtype=np.float32),
        )

    def release(self, sequence: int) -> None:
        """Drop the KV cache of `sequence`."""
        self._kv.pop(sequence, None)

    def move(self, sequence: int, source: Int32, destination: Int32) -> None:
        """Copy KV cells ``source[i] -> destination[i]``, as if all at once."""
        cache = self._kv[sequence]
        cache.keys[:, :, :, destination] = cache.keys[:, :, :, source]
        cache.values[:, :, destination] = cache.values[:, :, source]

    # --- forward pass ---------------------------------------------------------------------------------------------

    def forward(self, rows: Rows, pool: Bool | None = None, draft: DraftQuality | None = None) -> ForwardResult:
        """Run the model over `rows`; see `Backend.forward`."""
        quality = draft or TARGET
        # A lookup reads one row, not the matrix: the draft uses the same embedding as the target.
        x = self._embed(rows.tokens)
        angles = {rope: self._angles(rope, rows.positions) for rope in self._ropes}
        blocks = self.program.moe_blocks
        chosen: list[npt.NDArray[np.int16]] = []
        read = np.zeros((len(blocks), self.shape.experts), dtype=np.bool_)
        for index, layer in enumerate(self.program.layers):
            spec = layer.attention
            x = x + self._attention(index, spec, self._norm(x, layer.attention_norm), rows, quality, angles[spec.rope])
            hidden = self._norm(x, layer.ffn_norm)
            if isinstance(layer.ffn, MixtureOfExperts):
                allowed = pool[layer.ffn.layer] if pool is not None and draft is not None else None
                y, own = self._moe(layer.ffn, hidden, allowed, quality, read)
                chosen.append(own)
            else:
                y = self._mlp(layer.ffn, hidden, quality)
            x = x + y
        logits, finite = np.empty((0, self.shape.vocab), dtype=np.float32), True
        if len(rows.logits):
            last = x[rows.logits]
            # A residual that has become infinite or not a number would be quantised to zeros.
            with np.errstate(over="ignore", invalid="ignore"):
                finite = bool(np.isfinite(ordered.lane_sum(last * last)).all())
            logits = self._linear(self._norm(last, self.program.final_norm), self.program.head, quality)
        if not finite or not np.isfinite(logits).all():
            raise CheckpointError(f"{self.checkpoint.path.name}: logits are not finite; the weights are damaged")
        experts = np.stack(chosen, axis=1) if chosen else np.zeros((rows.count, 0, 0), dtype=np.int16)
        traffic = count_traffic(self.footprint, rows, read, pool, draft)
        if rows.best:
            return ForwardResult(logits[:0], experts, read, traffic, _best_logits(logits, rows.best))
        return ForwardResult(logits, experts, read, traffic)

    def _embed(self, tokens: Int32) -> Float32:
        table = self._weights.linear(self.program.embedding, TARGET)
        if self.activations is Activations.FP32:
            return np.ascontiguousarray(table.codes[0, :, tokens])
        wide = table.codes[:, :, tokens] * table.scales[:, None, tokens]  # [G, 32, R]
        return np.ascontiguousarray(wide.reshape(-1, len(tokens)).T)

    def _norm(self, x: Float32, norm: RmsNorm) -> Float32:
        return ordered.rms_norm(x, self._weights.vector(norm.name), norm.eps)

    def _attention(
        self,
        layer: int,
        spec: GroupedQueryAttention,
        x: Float32,
        rows: Rows,
        quality: DraftQuality,
        angles: Float32,
    ) -> Float32:
        R, d, heads, kv_heads = rows.count, spec.head_dim, spec.heads, spec.kv_heads
        qkv = self._linear(x, spec.qkv, quality).reshape(R, heads + 2 * kv_heads, d)
        query, key, value = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
        if spec.query_norm is not None:
            query = self._norm(query, spec.query_norm)
        if spec.key_norm is not None:
            key = self._norm(key, spec.key_norm)
        query = _rotate(query, angles) * np.float32(d**-0.5)
        key = _rotate(key, angles)
        mixed = np.empty((R, heads, d), dtype=np.float32)
        for sequence, first, last in _runs(rows.sequences):
            cache = self._kv[sequence]
            cells = rows.cells[first:last]
            cache.keys[layer][:, :, cells] = self._stored(key[first:last]).transpose(1, 2, 0)
            cache.values[layer][:, cells] = self._stored(value[first:last]).transpose(1, 0, 2)
            mixed[first:last] = ordered.attention(
                query[first:last],
                cache.keys[layer],
                cache.values[layer],
                rows.prefix[first:last],
                rows.path[first:last],
            )
        return self._linear(mixed.reshape(R, heads * d), spec.out, quality)

    def _angles(self, rope: Rope, positions: Int32) -> Float32:
        """Cos and sin [2, R, 1, d/2] of the rows' positions, the same for all layers of a pass."""
        angles = np.empty((2, len(positions), 1, rope.head_dim // 2), dtype=np.float32)
        for block in np.unique(positions // ROPE_BLOCK):
            mine = positions // ROPE_BLOCK == block
            if (rope, block) not in self._rope_blocks:
                self._rope_blocks[rope, block] = rope_block(rope, int(block))
            angles[:, mine, 0] = self._rope_blocks[rope, block][:, positions[mine] % ROPE_BLOCK]
        return angles

    def _stored(self, x: Float32) -> Float32:
        """What the KV cache keeps of keys or values: FP16, saturating."""
        if self.activations is Activations.FP32:
            return x
        return np.clip(x, -FP16_MAX, FP16_MAX).astype(np.float16).astype(np.float32)

    def _mlp(self, spec: GatedMlp, x: Float32, quality: DraftQuality) -> Float32:
        gate_up = self._linear(x, spec.gate_up, quality)
        return self._linear(_gated(gate_up, spec), spec.down, quality)

    def _moe(
        self, spec: MixtureOfExperts, x: Float32, allowed: Bool | None, quality: DraftQuality, read: Bool
    ) -> tuple[Float32, npt.NDArray[np.int16]]:
        """Output [R, D] and the router's own choice [R, A]; marks the experts used in ``read[layer]``."""
        router = spec.router
        scores = ordered.softmax(ordered.product(x, self._weights.vector(router.weight)))
        own = _best(scores, router.experts_per_tok)
        count = min(quality.experts_per_tok or router.experts_per_tok, router.experts_per_tok)
        used = own[:, :count] if allowed is None else _best(np.where(allowed, scores, np.float32(-1)), count)
        weights = np.take_along_axis(scores, used, axis=1)  # [R, A]
        if router.renormalize:
            weights = weights / _in_order(weights, axis=1)[:, None]

        flat = used.reshape(-1)
        out = np.empty((len(flat), x.shape[1]), dtype=np.float32)  # [R*A, D]
        for expert in np.unique(flat):
            slots = np.flatnonzero(flat == expert)
            gate_up, down = self._weights.expert(spec, int(expert), quality)
            inner = _gated(self._product(x[slots // count], gate_up), spec.expert)
            out[slots] = self._product(inner, down)
            read[spec.layer, expert] = True
        weighted = out.reshape(len(x), count, -1) * weights[:, :, None]
        return _in_order(weighted, axis=1), own.astype(np.int16)

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
            parts.append(_in_order(sums, axis=0))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _gated(gate_up: Float32, spec: GatedMlp) -> Float32:
    """silu(gate) * up."""
    gate, up = gate_and_up(gate_up, spec)
    return gate / (np.float32(1) + ordered.exponential(-gate)) * up


def _in_order(x: Float32, axis: int) -> Float32:
    """Sum along axis 0 or 1, ascending, one after the other."""
    parts = x if axis == 0 else x.swapaxes(0, 1)
    total: Float32 = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _best(scores: Float32, count: int) -> npt.NDArray[np.intp]:
    """[R, E] -> the `count` best of each row, best first, ties to the lower index."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _best_logits(logits: Float32, count: int) -> BestLogits:
    tokens = _best(logits, count)
    return BestLogits(tokens.astype(np.int32), np.take_along_axis(logits, tokens, axis=1), ordered.log_total(logits))


def _runs(sequences: Int32) -> Iterator[tuple[int, int, int]]:
    """(sequence, first row, row after the last) of each run of equal sequence numbers."""
    edges = np.flatnonzero(np.diff(sequences)) + 1
    bounds = [0, *edges.tolist(), len(sequences)]
    for first, last in pairwise(bounds):
        yield int(sequences[first]), first, last


def _rotate(x: Float32, angles: Float32) -> Float32:
    """Rotate the halves of each head: x [R, H, d], angles [2, R, 1, d/2]."""
    cos, sin = angles
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
