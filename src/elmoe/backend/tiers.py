"""Two memory tiers under a backend: a bounded arena of expert records in RAM in front of the `.elmoe` files.

What lies in the fast tier, and what is worth staying there, is decided by the engine; the backend reads what a pass
needs and does not have. Here: how the arena is divided, what the engine says before a pass, and what is counted. Knows
nothing about policies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from elmoe.checkpoint.layout import RECORD_ALIGNMENT_BYTES
from elmoe.models.footprint import Footprint
from elmoe.quant.bitnested import Float32, UInt8

Bool = npt.NDArray[np.bool_]
Int32 = npt.NDArray[np.int32]

IN_FLIGHT_BYTES = 32 << 20
"""Reads under way at once: what keeps an NVMe disk busy at requests of 64 KiB to 4 MiB (docs/tiers.md)."""
LEAST_STAGING, MOST_STAGING = 2, 64
MSB, LSB = 0, 1
"""Index of a plane."""


@dataclass(frozen=True)
class TierLayout:
    """The arena: segments of equal size, each for records of one plane."""

    strides: tuple[int, int]
    """Bytes of an (MSB, LSB) record as it is read, page by page; LSB: 0 where experts have one plane."""
    segment_bytes: int
    staging: int
    """Records of each plane, beside those that stay, through which others pass."""

    @classmethod
    def of(cls, sizes: Footprint) -> TierLayout:
        """8 MSB records take as much as 9 LSB records, so little is lost whichever plane a segment holds."""
        msb, lsb = (
            -(-size // RECORD_ALIGNMENT_BYTES) * RECORD_ALIGNMENT_BYTES for size in (sizes.expert_msb, sizes.expert_lsb)
        )
        wanted = -(-IN_FLIGHT_BYTES // (msb + lsb))
        most = max(LEAST_STAGING, sizes.experts // 4)  # a small model's arena is not all staging
        return cls((msb, lsb), max(8 * msb, 9 * lsb), min(max(wanted, LEAST_STAGING), most, MOST_STAGING))

    @property
    def planes(self) -> int:
        """1 or 2."""
        return 1 + (self.strides[LSB] > 0)

    def per_segment(self, plane: int) -> int:
        """Records of a plane in a segment."""
        return self.segment_bytes // self.strides[plane]

    def segments(self, expert_bytes: int) -> int:
        """Segments that fit."""
        return max(expert_bytes, 0) // self.segment_bytes

    def segments_for(self, msb: int, lsb: int) -> int:
        """Segments that `msb` and `lsb` records take that stay."""
        return sum(
            -(-(count + self.staging) // self.per_segment(plane))
            for plane, count in zip(range(self.planes), (msb, lsb), strict=False)
        )

    def least_bytes(self, sizes: Footprint) -> int:
        """The smallest arena: the experts of one token stay in each layer, as MSB records."""
        return self.segments_for(sizes.experts_per_tok * sizes.moe_layers, 0) * self.segment_bytes


@dataclass(frozen=True)
class Keep:
    """What the engine says before a pass. P planes, L MoE layers, E experts."""

    values: Float32
    """[2, P, L, E]: what a record in the fast tier is worth, while the pass does not use it and once it has. A record
    that was read stays where it is worth more than one that is there, which then makes room."""
    expected: UInt8 | None = None
    """[L, E]: how sure it is that the pass will need an expert, 0 for unlikely; read ahead in this order. None: the
    backend asks the next layer's router."""


@dataclass(frozen=True)
class TierCounters:
    """Counted since the model was opened."""

    bytes_read: int = 0
    """From the slow tier."""
    reads: int = 0
    """Requests to it; neighbours in the file are read together."""
    msb_hits: int = 0
    """Records that a pass needed and that stayed from an earlier one; likewise the rest."""
    msb_misses: int = 0
    lsb_hits: int = 0
    lsb_misses: int = 0
    prefetched: int = 0
    """Records read ahead of their layer."""
    prefetch_used: int = 0
    """Those of them that the layer needed."""
    admitted: int = 0
    """Records that stayed."""
    wait_seconds: float = 0.0
    """With nothing to compute until a read was done."""


class Tiers(Protocol):
    """The tiers of a backend."""

    layout: TierLayout

    @property
    def reader(self) -> str:
        """How the slow tier is read."""

    def activation_bytes(self, rows: int, logits: int) -> int:
        """Of a pass over `rows` rows that gives `logits` rows of logits."""

    def arrange(self, quotas: Int32) -> None:
        """Change how many records of each plane and layer may stay, [P, L]; what is beyond leaves."""

    def kept(self) -> Bool:
        """[P, L, E] records that stay."""

    def counters(self) -> TierCounters:
        """So far."""


def no_values(layers: int, experts: int) -> npt.NDArray[np.float32]:
    """`Keep.values` by which everything is worth the same."""
    return np.zeros((2, 2, layers, experts), dtype=np.float32)
