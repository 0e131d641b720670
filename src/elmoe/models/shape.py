"""What a model is, from its ``config.json`` alone: sizes, bytes by part, and what fits a memory budget.

Shared by the engine, the checkpoint converter and the simulator. Knows nothing about weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from elmoe.errors import UnsupportedModelError
from elmoe.quant.bitnested import GROUP

KV_BYTES_PER_ELEMENT = 2
"""Keys and values are kept as FP16."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Mixture-of-Experts transformer. Counts are elements unless the name says otherwise."""

    family: str
    layers: int
    moe_layers: tuple[int, ...]
    """Which layers are MoE blocks; the others have a dense MLP."""
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_tok: int
    expert_hidden: int
    dense_hidden: int
    vocab: int
    max_context: int
    tied_head: bool

    def __post_init__(self) -> None:
        inputs = {
            "hidden": self.hidden,
            "expert_hidden": self.expert_hidden,
            "heads * head_dim": self.heads * self.head_dim,
        }
        if len(self.moe_layers) < self.layers:
            inputs["dense_hidden"] = self.dense_hidden
        for field, size in inputs.items():
            if size % GROUP:
                raise UnsupportedModelError(
                    f"config.json: {field} = {size} is not a multiple of the quantisation group {GROUP}"
                )
        if self.heads % self.kv_heads:
            raise UnsupportedModelError(
                f"config.json: {self.heads} attention heads cannot share {self.kv_heads} key-value heads"
            )
        if not 1 <= self.experts_per_tok <= self.experts:
            raise UnsupportedModelError(
                f"config.json: {self.experts_per_tok} experts per token out of {self.experts} experts"
            )

    @property
    def kv_elements_per_token(self) -> int:
        """Key and value elements that one token adds to the cache, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token adds to the KV cache."""
        return self.kv_elements_per_token * KV_BYTES_PER_ELEMENT

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


LARGEST_SIZE = 1 << 30
LARGEST = {"num_hidden_layers": 1 << 12, "num_experts": 1 << 15, "num_local_experts": 1 << 15}
"""Sanity bounds of ``config.json``: what would exhaust memory before the first weight is read."""


class Config:
    """A ``config.json`` read field by field, so that a missing or odd one is named in the error."""

    def __init__(self, values: Mapping[str, Any], source: str = "config.json") -> None:
        self.values, self.source = values, source

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer field."""
        value = self.values.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UnsupportedModelError(f"{self.source}: {name} must be a positive integer, not {value!r}")
        if value > LARGEST.get(name, LARGEST_SIZE):
            raise UnsupportedModelError(f"{self.source}: {name} = {value} is beyond any model; the file is damaged")
        return value

    def number(self, name: str, default: float) -> float:
        """A positive number field."""
        value = self.values.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
            raise UnsupportedModelError(f"{self.source}: {name} must be a positive number, not {value!r}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A true/false field."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise UnsupportedModelError(f"{self.source}: {name} must be true or false, not {value!r}")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers, empty when absent."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise UnsupportedModelError(f"{self.source}: {name} must be a list of integers, not {value!r}")
        return tuple(value)

    def require(self, name: str, allowed: tuple[Any, ...], default: Any = None) -> None:
        """Refuse a field whose value elmoe does not implement."""
        value = self.values.get(name, default)
        if value not in allowed:
            choices = " or ".join(repr(item) for item in allowed)
            raise UnsupportedModelError(f"{self.source}: {name} = {value!r} is not supported; elmoe runs {choices}")
