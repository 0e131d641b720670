"""Bytes of a model by part, and the expert pool that a fast-memory budget leaves room for.

Everything follows from the layer program, so a model can be sized before a single weight is read. Placement
order as in the paper: dense weights and KV cache first, the rest is the expert pool. Knows nothing about policies.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from elmoe.models.program import GatedMlp, Linear, Program, Storage, expert_plane_bytes
from elmoe.models.shape import KV_BYTES_PER_ELEMENT, ModelShape
from elmoe.quant.tiles import NIBBLE_BYTES, SCALE_BYTES, tile_grid


@dataclass(frozen=True)
class Footprint:
    """Bytes by part. `dense` is everything but the experts; `scales` is contained in `experts_msb` and `dense`."""

    dense: int
    dense_msb: int
    """What a draft step reads of `dense`: MSB planes (scales included) and FP32 tensors."""
    experts_msb: int
    experts_lsb: int
    scales: int
    kv_per_token: int
    windows: tuple[tuple[int, int], ...]
    """(window, bytes per token) of the layers with sliding-window attention, by window; part of `kv_per_token`."""
    expert_msb: int
    """MSB record of one expert: what one pool slot holds. All of it where experts are MXFP4."""
    expert_lsb: int
    moe_layers: int
    experts: int
    experts_per_tok: int

    @property
    def total(self) -> int:
        """All weights."""
        return self.dense + self.experts_msb + self.experts_lsb

    def pool_slots(self, fast_bytes: int, kv_tokens: int) -> int:
        """Expert-pool slots per MoE layer that `fast_bytes` leave beside dense weights and `kv_tokens` of KV.

        At most the number of experts; negative when even dense weights and KV do not fit.
        """
        left = fast_bytes - self.dense - kv_tokens * self.kv_per_token
        return min(self.experts, left // (self.expert_msb * self.moe_layers))

    def fast_bytes_needed(self, kv_tokens: int) -> int:
        """The smallest budget: dense weights, KV of `kv_tokens`, one pool slot per expert that a token uses."""
        pool = self.experts_per_tok * self.expert_msb * self.moe_layers
        return self.dense + kv_tokens * self.kv_per_token + pool


def footprint(shape: ModelShape, program: Program) -> Footprint:
    """Size every part of a model."""
    blocks = program.moe_blocks
    expert_msb, expert_lsb = expert_plane_bytes(blocks[0].expert) if blocks else (0, 0)
    count = len(blocks) * shape.experts
    planes = [linear.plane_bytes for linear in program.linears]
    windows: dict[int, int] = {}
    for layer in program.layers:
        if layer.attention.window is not None:
            kv_bytes = layer.attention.kv_elements * KV_BYTES_PER_ELEMENT
            windows[layer.attention.window] = windows.get(layer.attention.window, 0) + kv_bytes
    vectors = sum(4 * prod(dims) for dims in program.vectors.values())
    dense_msb = sum(msb for msb, _ in planes) + vectors
    scales = sum(_scale_bytes(linear) for linear in program.linears)
    if blocks:
        scales += count * _expert_scale_bytes(blocks[0].expert)
    return Footprint(
        dense=dense_msb + sum(lsb for _, lsb in planes),
        dense_msb=dense_msb,
        experts_msb=count * expert_msb,
        experts_lsb=count * expert_lsb,
        scales=scales,
        kv_per_token=shape.kv_bytes_per_token,
        windows=tuple(sorted(windows.items())),
        expert_msb=expert_msb,
        expert_lsb=expert_lsb,
        moe_layers=len(blocks),
        experts=shape.experts,
        experts_per_tok=shape.experts_per_tok,
    )


def activation_bytes(shape: ModelShape, program: Program, rows: int, logits: int) -> int:
    """What a pass over `rows` rows keeps beside weights and KV, with `logits` rows of logits; an upper estimate.

    FP32 vectors of every row at every place of a layer, the same again as INT8 with scales, and the outputs of all
    experts that a row uses; see `Workspace::grow` in native/src/pass.cpp.
    """
    outside = (program.embedding.name, program.head.name)
    widths = [linear.outputs + linear.inputs for linear in program.linears if linear.name not in outside]
    inner = max((block.expert.down.inputs for block in program.moe_blocks), default=0)
    used = shape.experts_per_tok + 2
    floats = 4 * shape.hidden + 2 * max(widths, default=0) + 4 * shape.experts + used * (shape.hidden + inner)
    return rows * floats * 4 + logits * shape.vocab * 8


def _scale_bytes(linear: Linear) -> int:
    blocks, along = tile_grid(linear.outputs, linear.inputs)
    if linear.storage is Storage.MXFP4:
        return linear.plane_bytes[0] - blocks * along * NIBBLE_BYTES
    return blocks * along * SCALE_BYTES


def _expert_scale_bytes(expert: GatedMlp) -> int:
    return _scale_bytes(expert.gate_up) + _scale_bytes(expert.down)
