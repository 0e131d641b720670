"""Muon for matrices, AdamW for the embedding, the routers and the norms.

Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest semi-orthogonal matrix, found by a quintic
Newton-Schulz iteration; every expert is a matrix of its own. Knows nothing about the model but its parameter names.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the iteration, from Muon's reference code: fast rather than exact convergence of singular values."""


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """[..., r, c] -> about U V^T of each, in BF16."""
    a, b, c = QUINTIC
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Steps matrices of equal shape together. Parameters are [r, c], or [E, r, c] for E experts."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, decay: float, momentum: float = 0.95) -> None:
        self.rate, self.decay, self.momentum = rate, decay, momentum
        self.groups: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            self.groups[tuple(parameter.shape)].append(parameter)
        self.averages = {shape: torch.zeros_like(torch.stack(list(g))) for shape, g in self.groups.items()}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One step at `factor` times the rate; gradients are consumed."""
        for shape, group in self.groups.items():
            gradient = torch.stack([parameter.grad for parameter in group])
            average = self.averages[shape].lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(average, self.momentum)).float()
            scale = self.rate * factor * math.sqrt(max(1.0, shape[-2] / shape[-1]))
            torch._foreach_mul_(group, 1 - self.rate * factor * self.decay)
            torch._foreach_add_(group, list(update.unbind()), alpha=-scale)

    def state_dict(self) -> dict[str, Tensor]:
        return {"x".join(map(str, shape)): average for shape, average in self.averages.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for shape, average in self.averages.items():
            average.copy_(state["x".join(map(str, shape))])


class Optimizer:
    """Both, behind one step. `factor` is the schedule's place between 0 and 1."""

    def __init__(self, model: nn.Module, muon_rate: float, adam_rate: float, decay: float) -> None:
        named = dict(model.named_parameters())
        matrices = {n for n, p in named.items() if p.dim() >= 2 and n != "embedding" and not n.endswith("router")}
        self.muon = Muon([p for n, p in named.items() if n in matrices], muon_rate, decay)
        self.others = [p for n, p in named.items() if n not in matrices]
        self.rates = [adam_rate if n == "embedding" else adam_rate / 2 for n in named if n not in matrices]
        self.adam = torch.optim.AdamW(
            [{"params": [p], "lr": rate} for p, rate in zip(self.others, self.rates, strict=True)],
            betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=self.others[0].is_cuda,
        )  # fmt: skip
        self.parameters = list(named.values())

    def step(self, factor: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.adam.step()
        self.muon.step(factor)
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "muon": self.muon.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        self.muon.load_state_dict(state["muon"])
