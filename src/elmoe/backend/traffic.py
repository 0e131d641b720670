"""Bytes that a forward pass reads from each tier, from what it had to read; the same account for every backend."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from elmoe.backend.protocol import Bool, DraftQuality, Int32, Rows, Traffic
from elmoe.backend.tiers import TierCounters
from elmoe.models.footprint import Footprint
from elmoe.quant.bitnested import STORED_DRAFT_BITS


def count_traffic(sizes: Footprint, rows: Rows, read: Bool, pool: Bool | None, draft: DraftQuality | None) -> Traffic:
    """Account a pass that read each expert of `read` [L, E] once and all dense weights once.

    Dense weights and KV lie in the fast tier, and so do the MSB records of `pool` [L, E] (None: of all experts).
    A draft reads as many bits as it is wide, those below the stored MSB planes from the slow tier; a target reads all.
    Source: placement order of the paper, "Elastic-SD, one serving step".
    """
    inside = int(np.count_nonzero(read if pool is None else read & pool))
    outside = int(np.count_nonzero(read)) - inside
    if draft is None:
        fast = sizes.dense + inside * sizes.expert_msb
        slow = inside * sizes.expert_lsb + outside * (sizes.expert_msb + sizes.expert_lsb)
    else:
        extra = (draft.bits - STORED_DRAFT_BITS) / STORED_DRAFT_BITS  # LSB planes are 4 bits per weight throughout
        dense = sizes.dense_msb + (sizes.dense - sizes.dense_msb) * extra
        expert = sizes.expert_msb + sizes.expert_lsb * extra
        kept = min(expert, sizes.expert_msb)  # the pool holds MSB planes: a wider draft fetches the bits below them
        fast, slow = round(dense + inside * kept), round(inside * (expert - kept) + outside * expert)
    kv_bytes = _cells_seen(rows) * sizes.kv_per_token
    for window, per_token in sizes.windows:
        kv_bytes -= _cells_behind(rows, window) * per_token
    return Traffic(fast_bytes=fast, slow_bytes=slow, kv_bytes=kv_bytes)


def tiered_traffic(
    sizes: Footprint, kv_bytes: int, draft: DraftQuality | None, before: TierCounters, after: TierCounters
) -> Traffic:
    """The same of a pass whose bytes really moved, from the counters before and after it.

    The slow tier's are those that were read: whole blocks of the file, those read ahead in vain included.
    """
    msb, lsb = after.msb_hits - before.msb_hits, after.lsb_hits - before.lsb_hits
    dense = sizes.dense if draft is None else sizes.dense_msb
    fast = dense + msb * sizes.expert_msb + lsb * sizes.expert_lsb
    return Traffic(fast_bytes=fast, slow_bytes=after.bytes_read - before.bytes_read, kv_bytes=kv_bytes)


def _cells_seen(rows: Rows) -> int:
    """Distinct KV cells that attention reads: the longest prefix of each sequence, and its rows' own path cells."""
    if rows.count == 1:
        return int(rows.prefix[0]) + int(np.count_nonzero(rows.path >= 0))
    sequences = rows.sequences
    total = int(np.maximum.reduceat(rows.prefix, _first_rows(sequences)).sum())
    if rows.path.shape[1]:
        cells = np.sort((sequences.astype(np.int64)[:, None] << 32 | rows.path)[rows.path >= 0])
        total += int(np.count_nonzero(cells[1:] != cells[:-1])) + (len(cells) > 0)
    return total


def _cells_behind(rows: Rows, window: int) -> int:
    """Distinct cells of the prefixes that no row of their sequence sees through its sliding window."""
    starts = _first_rows(rows.sequences)
    behind = np.minimum.reduceat(np.maximum(rows.positions - (window - 1), 0), starts)
    return int(np.minimum(behind, np.maximum.reduceat(rows.prefix, starts)).sum())


def _first_rows(sequences: Int32) -> npt.NDArray[np.intp]:
    """The first row of each sequence; rows of one are adjacent."""
    return np.concatenate([[0], np.flatnonzero(sequences[1:] != sequences[:-1]) + 1])
