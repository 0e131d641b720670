"""Time of the experts of one MoE layer on a machine with HB: the analytic formula that `cycle.py` checks.

Mapping (paper, "coupled vs decoupled memory"): weights in HB are split over the PEs by output column and activations
replicated (tensor parallel, because a bank belongs to its PE); weights from EXT are broadcast to all PEs over the
streamline and rows split (data parallel). An expert whose MSB plane is in HB and whose LSB plane comes from EXT is
multiplied both ways at once; partial sums meet over the aggregation link. All resources work at the same time, so the
slowest one sets the pace. Knows nothing about models, schemes or caches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.sim.spec import Compute, Machine

Floats = npt.NDArray[np.float64]

PSUM_BYTES = 4
"""Partial sums travel as FP32 (or INT32)."""
ACTIVATION_BYTES = 1


@dataclass(frozen=True)
class ExpertWork:
    """The experts that one layer's pass computes; arrays broadcast to [N] evaluated points.

    A *hit* has (part of) its weights in HB, a *miss* none. `rows` are (token, expert) pairs, spread evenly; `tokens` the rows of the layer's input.
    """

    hits: Floats
    misses: Floats
    rows: Floats
    tokens: Floats
    hidden: int
    expert_hidden: int
    hb_bytes: float
    """Per hit, read from HB."""
    hit_ext_bytes: float
    """Per hit, read from EXT beside it: the LSB plane, or 0."""
    miss_bytes: float
    hb_bits: int
    """Weight bits multiplied from HB: 8 or 4."""
    miss_bits: int

    @property
    def rows_per_expert(self) -> Floats:
        """Rows of each distinct expert."""
        return self.rows / np.maximum(self.hits + self.misses, 1e-300)


@dataclass(frozen=True)
class Resources:
    """Busy time of each resource in ns, and what moved. Arrays [N]; sums over whatever was added up."""

    ext_ns: Floats
    hb_ns: Floats
    pe_ns: Floats
    link_ns: Floats
    ext_bytes: Floats
    hb_bytes: Floats
    link_bytes: Floats
    """Over the aggregation links of all PEs."""
    macs: Floats
    """8-bit equivalents count once, 4-bit ones in `macs_w4`."""
    macs_w4: Floats


def tile_cycles(compute: Compute, rows: Floats, columns: Floats, inputs: float, bits: int) -> Floats:
    """Cycles of one PE for a product of rows x columns x inputs; partial tiles of rows take a whole tile."""
    passes = compute.cycles_w8 if bits == 8 else compute.cycles_w4
    tiles = np.ceil(rows / compute.rows - 1e-9)
    return passes * tiles * (columns / compute.columns) * (inputs / compute.inputs)


def expert_resources(machine: Machine, work: ExpertWork, ext_gb_per_s: float, hb_gb_per_s: float) -> Resources:
    """Busy time of EXT, HB, PEs and links for one layer's experts. Bandwidths are effective GB/s, that is bytes per ns.

    A machine without HB or links is given misses only.
    """
    compute, pes = machine.compute, machine.compute.pes
    hidden, inner, rows = work.hidden, work.expert_hidden, work.rows_per_expert
    weights = 3.0 * hidden * inner
    ext_bytes = work.hits * work.hit_ext_bytes + work.misses * work.miss_bytes
    hb_bytes = work.hits * work.hb_bytes
    split = bool(work.hit_ext_bytes)
    one = np.asarray(1.0)
    tensor = tile_cycles(compute, rows, one * weights / hidden / pes, hidden, work.hb_bits)
    share = rows / pes
    data_hit = tile_cycles(compute, np.maximum(share, np.minimum(rows, 1.0)), one * 3 * inner, hidden, 4)
    data_miss = tile_cycles(compute, np.maximum(share, np.minimum(rows, 1.0)), one * 3 * inner, hidden, work.miss_bits)
    cycles = work.hits * (tensor + (data_hit if split else 0.0)) + work.misses * data_miss
    port_bytes = _port_bytes(work, pes, split) * (work.hits > 0)
    link_ns = np.zeros_like(port_bytes)
    if machine.links is not None:
        link_ns = port_bytes / machine.links.aggregation_gb_per_s
        ext_gb_per_s = min(ext_gb_per_s, machine.links.streamline_gb_per_s)
    hit_macs, miss_macs = work.hits * rows * weights, work.misses * rows * weights
    halves = hit_macs * (2.0 if split else (work.hb_bits == 4)) + miss_macs * (work.miss_bits == 4)
    wholes = hit_macs * (0.0 if split or work.hb_bits == 4 else 1.0) + miss_macs * (work.miss_bits == 8)
    return Resources(
        ext_ns=ext_bytes / ext_gb_per_s,
        hb_ns=hb_bytes / hb_gb_per_s,
        pe_ns=cycles / compute.clock_ghz,
        link_ns=link_ns,
        ext_bytes=ext_bytes,
        hb_bytes=hb_bytes,
        link_bytes=port_bytes * pes,
        macs=wholes,
        macs_w4=halves,
    )


def _port_bytes(work: ExpertWork, pes: int, split: bool) -> Floats:
    """Bytes over the aggregation port of one PE.

    Whole experts in HB: a PE holds the columns of gate and up and the matching inputs of down, sums its partial results
    over the experts of a token, and only these are reduced (scattered), once per token; then the result is gathered.
    Experts split over HB and EXT: MSB sums of gate and up go to the PE that owns the row, all PEs get the activation,
    MSB sums of the result follow.
    """
    reduced = work.tokens * work.hidden * (PSUM_BYTES * (pes - 1) / pes + ACTIVATION_BYTES)
    if not split:
        return reduced
    rows = work.hits * work.rows_per_expert
    inner, hidden = work.expert_hidden, work.hidden
    scattered = rows * (2 * inner + hidden) * PSUM_BYTES / pes
    return scattered + rows * inner * ACTIVATION_BYTES
