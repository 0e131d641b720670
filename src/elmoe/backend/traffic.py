"""Bytes that a forward pass reads from each tier, from what it had to read; the same account for every backend."""

from __future__ import annotations

import numpy as np

from elmoe.backend.protocol import Bool, DraftQuality, Rows, Traffic
from elmoe.models.footprint import Footprint
from elmoe.quant.bitnested import STORED_DRAFT_BITS


def count_traffic(sizes: Footprint, rows: Rows, read: Bool, pool: Bool | None, draft: DraftQuality | None) -> Traffic:
    """Account a pass that read each expert of `read` [L, E] once and all dense weights once.

    Dense weights and KV lie in the fast tier, and so do the MSB records of `pool` [L, E] (None: of all experts).
    A draft reads as many bits as it is wide, those below the stored MSB planes from the slow tier; a target reads all.
    Source: placement order of the paper, "Elastic-SD, one serving step".
    """
    pooled = read if pool is None else read & pool
    inside, outside = int(pooled.sum()), int((read & ~pooled).sum())
    if draft is None:
        fast = sizes.dense + inside * sizes.expert_msb
        slow = inside * sizes.expert_lsb + outside * (sizes.expert_msb + sizes.expert_lsb)
    else:
        extra = (draft.bits - STORED_DRAFT_BITS) / STORED_DRAFT_BITS  # LSB planes are 4 bits per weight throughout
        dense = sizes.dense_msb + (sizes.dense - sizes.dense_msb) * extra
        expert = sizes.expert_msb + sizes.expert_lsb * extra
        kept = min(expert, sizes.expert_msb)  # the pool holds MSB planes: a wider draft fetches the bits below them
        fast, slow = round(dense + inside * kept), round(inside * (expert - kept) + outside * expert)
    return Traffic(fast_bytes=fast, slow_bytes=slow, kv_bytes=_cells_seen(rows) * sizes.kv_per_token)


def _cells_seen(rows: Rows) -> int:
    """Distinct KV cells that attention reads: the longest prefix of each sequence, and its rows' own path cells."""
    total = 0
    for sequence in np.unique(rows.sequences):
        mine = rows.sequences == sequence
        branch = rows.path[mine]
        total += int(rows.prefix[mine].max()) + len(np.unique(branch[branch >= 0]))
    return total
