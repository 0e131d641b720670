"""What a model is, from its ``config.json`` alone: sizes, bytes by part, and what fits a memory budget.

Shared by the engine, the checkpoint converter and the simulator. Knows nothing about weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    latent_dim: int = 0
    """Latent attention (MLA): elements of the latent that is cached per token. 0: grouped-query attention. With MLA
    `kv_heads` is `heads` and `head_dim` is ``nope_dim + rope_dim``."""
    query_latent_dim: int = 0
    """Elements of the compressed query; 0: queries are not compressed."""
    nope_dim: int = 0
    """Elements of a query or key head without position."""
    rope_dim: int = 0
    """Elements of a query or key head that are rotated; the rotated key is one for all heads."""
    value_dim: int = 0
    """Elements of a value head."""
    shared_hidden: int = 0
    """Inner size of the shared experts together; 0: there are none."""
    window: int = 0
    """Tokens, its own included, that a token sees in `windowed_layers`."""
    windowed_layers: tuple[int, ...] = ()
    """Which layers have sliding-window attention."""
    mxfp4_experts: bool = False
    """Experts are MXFP4 instead of bit-nested INT8."""

    def __post_init__(self) -> None:
        for field, size in self._inner_sizes():
            if size % GROUP:
                raise UnsupportedModelError(
                    f"config.json: {field} = {size} is not a multiple of the quantisation group {GROUP}"
                )
        field, rotated = ("rope_dim", self.rope_dim) if self.latent_dim else ("head_dim", self.head_dim)
        if rotated % 2:
            raise UnsupportedModelError(f"config.json: {field} = {rotated} is odd; rotary embeddings turn pairs")
        if self.heads % self.kv_heads:
            raise UnsupportedModelError(
                f"config.json: {self.heads} attention heads cannot share {self.kv_heads} key-value heads"
            )
        if not 1 <= self.experts_per_tok <= self.experts:
            raise UnsupportedModelError(
                f"config.json: {self.experts_per_tok} experts per token out of {self.experts} experts"
            )

    def _inner_sizes(self) -> Iterator[tuple[str, int]]:
        """What some matrix has as its inputs, unpadded."""
        yield "hidden", self.hidden
        yield "expert_hidden", self.expert_hidden
        if len(self.moe_layers) < self.layers:
            yield "dense_hidden", self.dense_hidden
        yield "shared_hidden", self.shared_hidden
        if self.latent_dim:
            yield "latent_dim", self.latent_dim
            yield "query_latent_dim", self.query_latent_dim
            yield "heads * value_dim", self.heads * self.value_dim
        else:
            yield "heads * head_dim", self.heads * self.head_dim

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that one token adds to the cache, all layers: keys and values, or latents and rotated keys."""
        if self.latent_dim:
            return self.layers * (self.latent_dim + self.rope_dim)
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token adds to the KV cache."""
        return self.kv_elements_per_token * KV_BYTES_PER_ELEMENT

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


LARGEST_SIZE = 1 << 30
LARGEST = {
    "num_hidden_layers": 1 << 12,
    "num_experts": 1 << 15,
    "num_local_experts": 1 << 15,
    "n_routed_experts": 1 << 15,
}
"""Sanity bounds of ``config.json``: what would exhaust memory before the first weight is read."""


class Config:
    """A ``config.json`` read field by field, so that a missing or odd one is named in the error."""

    def __init__(self, values: Mapping[str, Any], source: str = "config.json") -> None:
        self.values, self.source = values, source

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A positive integer field; not negative where `least` is 0."""
        value = self.values.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            kind = "a positive integer" if least else "an integer from 0 on"
            raise UnsupportedModelError(f"{self.source}: {name} must be {kind}, not {value!r}")
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

    def integer_or_none(self, name: str) -> int | None:
        """A positive integer field that may be null, but not missing."""
        if name not in self.values:
            raise UnsupportedModelError(f"{self.source}: {name} is missing; it must be a positive integer or null")
        return None if self.values[name] is None else self.integer(name)

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

    def texts(self, name: str, allowed: tuple[str, ...], length: int) -> tuple[str, ...] | None:
        """A list of `length` of the words `allowed`, None when absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length or any(item not in allowed for item in value):
            choices = " or ".join(repr(item) for item in allowed)
            raise UnsupportedModelError(
                f"{self.source}: {name} must be a list of {length} times {choices}, not {repr(value)[:80]}"
            )
        return tuple(value)

    def require(self, name: str, allowed: tuple[Any, ...], default: Any = None) -> None:
        """Refuse a field whose value elmoe does not implement."""
        value = self.values.get(name, default)
        if value not in allowed:
            choices = " or ".join(repr(item) for item in allowed)
            raise UnsupportedModelError(f"{self.source}: {name} = {value!r} is not supported; elmoe runs {choices}")
