"""What the expert pool did over a trace: how hot each expert was, how long it was resident, what the pool caught.

Knows nothing about how the pool decides (`engine/expert_pool.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.trace.parquet import Trace
from elmoe.trace.schema import PassKind, routing_counts

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PoolActivity:
    """Shares per MoE layer (L) and expert (E), and for the whole run."""

    hotness: Float64
    """[L, E] share of the layer's routing decisions that chose the expert, over prompt and decoded tokens, each
    counted once; a layer sums to 1."""
    residency: Float64
    """[L, E] share of the decode passes (AR, draft, verify) with the expert in the pool."""
    hit_share: float
    """Share of the routing decisions of decoded tokens that chose an expert which was in the pool at that time."""

    @property
    def pool_share(self) -> float:
        """Share of all experts that were in the pool, averaged over decode passes: `hit_share` of a blind pool."""
        return float(self.residency.mean()) if self.residency.size else 0.0


def pool_activity(trace: Trace) -> PoolActivity:
    """Sum up a trace, in one pass over the file. Raises TraceError where the file is broken."""
    layers, experts = len(trace.shape.moe_layers), trace.shape.experts
    chosen = np.zeros((layers, experts), dtype=np.int64)
    resident = np.zeros((layers, experts), dtype=np.int64)
    decode_passes = decisions = hits = 0
    for record in trace.passes():
        counts = routing_counts(record.experts[record.kept], experts)  # draft rows are never kept
        chosen += counts
        if record.kind is PassKind.PREFILL:
            continue
        decode_passes += 1
        resident += record.pool
        decisions += int(counts.sum())
        hits += int(counts[record.pool].sum())
    return PoolActivity(
        hotness=chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1),
        residency=resident / max(decode_passes, 1),
        hit_share=hits / decisions if decisions else 0.0,
    )
