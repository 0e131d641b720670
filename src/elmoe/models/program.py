"""Layer programs: what a model computes, as data that every backend interprets.

A family module (`qwen3_moe.py`, ...) turns a checkpoint's ``config.json`` into a `Program`; a backend walks it.
Fields say *what*, never *how fast*. Knows nothing about files, kernels or policies.

The residual stream is ``x = x + m * attention(norm(x))``, ``x = x + m * ffn(norm(x))`` per layer (m = 1 but for
Granite), then a final norm and the head: the pre-norm transformer that every supported family shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from elmoe.quant.tiles import mxfp4_plane_bytes, plane_bytes

Vectors = Iterator[tuple[str, tuple[int, ...]]]
"""FP32 tensors: (name, shape)."""


class Storage(Enum):
    """How the weights of a matrix are kept."""

    INT8 = "int8"
    """Bit-nested INT8 in groups of 32: an MSB and an LSB plane. A draft reads the MSB plane alone."""
    MXFP4 = "mxfp4"
    """OCP MXFP4: one plane of 4-bit floats. Target and draft read the same."""


@dataclass(frozen=True)
class Linear:
    """A stored matrix [outputs, inputs]; `bias` names an FP32 vector, or is None."""

    name: str
    outputs: int
    inputs: int
    bias: str | None = None
    storage: Storage = Storage.INT8

    @property
    def plane_bytes(self) -> tuple[int, int]:
        """Bytes of the (MSB, LSB) planes; MXFP4 has all of its bits in the first."""
        if self.storage is Storage.MXFP4:
            return mxfp4_plane_bytes(self.outputs, self.inputs), 0
        return plane_bytes(self.outputs, self.inputs)


@dataclass(frozen=True)
class RmsNorm:
    """``x * weight / sqrt(mean(x**2) + eps)`` with the FP32 vector `name`."""

    name: str
    size: int
    eps: float


@dataclass(frozen=True)
class Yarn:
    """YaRN interpolation of the rotary frequencies (arXiv 2309.00071), parameters as transformers names them."""

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float
    """Multiplies cosines and sines."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of `head_dim` elements, halves convention of HF: pairs (i, i + head_dim/2).

    Families with interleaved pairs (2i, 2i + 1) have the rows of their projections reordered when they are stored;
    scores are the same.
    """

    theta: float
    head_dim: int
    yarn: Yarn | None = None


@dataclass(frozen=True)
class GroupedQueryAttention:
    """Softmax attention with `heads` query heads over `kv_heads` key-value heads.

    `qkv` stacks the query, key and value rows in this order. Scores are ``score_scale * q @ k``.
    """

    qkv: Linear
    out: Linear
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    score_scale: float
    query_norm: RmsNorm | None = None
    """Of size `head_dim`: of each head; of size ``heads * head_dim``: of all heads as one vector."""
    key_norm: RmsNorm | None = None
    """Of size `head_dim` or ``kv_heads * head_dim``, as `query_norm`."""
    clip: float | None = None
    """Queries, keys and values are clamped to [-clip, clip] after the norms."""
    window: int | None = None
    """A token at position p sees positions ``p - window + 1 .. p``; None: all up to p."""
    sinks: str | None = None
    """FP32 vector [heads]: a score per head that takes part in the softmax and has no value."""

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its matrices, in stored order."""
        return self.qkv, self.out

    @property
    def kv_elements(self) -> int:
        """Elements per token in the KV cache."""
        return 2 * self.kv_heads * self.head_dim

    def vectors(self) -> Vectors:
        """Its FP32 tensors but for biases."""
        for norm in (self.query_norm, self.key_norm):
            if norm is not None:
                yield norm.name, (norm.size,)
        if self.sinks is not None:
            yield self.sinks, (self.heads,)


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (MLA, DeepSeek-V2, arXiv 2405.04434) in absorbed form.

    The cache holds, per token and for all heads together, a normed latent of `latent_dim` elements and a rotated key
    of `rope_dim`. A head's query is carried into the latent space by its block of `key_up`, attends to the cache
    itself, and the mixed latent is carried out by its block of `value_up`; the cache is never expanded:

        down(x)   = [query part | latent | rope key]
        q         = query_up(query_norm(query part)), or the query part itself; per head [nope_dim | rope_dim]
        scores    = score_scale * (key_up[h](q_nope) @ latent + rotate(q_rope) @ rope_key)
        result    = out(concat over h of value_up[h](softmax(scores) @ latent))
    """

    down: Linear
    """[query part + latent_dim + rope_dim, D]."""
    query_norm: RmsNorm | None
    query_up: Linear | None
    """[heads * (nope_dim + rope_dim), query part]; None: the query part is the query."""
    latent_norm: RmsNorm
    key_up: Linear
    """[heads * latent_dim, nope_dim padded to a multiple of 32]: rows of head h from ``h * latent_dim`` on."""
    value_up: Linear
    """[heads * value_dim, latent_dim]: rows of head h from ``h * value_dim`` on."""
    out: Linear
    """[D, heads * value_dim]."""
    heads: int
    nope_dim: int
    rope_dim: int
    latent_dim: int
    value_dim: int
    rope: Rope
    score_scale: float

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its matrices, in stored order."""
        query_up = () if self.query_up is None else (self.query_up,)
        return self.down, *query_up, self.key_up, self.value_up, self.out

    @property
    def query_part(self) -> int:
        """Rows of `down` that belong to the query."""
        return self.down.outputs - self.latent_dim - self.rope_dim

    @property
    def kv_elements(self) -> int:
        """Elements per token in the KV cache."""
        return self.latent_dim + self.rope_dim

    @property
    def window(self) -> None:
        """Latent attention sees everything."""
        return None

    def vectors(self) -> Vectors:
        """Its FP32 tensors but for biases."""
        if self.query_norm is not None:
            yield self.query_norm.name, (self.query_norm.size,)
        yield self.latent_norm.name, (self.latent_norm.size,)


Attention = GroupedQueryAttention | LatentAttention


class Scoring(Enum):
    """What turns a router's logits into scores."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class GroupScore(Enum):
    """What ranks a group of experts."""

    BEST = "best"
    """Its best expert (DeepSeek-V2)."""
    BEST_TWO = "best two"
    """The sum of its two best (DeepSeek-V3, GLM)."""


@dataclass(frozen=True)
class Router:
    """Scores and choice of experts.

    ``logits = x @ weight.T + bias``, in FP32; ``scores = scoring(logits)``. The best `experts_per_tok` by
    ``scores + correction`` are taken, from the `groups_kept` best of `groups` equal runs of experts. Their weights are
    their scores (without correction), divided by ``their sum + 1e-20`` if `renormalize`, times `scale`.

    A softmax over the chosen logits alone (GPT-OSS, Granite) is a softmax over all, renormalised. Throttled to a pool,
    everything up to the choice of groups is as without; then experts of the pool are taken, those of kept groups first.
    """

    weight: str
    inputs: int
    experts: int
    experts_per_tok: int
    renormalize: bool
    scoring: Scoring = Scoring.SOFTMAX
    bias: str | None = None
    correction: str | None = None
    groups: int = 1
    groups_kept: int = 1
    group_score: GroupScore = GroupScore.BEST
    scale: float = 1.0

    def vectors(self) -> Vectors:
        """Its FP32 tensors."""
        yield self.weight, (self.experts, self.inputs)
        for name in (self.bias, self.correction):
            if name is not None:
                yield name, (self.experts,)


@dataclass(frozen=True)
class ClampedSwiglu:
    """GPT-OSS: ``g = min(gate, limit); u = clamp(up, -limit, limit); (u + 1) * g * sigmoid(alpha * g)``."""

    alpha: float
    limit: float


@dataclass(frozen=True)
class GatedMlp:
    """``down(silu(gate(x)) * up(x))``, or `clamped` in place of ``silu(gate) * up``.

    `gate_up` holds 2F rows in blocks of 16: gate rows 0-15, up rows 0-15, gate rows 16-31, ... (the activation
    can then be fused into the matrix product block by block). F must be a multiple of 32.
    """

    gate_up: Linear
    down: Linear
    clamped: ClampedSwiglu | None = None


@dataclass(frozen=True)
class MixtureOfExperts:
    """A router over E experts, each a `GatedMlp` of the same shape stored as one MSB and one LSB record.

    `layer` is the index of this block among the MoE blocks: with the expert's number it addresses a record. An
    expert's biases are rows of FP32 tensors [E, outputs] named by its matrices.
    """

    layer: int
    router: Router
    expert: GatedMlp
    shared: GatedMlp | None = None
    """Shared experts, as one MLP that every row takes; part of the dense weights."""
    shared_gate: str | None = None
    """FP32 vector [D]: the shared output is multiplied by ``sigmoid(x @ shared_gate)`` (Qwen2-MoE)."""

    def vectors(self) -> Vectors:
        """Its FP32 tensors but for biases of shared experts."""
        yield from self.router.vectors()
        for linear in (self.expert.gate_up, self.expert.down):
            if linear.bias is not None:
                yield linear.bias, (self.router.experts, linear.outputs)
        if self.shared_gate is not None:
            yield self.shared_gate, (self.router.inputs,)


@dataclass(frozen=True)
class Layer:
    """One transformer block."""

    attention_norm: RmsNorm
    attention: Attention
    ffn_norm: RmsNorm
    ffn: GatedMlp | MixtureOfExperts

    @property
    def dense_mlp(self) -> GatedMlp | None:
        """The MLP of a dense layer or the shared experts of an MoE block."""
        return self.ffn if isinstance(self.ffn, GatedMlp) else self.ffn.shared


@dataclass(frozen=True)
class Program:
    """A whole model: token embedding, layers, final norm, head (the embedding again when tied)."""

    embedding: Linear
    layers: tuple[Layer, ...]
    final_norm: RmsNorm
    head: Linear
    embedding_scale: float = 1.0
    """Multiplies the embedding."""
    residual_scale: float = 1.0
    """Multiplies what attention and feed-forward blocks add to the residual stream."""
    logit_divisor: float = 1.0
    """Divides the logits."""

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
            yield from layer.attention.linears
            if layer.dense_mlp is not None:
                yield layer.dense_mlp.gate_up
                yield layer.dense_mlp.down
        yield self.head

    @property
    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every FP32 tensor (norms, routers, biases) by name, in the order in which they are stored."""
        return dict(self._walk_vectors())

    def _walk_vectors(self) -> Vectors:
        for layer in self.layers:
            yield layer.attention_norm.name, (layer.attention_norm.size,)
            yield from layer.attention.vectors()
            yield layer.ffn_norm.name, (layer.ffn_norm.size,)
            if isinstance(layer.ffn, MixtureOfExperts):
                yield from layer.ffn.vectors()
        yield self.final_norm.name, (self.final_norm.size,)
        for linear in self.linears:
            if linear.bias is not None:
                yield linear.bias, (linear.outputs,)


def expert_plane_bytes(expert: GatedMlp) -> tuple[int, int]:
    """Bytes of the (MSB, LSB) record of one expert: gate_up tiles, then down tiles; page padding not counted."""
    gate_up, down = expert.gate_up.plane_bytes, expert.down.plane_bytes
    return gate_up[0] + down[0], gate_up[1] + down[1]
