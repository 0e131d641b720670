"""Qwen3-MoE in PyTorch, for training only: the tensors of transformers' Qwen3MoeForCausalLM, and no KV cache.

Experts of a layer are three stacked parameters, and their products run as one grouped GEMM over rows sorted by expert.
Knows nothing about data, optimisers, files or devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNMENT = 16
"""Rows of every expert's segment are a multiple of this: grouped GEMMs want 16-byte aligned segments of BF16."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes, under the names of Hugging Face's config.json. The defaults are the embedded model `tiny`."""

    vocab_size: int = 8192
    hidden_size: int = 256
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    num_experts: int = 32
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 128
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6


SIZES = {
    "tiny": ModelConfig(),
    "nano": ModelConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, num_experts=16,
        moe_intermediate_size=32,
    ),
}  # fmt: skip
"""`tiny` ships in the package; `nano` is for trying the script on a CPU."""


@dataclass(frozen=True)
class Segments:
    """Where the M = N * A assignments of N tokens to A experts each lie in a buffer of R rows sorted by expert.

    Every expert's rows start at a multiple of `ALIGNMENT`; rows that nobody fills repeat token 0 and get no gradient.
    """

    row: Tensor
    """[N, A]: the row of an assignment."""
    token: Tensor
    """[R]: the token of a row."""
    assignment: Tensor
    """[R]: the assignment of a row, as an index into [N * A]."""
    filled: Tensor
    """[R] bool."""
    ends: Tensor
    """[E] int32: where every expert's segment ends; the last one takes the rest of the buffer."""
    counts: Tensor
    """[E]: assignments of every expert."""

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> Segments:
        """From the chosen experts [N, A]. Static shapes and no synchronisation with the host."""
        N, A = chosen.shape
        rows = N * A + experts * ALIGNMENT
        sorted_experts, order = chosen.reshape(-1).sort(stable=True)
        edges = torch.searchsorted(sorted_experts, torch.arange(experts + 1, device=chosen.device))
        counts = edges.diff()
        ends = ((counts + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT).cumsum(0)
        starts = ends - (ends.diff(prepend=ends.new_zeros(1)))
        row_of_sorted = starts[sorted_experts] + torch.arange(N * A, device=chosen.device) - edges[sorted_experts]
        row = torch.empty_like(order).scatter(0, order, row_of_sorted).view(N, A)
        assignment = order.new_zeros(rows).scatter(0, row_of_sorted, order)
        filled = torch.zeros(rows, dtype=torch.bool, device=chosen.device).scatter(
            0, row_of_sorted, torch.ones_like(order, dtype=torch.bool)
        )
        whole = torch.cat([ends[:-1], ends.new_full((1,), rows)]).to(torch.int32)
        return cls(row, assignment // A, assignment, filled, whole, counts)


class Dispatch(torch.autograd.Function):
    """Token rows [N, D] into the sorted buffer [R, D]. The gradient is a gather, too: no atomic additions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(row)
        return x[token]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (row,) = ctx.saved_tensors
        return grad[row].sum(1), None, None


class Collect(torch.autograd.Function):
    """Rows of the sorted buffer [R, D] back to their assignments [N, A, D]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, row: Tensor, assignment: Tensor, filled: Tensor) -> Tensor:
        ctx.save_for_backward(assignment, filled)
        return rows[row]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        assignment, filled = ctx.saved_tensors
        return grad.reshape(-1, grad.shape[-1])[assignment] * filled[:, None], None, None, None


def expert_products(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows [R, I] of every segment times its expert's weight [E, O, I]: [R, O]."""
    if rows.is_cuda:
        return F.grouped_mm(rows, weight.transpose(1, 2), offs=ends)
    edges = [0, *ends.tolist()]
    return torch.cat([rows[a:b] @ w.T for a, b, w in zip(edges[:-1], edges[1:], weight, strict=True)])


@dataclass
class Routing:
    """What one layer's router did with a batch."""

    counts: Tensor
    """[E]: tokens of every expert."""
    balance_loss: Tensor
    """1 when all experts get the same share, up to E when one gets all (Switch Transformer, eq. 4)."""
    z_loss: Tensor
    """Mean squared log-partition of the router (ST-MoE, eq. 5): keeps its logits small."""


class SparseMoe(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, F_, D = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.config = config
        self.router = nn.Parameter(torch.empty(E, D))
        self.gate = nn.Parameter(torch.empty(E, F_, D))
        self.up = nn.Parameter(torch.empty(E, F_, D))
        self.down = nn.Parameter(torch.empty(E, D, F_))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X [N, D] -> [N, D] and the fields of `Routing` (a tuple, which torch.compile can return)."""
        config, dtype = self.config, x.dtype
        logits = F.linear(x.float(), self.router)
        scores = logits.softmax(-1)
        weights, chosen = scores.topk(config.num_experts_per_tok, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        at = Segments.of(chosen, config.num_experts)
        rows = Dispatch.apply(x, at.token, at.row)
        gate_up = expert_products(rows, torch.cat([self.gate, self.up], 1).to(dtype), at.ends)
        gate, up = gate_up.chunk(2, dim=-1)
        out = expert_products(F.silu(gate) * up, self.down.to(dtype), at.ends)
        picked = Collect.apply(out, at.row, at.assignment, at.filled)  # [N, A, D]
        share = at.counts.float() / chosen.numel()
        balance_loss = config.num_experts * (share * scores.mean(0)).sum()
        z_loss = logits.logsumexp(-1).square().mean()
        return (picked.float() * weights[..., None]).sum(1), at.counts, balance_loss, z_loss


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, T, H, head_dim]; angles are [T, 1, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], -1) * sin


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, d = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.config = config
        self.q = nn.Parameter(torch.empty(heads * d, D))
        self.k = nn.Parameter(torch.empty(kv_heads * d, D))
        self.v = nn.Parameter(torch.empty(kv_heads * d, D))
        self.o = nn.Parameter(torch.empty(D, heads * d))
        self.q_norm = nn.Parameter(torch.ones(d))
        self.k_norm = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """X [B, T, D] -> [B, T, D]."""
        B, T, _ = x.shape
        d, eps, dtype = self.config.head_dim, self.config.rms_norm_eps, x.dtype
        q = F.linear(x, self.q.to(dtype)).view(B, T, -1, d)
        k = F.linear(x, self.k.to(dtype)).view(B, T, -1, d)
        v = F.linear(x, self.v.to(dtype)).view(B, T, -1, d).transpose(1, 2)
        q = rotate(F.rms_norm(q.float(), (d,), self.q_norm, eps), cos, sin).to(dtype).transpose(1, 2)
        k = rotate(F.rms_norm(k.float(), (d,), self.k_norm, eps), cos, sin).to(dtype).transpose(1, 2)
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(mixed.transpose(1, 2).reshape(B, T, -1), self.o.to(dtype))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        self.attention_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.attention = Attention(config)
        self.moe_norm = nn.Parameter(torch.ones(config.hidden_size))
        self.moe = SparseMoe(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X [B, T, D] in FP32 (the residual stream) -> the same, counts [E], balance loss, z loss."""
        B, T, D = x.shape
        eps = self.config.rms_norm_eps
        mixed = self.attention(F.rms_norm(x, (D,), self.attention_norm, eps).to(dtype), cos, sin).float()
        x = x + F.dropout(mixed, self.dropout, self.training)
        y, *routing = self.moe(F.rms_norm(x, (D,), self.moe_norm, eps).to(dtype).view(B * T, D))
        return x + F.dropout(y, self.dropout, self.training).view(B, T, D), *routing


def head_loss(x: Tensor, norm: Tensor, embedding: Tensor, targets: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Cross entropy in nats of every token: x [B, T, D], targets [B, T] -> [B, T]."""
    x = F.rms_norm(x, (x.shape[-1],), norm, eps).to(dtype)
    logits = F.linear(x, embedding.to(dtype)).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


class Model(nn.Module):
    """The whole model. Parameters are FP32; products run in `dtype`; `dropout` is that of what a layer adds."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.bfloat16, dropout: float = 0.0) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList([Layer(config, dropout) for _ in range(config.num_hidden_layers)])
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self._compiled: tuple[list[Any], Any] | None = None
        self.initialise()

    def initialise(self) -> None:
        """Normal weights, smaller where a matrix writes into the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            std = 0.02 if name == "embedding" or name.endswith("router") else 0.6 / math.sqrt(parameter.shape[-1])
            if name.endswith((".o", ".down")):
                std /= math.sqrt(2 * self.config.num_hidden_layers)
            nn.init.normal_(parameter, 0.0, std)

    def compile_layers(self) -> None:
        """Training passes then run compiled. One layer is compiled once for all: seconds, not minutes."""
        layers = [torch.compile(layer, dynamic=False, fullgraph=True) for layer in self.layers]
        self._compiled = layers, torch.compile(head_loss, dynamic=False, fullgraph=True)

    def angles(self, T: int) -> tuple[Tensor, Tensor]:
        """Cos and sin, [T, 1, head_dim] each."""
        d, device = self.config.head_dim, self.embedding.device
        rates = self.config.rope_theta ** (-torch.arange(0, d, 2, device=device).float() / d)
        angle = torch.outer(torch.arange(T, device=device).float(), rates)
        angle = torch.cat([angle, angle], -1)[:, None]
        return angle.cos(), angle.sin()

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, list[Routing]]:
        """tokens, targets [B, T] -> nats [B, T] and every layer's routing."""
        layers, head = self._compiled if self._compiled and torch.is_grad_enabled() else (list(self.layers), head_loss)
        cos, sin = self.angles(tokens.shape[1])
        x = F.embedding(tokens, self.embedding)
        routing = []
        for layer in layers:
            x, *rest = layer(x, cos, sin, self.dtype)
            routing.append(Routing(*rest))
        return head(x, self.norm, self.embedding, targets, self.config.rms_norm_eps, self.dtype), routing

    def count_parameters(self) -> tuple[int, int]:
        """(all, active per token), embedding and head included."""
        total = sum(p.numel() for p in self.parameters())
        experts = sum(p.numel() for layer in self.layers for p in (layer.moe.gate, layer.moe.up, layer.moe.down))
        idle = 1 - self.config.num_experts_per_tok / self.config.num_experts
        return total, total - round(experts * idle)
