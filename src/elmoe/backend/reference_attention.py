"""Attention of the reference backend: its KV caches, rotary angles, grouped-query and latent attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from elmoe.backend import ordered
from elmoe.backend.decoded import Activations
from elmoe.backend.ordered import Sees
from elmoe.backend.products import Products
from elmoe.backend.protocol import DraftQuality, Int32, Rows
from elmoe.backend.rope import ROPE_BLOCK, rope_block
from elmoe.checkpoint.folder import Checkpoint
from elmoe.models.program import Attention, GroupedQueryAttention, LatentAttention, Linear, RmsNorm, Rope
from elmoe.quant.bitnested import GROUP, Float32

FP16_MAX = np.float32(65504.0)


@dataclass
class LayerCache:
    """Keys and values of one sequence in one layer; FP16 values held in FP32."""

    keys: Float32
    """[H_kv, d, cells]."""
    values: Float32
    """[H_kv, cells, v]; of latent attention a view of the same memory as the keys."""

    @classmethod
    def empty(cls, spec: Attention, cells: int) -> LayerCache:
        """All zeros."""
        if isinstance(spec, LatentAttention):
            latents = np.zeros((1, cells, spec.kv_elements), dtype=np.float32)
            return cls(latents.transpose(0, 2, 1), latents[:, :, : spec.latent_dim])
        return cls(
            np.zeros((spec.kv_heads, spec.head_dim, cells), dtype=np.float32),
            np.zeros((spec.kv_heads, cells, spec.head_dim), dtype=np.float32),
        )

    def move(self, source: Int32, destination: Int32) -> None:
        """Copy cells, as if all at once."""
        keys, values = self.keys[:, :, source], self.values[:, source]
        self.keys[:, :, destination] = keys
        self.values[:, destination] = values

    def take(self, other: LayerCache, cells: int) -> None:
        """Copy the first cells of another sequence's."""
        self.keys[:, :, :cells] = other.keys[:, :, :cells]
        self.values[:, :cells] = other.values[:, :cells]


class AttentionLayers(Products):
    """Attention blocks of all layers, and what they remember."""

    def __init__(self, checkpoint: Checkpoint, activations: Activations) -> None:
        super().__init__(checkpoint, activations)
        self.program = checkpoint.program
        self._kv: dict[int, list[LayerCache]] = {}
        self._rope_blocks: dict[tuple[Rope, int], Float32] = {}
        self._ropes = {layer.attention.rope for layer in self.program.layers}

    def allocate(self, sequence: int, cells: int) -> None:
        """Give `sequence` a KV cache of `cells` cells."""
        self._kv[sequence] = [LayerCache.empty(layer.attention, cells) for layer in self.program.layers]

    def release(self, sequence: int) -> None:
        """Drop the KV cache of `sequence`."""
        self._kv.pop(sequence, None)

    def move(self, sequence: int, source: Int32, destination: Int32) -> None:
        """Copy KV cells ``source[i] -> destination[i]``, as if all at once."""
        for cache in self._kv[sequence]:
            cache.move(source, destination)

    def copy(self, source: int, destination: int, cells: int) -> None:
        """Copy the first `cells` KV cells of one sequence to those of another."""
        for cache, other in zip(self._kv[destination], self._kv[source], strict=True):
            cache.take(other, cells)

    def _attention(
        self, layer: int, spec: Attention, x: Float32, rows: Rows, quality: DraftQuality, angles: Float32
    ) -> Float32:
        if isinstance(spec, LatentAttention):
            return self._latent(layer, spec, x, rows, quality, angles)
        return self._grouped(layer, spec, x, rows, quality, angles)

    def _grouped(
        self, layer: int, spec: GroupedQueryAttention, x: Float32, rows: Rows, quality: DraftQuality, angles: Float32
    ) -> Float32:
        R, d, heads, kv_heads = rows.count, spec.head_dim, spec.heads, spec.kv_heads
        qkv = self._linear(x, spec.qkv, quality).reshape(R, heads + 2 * kv_heads, d)
        query, key, value = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
        query, key = self._head_norm(query, spec.query_norm), self._head_norm(key, spec.key_norm)
        if spec.clip is not None:
            bound = np.float32(spec.clip)
            query, key, value = (np.clip(part, -bound, bound) for part in (query, key, value))
        query = _rotate(query, angles) * np.float32(spec.score_scale)
        key = _rotate(key, angles)
        sinks = None if spec.sinks is None else self._weights.vector(spec.sinks)
        mixed = np.empty((R, heads, d), dtype=np.float32)
        for sequence, mine in _runs(rows.sequences):
            cache, cells = self._kv[sequence][layer], rows.cells[mine]
            cache.keys[:, :, cells] = self._stored(key[mine]).transpose(1, 2, 0)
            cache.values[:, cells] = self._stored(value[mine]).transpose(1, 0, 2)
            sees = _sees(rows, mine, spec.window)
            mixed[mine] = ordered.attention(query[mine], cache.keys, cache.values, sees, sinks)
        return self._linear(mixed.reshape(R, heads * d), spec.out, quality)

    def _head_norm(self, x: Float32, norm: RmsNorm | None) -> Float32:
        """X [R, H, d] normed head by head, or as one vector of all heads."""
        if norm is None:
            return x
        return self._norm(x.reshape(len(x), -1, norm.size), norm).reshape(x.shape)

    def _latent(
        self, layer: int, spec: LatentAttention, x: Float32, rows: Rows, quality: DraftQuality, angles: Float32
    ) -> Float32:
        R, heads, r, part = rows.count, spec.heads, spec.latent_dim, spec.query_part
        down = self._linear(x, spec.down, quality)
        query = down[:, :part]
        if spec.query_norm is not None:
            query = self._norm(query, spec.query_norm)
        if spec.query_up is not None:
            query = self._linear(query, spec.query_up, quality)
        query = query.reshape(R, heads, spec.nope_dim + spec.rope_dim)
        latent = self._norm(np.ascontiguousarray(down[:, part : part + r]), spec.latent_norm)
        rope_key = _rotate(down[:, None, part + r :], angles)[:, 0]
        cached = self._stored(np.concatenate([latent, rope_key], axis=1))

        carried = self._per_head(query[..., : spec.nope_dim], spec.key_up, quality)
        rotated = _rotate(query[..., spec.nope_dim :], angles)
        scaled = np.concatenate([carried, rotated], axis=-1) * np.float32(spec.score_scale)
        mixed = np.empty((R, heads, r), dtype=np.float32)
        for sequence, mine in _runs(rows.sequences):
            cache = self._kv[sequence][layer]
            cache.keys[0][:, rows.cells[mine]] = cached[mine].T  # the values are a view of it
            mixed[mine] = ordered.attention(scaled[mine], cache.keys, cache.values, _sees(rows, mine, spec.window))
        out = self._per_head(mixed, spec.value_up, quality)
        return self._linear(out.reshape(R, heads * spec.value_dim), spec.out, quality)

    def _per_head(self, x: Float32, linear: Linear, quality: DraftQuality) -> Float32:
        """X [R, H, k] times each head's own rows of the matrix -> [R, H, rows per head]."""
        weight = self._weights.linear(linear, quality)
        padded = np.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % GROUP)))
        width = linear.outputs // x.shape[1]
        by_head = [
            self._product(np.ascontiguousarray(padded[:, h]), weight.rows(h * width, (h + 1) * width))
            for h in range(x.shape[1])
        ]
        return np.stack(by_head, axis=1)

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
        """What the KV cache keeps of keys, values or latents: FP16, saturating."""
        if self.activations is Activations.FP32:
            return x
        return np.clip(x, -FP16_MAX, FP16_MAX).astype(np.float16).astype(np.float32)


def _sees(rows: Rows, mine: slice, window: int | None) -> Sees:
    positions = rows.positions[mine]
    first = np.zeros_like(positions) if window is None else np.maximum(positions - np.int32(window - 1), 0)
    return Sees(rows.prefix[mine], rows.path[mine], first)


def _runs(sequences: Int32) -> Iterator[tuple[int, slice]]:
    """(sequence, its rows) of each run of equal sequence numbers."""
    edges = np.flatnonzero(np.diff(sequences)) + 1
    for first, last in pairwise([0, *edges.tolist(), len(sequences)]):
        yield int(sequences[first]), slice(first, last)


def _rotate(x: Float32, angles: Float32) -> Float32:
    """Rotate the halves of each head: x [R, H, d], angles [2, R, 1, d/2]."""
    cos, sin = angles
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
