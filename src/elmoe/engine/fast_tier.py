"""The budget of the fast tier: what dense weights, activations and KV leave for experts.

Placement order as in the paper: dense weights and KV first, the rest is the expert pool. With a backend that has tiers
the budget is a promise about memory; otherwise it is an account. Knows nothing about which experts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from elmoe.backend.tiers import TierLayout
from elmoe.errors import CapacityError
from elmoe.models.footprint import Footprint

MARGIN_BYTES = 512 << 20
"""Left to others of what is free: the interpreter, its libraries, the tokenizer, other programs."""
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
DEFAULT_FRACTION = 0.5


@dataclass(frozen=True)
class FastTier:
    """How the fast tier is divided."""

    sizes: Footprint
    fast_bytes: int | None = None
    """The budget; None: the pool is a share of the experts."""
    fraction: float | None = None
    """That share; default: half."""
    layout: TierLayout | None = None
    """Of a backend with tiers; `fast_bytes` is given then."""
    activation_bytes: int = 0
    """What passes need beside weights and KV; counted where bytes really move."""

    def expert_bytes(self, kv_cells: int) -> int:
        """What is left for experts while `kv_cells` cells of KV are in use."""
        assert self.fast_bytes is not None, "a budget"
        fixed = self.sizes.dense + (self.activation_bytes if self.layout else 0)
        return self.fast_bytes - fixed - kv_cells * self.sizes.kv_per_token

    def pool_size(self, kv_cells: int) -> int:
        """What the pool may take: slots per layer, or segments of the arena."""
        sizes = self.sizes
        if self.fast_bytes is None:
            fraction = DEFAULT_FRACTION if self.fraction is None else self.fraction
            return min(sizes.experts, max(sizes.experts_per_tok, round(fraction * sizes.experts)))
        if self.layout is not None:
            return self.layout.segments(self.expert_bytes(kv_cells))
        return sizes.pool_slots(self.fast_bytes, kv_cells)

    @property
    def least_size(self) -> int:
        """The smallest pool: the experts that a token uses, in every layer."""
        if self.layout is not None:
            return self.layout.least_bytes(self.sizes) // self.layout.segment_bytes
        return self.sizes.experts_per_tok

    def fits(self, kv_cells: int) -> bool:
        """Whether `kv_cells` cells of KV leave room for the smallest pool."""
        return self.pool_size(kv_cells) >= self.least_size

    def bytes_needed(self, kv_cells: int) -> int:
        """The smallest budget for `kv_cells` cells of KV."""
        if self.layout is None:
            return self.sizes.fast_bytes_needed(kv_cells)
        kv = kv_cells * self.sizes.kv_per_token
        return self.sizes.dense + self.activation_bytes + kv + self.layout.least_bytes(self.sizes)

    def cells_left(self) -> int:
        """KV cells that the smallest pool leaves room for."""
        assert self.fast_bytes is not None, "a budget"
        return (self.fast_bytes - self.bytes_needed(0)) // max(self.sizes.kv_per_token, 1)

    def check(self) -> None:
        """Raises CapacityError, with the numbers, for a budget that cannot hold the model's fixed parts."""
        if self.fits(0):
            return
        sizes, activations = self.sizes, self.activation_bytes if self.layout else 0
        pool = self.bytes_needed(0) - sizes.dense - activations
        also = f", activations {activations:,}" if activations else ""
        raise CapacityError(
            f"{self.fast_bytes:,} bytes of fast memory are too few: dense weights take {sizes.dense:,}{also} and the "
            f"smallest pool {pool:,}; give {self.bytes_needed(0):,} and {sizes.kv_per_token:,} per token of context"
        )


def free_bytes() -> int:
    """Memory that this process may still take, less `MARGIN_BYTES`: of the system, and of its cgroup."""
    free = _available() - MARGIN_BYTES
    for path in CGROUP_LIMITS:
        try:
            limit = int(Path(path).read_text())
        except (OSError, ValueError):  # no such controller, or "max"
            continue
        free = min(free, limit - _resident() - MARGIN_BYTES)
    return max(free, 0)


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
