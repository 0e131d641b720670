"""Layer programs: what a model computes, as data that every backend interprets.

A family module (`qwen3_moe.py`, ...) turns a checkpoint's ``config.json`` into a `Program`; a backend walks it.
Fields say *what*, never *how fast*. Knows nothing about files, kernels or policies.

The residual stream is ``x = x + attention(norm(x))``, ``x = x + ffn(norm(x))`` per layer, then a final norm
and the head: the pre-norm transformer that every supported family shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from elmoe.quant.tiles import plane_bytes


@dataclass(frozen=True)
class Linear:
    """A stored INT8 G32 matrix [outputs, inputs]; `bias` names an FP32 vector, or is None."""

    name: str
    outputs: int
    inputs: int
    bias: str | None = None


@dataclass(frozen=True)
class RmsNorm:
    """``x * weight / sqrt(mean(x**2) + eps)`` with the FP32 vector `name`."""

    name: str
    size: int
    eps: float


@dataclass(frozen=True)
class Rope:
    """Rotary embedding, halves convention of HF: pairs (i, i + head_dim/2)."""

    theta: float
    head_dim: int


@dataclass(frozen=True)
class GroupedQueryAttention:
    """Softmax attention with `heads` query heads over `kv_heads` key-value heads.

    `qkv` stacks the query, key and value rows in this order. `query_norm` and `key_norm` act on each head.
    """

    qkv: Linear
    out: Linear
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    query_norm: RmsNorm | None
    key_norm: RmsNorm | None


@dataclass(frozen=True)
class Router:
    """FP32 scores ``softmax(x @ weight.T)``, the best `experts_per_tok` taken, renormalised to sum 1 or not."""

    weight: str
    inputs: int
    experts: int
    experts_per_tok: int
    renormalize: bool


@dataclass(frozen=True)
class GatedMlp:
    """``down(silu(gate(x)) * up(x))``.

    `gate_up` holds 2F rows in blocks of 16: gate rows 0-15, up rows 0-15, gate rows 16-31, ... (the activation
    can then be fused into the matrix product block by block). F must be a multiple of 32.
    """

    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class MixtureOfExperts:
    """A router over E experts, each a `GatedMlp` of the same shape stored as one MSB and one LSB record.

    `layer` is the index of this block among the MoE blocks: with the expert's number it addresses a record.
    """

    layer: int
    router: Router
    expert: GatedMlp


@dataclass(frozen=True)
class Layer:
    """One transformer block."""

    attention_norm: RmsNorm
    attention: GroupedQueryAttention
    ffn_norm: RmsNorm
    ffn: GatedMlp | MixtureOfExperts


@dataclass(frozen=True)
class Program:
    """A whole model: token embedding, layers, final norm, head (the embedding again when tied)."""

    embedding: Linear
    layers: tuple[Layer, ...]
    final_norm: RmsNorm
    head: Linear

    @property
    def moe_blocks(self) -> tuple[MixtureOfExperts, ...]:
        """The MoE blocks in order; `MixtureOfExperts.layer` indexes this tuple."""
        return tuple(layer.ffn for layer in self.layers if isinstance(layer.ffn, MixtureOfExperts))

    @property
    def linears(self) -> tuple[Linear, ...]:
        """All dense matrices (not the experts'), each once, in the order in which they are stored."""
        return tuple(dict.fromkeys(self._walk_linears()))

    def _walk_linears(self) -> Iterator[Linear]:
        yield self.embedding
        for layer in self.layers:
            yield layer.attention.qkv
            yield layer.attention.out
            if isinstance(layer.ffn, GatedMlp):
                yield layer.ffn.gate_up
                yield layer.ffn.down
        yield self.head

    @property
    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every FP32 tensor (norms, routers, biases) by name, in the order in which they are stored."""
        return dict(self._walk_vectors())

    def _walk_vectors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for layer in self.layers:
            attention = layer.attention
            for norm in (layer.attention_norm, attention.query_norm, attention.key_norm, layer.ffn_norm):
                if norm is not None:
                    yield norm.name, (norm.size,)
            if isinstance(layer.ffn, MixtureOfExperts):
                router = layer.ffn.router
                yield router.weight, (router.experts, router.inputs)
        yield self.final_norm.name, (self.final_norm.size,)
        for linear in self.linears:
            if linear.bias is not None:
                yield linear.bias, (linear.outputs,)


def expert_plane_bytes(expert: GatedMlp) -> tuple[int, int]:
    """Bytes of the (MSB, LSB) record of one expert: gate_up tiles, then down tiles; page padding not counted."""
    gate_up = plane_bytes(expert.gate_up.outputs, expert.gate_up.inputs)
    down = plane_bytes(expert.down.outputs, expert.down.inputs)
    return gate_up[0] + down[0], gate_up[1] + down[1]
