"""How the experts of one MoE layer lie over the PEs: tiles, cycles and bytes that fast and cycle mode share.

What either mode adds is when these things happen. Layout (paper, "coupled vs decoupled memory", made definite here):

- Weights in HB are split over the PEs by **output column**, gate, up and down alike, because a bank belongs to its PE;
  all PEs see all rows (tensor parallel). The same bytes serve draft and verify, so the layout is the same in both.
  Splitting down by its inputs instead would cut the quantization groups of 32 inputs (768 / 16 = 48).
- Weights from EXT are broadcast over the streamline; the rows of an expert are dealt evenly to the PEs, which own them
  (data parallel). The PE with the most rows sets the pace.
- A port of the aggregation network sends and receives at once and multicasts; the busiest direction of the busiest
  port counts, which is receiving.

Not modelled: where activations wait between layers. A weight tile in WMEM serves all blocks of `rows` rows of its
expert before it is dropped, so weights are read once; IOMEM holds two such blocks (one in use, one arriving) with
their partial sums, which bounds the tiles in a half, and bringing them in is not charged. Knows nothing about the
bandwidth of memories, schedules or time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError
from elmoe.sim.spec import Compute, Machine

Floats = npt.NDArray[np.float64]

PSUM_BYTES = 4
"""Partial sums travel as FP32 (or INT32)."""
ACTIVATION_BYTES = 1
GATE_UP, DOWN = 0, 1
"""The two steps of an expert: gate and up together, then down."""
STEPS = ("gate/up", "down")
ROUNDING = 1e-9


def whole(value: Floats) -> Floats:
    """The next integer, forgiving rounding errors."""
    return np.ceil(value - ROUNDING)


def tile_cycles(compute: Compute, rows: Floats, columns: Floats, inputs: float, bits: int) -> Floats:
    """Cycles of one PE for a product of rows x columns x inputs; partial tiles take as long as whole ones."""
    passes = compute.cycles_w8 if bits == 8 else compute.cycles_w4
    tiles = whole(np.asarray(columns / compute.columns)) * whole(np.asarray(inputs / compute.inputs))
    return passes * whole(rows / compute.rows) * tiles


@dataclass(frozen=True)
class Dataflow:
    """Experts of `hidden` x `inner` on a machine. Rows are of one expert, any shape; times in ns."""

    machine: Machine
    hidden: int
    inner: int

    @property
    def pes(self) -> int:
        """Number of PEs, and of HB banks."""
        return self.machine.compute.pes

    @property
    def remote(self) -> float:
        """Share of what a PE needs that other PEs hold."""
        return (self.pes - 1) / self.pes

    @property
    def half_bytes(self) -> int:
        """Of WMEM: one half of the buffer of one stream. HB and EXT have a buffer each where there is HB."""
        streams = 1 if self.machine.hb is None else 2
        return self.machine.compute.wmem_bytes // (2 * streams)

    def shape(self, step: int) -> tuple[int, int]:
        """Output columns and inputs of gate/up or down."""
        return (2 * self.inner, self.hidden) if step == GATE_UP else (self.hidden, self.inner)

    def tensor_tiles(self, step: int) -> int:
        """Weight tiles per PE of an expert that lies in HB."""
        columns, inputs = self.shape(step)
        return self._tiles(columns / self.pes, inputs)

    def data_tiles(self, step: int) -> int:
        """Weight tiles that every PE sees of an expert from EXT."""
        return self._tiles(*self.shape(step))

    def _tiles(self, columns: float, inputs: int) -> int:
        compute = self.machine.compute
        return int(whole(np.asarray(columns / compute.columns)) * whole(np.asarray(inputs / compute.inputs)))

    def tile_bytes(self, expert_bytes: float) -> float:
        """Of one weight tile with its scales, in a memory that holds `expert_bytes` of every expert."""
        compute = self.machine.compute
        return expert_bytes / (3 * self.hidden * self.inner) * compute.columns * compute.inputs

    def tensor_tile_ns(self, rows: Floats, bits: int) -> Floats:
        """All rows against one tile."""
        compute = self.machine.compute
        return tile_cycles(compute, rows, np.asarray(compute.columns), compute.inputs, bits) / compute.clock_ghz

    def data_tile_ns(self, rows: Floats, bits: int) -> Floats:
        """A PE's own rows against one tile."""
        return self.tensor_tile_ns(self.own_rows(rows), bits)

    def load_cycles(self, tile_bytes: float) -> int:
        """Words of WMEM's port per weight tile: how many cycles lie between two tiles at least. 0: not modelled."""
        port = self.machine.compute.wmem_port_bytes
        return math.ceil(tile_bytes / port - ROUNDING) if port else 0

    def load_ns(self, tile_bytes: float) -> float:
        """A weight tile from WMEM into the array's registers, beside the products of the tile before."""
        return self.load_cycles(tile_bytes) / self.machine.compute.clock_ghz

    def paced_ns(self, tile_ns: Floats, expert_bytes: float) -> Floats:
        """Between two tiles of a stream: products, or weights on their way from WMEM."""
        return np.maximum(tile_ns, self.load_ns(self.tile_bytes(expert_bytes)))

    @property
    def pipeline_ns(self) -> float:
        """From a tile's last pass to its sums."""
        return self.machine.compute.pipeline_cycles / self.machine.compute.clock_ghz

    def tiles_per_half(self, tile_bytes: float) -> int:
        """Weight tiles in one half of a WMEM buffer: what it holds, but no more than IOMEM has operands for.

        Where WMEM's port is modelled tiles begin with a word of their own. ConfigError where not even one tile fits.
        """
        compute = self.machine.compute
        tile_bytes = max(tile_bytes, self.load_cycles(tile_bytes) * compute.wmem_port_bytes)
        held = int(self.half_bytes / tile_bytes)
        if held < 1:
            raise ConfigError(
                f"compute.wmem_bytes = {compute.wmem_bytes}: half a buffer is {self.half_bytes} bytes, a weight tile "
                f"{tile_bytes:.0f}; make WMEM larger or the array smaller"
            )
        block_bytes = compute.iomem_bytes / 2 / compute.rows - compute.columns * PSUM_BYTES  # per row of a block
        fed = int(block_bytes / (compute.inputs * ACTIVATION_BYTES))
        if fed < 1:
            raise ConfigError(
                f"compute.iomem_bytes = {compute.iomem_bytes}: two blocks of {compute.rows} rows with the inputs and "
                "sums of one weight tile do not fit; make IOMEM larger or the array smaller"
            )
        return held if fed * compute.inputs >= max(self.hidden, self.inner) else min(held, fed)

    def own_rows(self, rows: Floats) -> Floats:
        """Rows of the PE that has the most."""
        return whole(rows / self.pes)

    def sums_bytes(self, rows: Floats) -> Floats:
        """Into one port: partial sums of gate and up from HB, to the PE that owns the row."""
        return self.own_rows(rows) * 2 * self.inner * PSUM_BYTES * self.remote

    def owned_gather_bytes(self, rows: Floats) -> Floats:
        """Into one port: the activations of rows that others own."""
        return (rows - np.floor(rows / self.pes + ROUNDING)) * self.inner * ACTIVATION_BYTES

    def column_gather_bytes(self, rows: Floats) -> Floats:
        """Into one port: the activation columns that others hold."""
        return rows * self.inner * ACTIVATION_BYTES * self.remote

    def scatter_bytes(self, rows: Floats) -> Floats:
        """Into one port: partial sums of down from HB, to the PE that owns the row."""
        return self.own_rows(rows) * self.hidden * PSUM_BYTES * self.remote

    def output_bytes(self, tokens: Floats, whole_hits: Floats, misses: Floats) -> Floats:
        """Into one port at the end of the layer: all PEs get the result.

        Experts computed wholly from HB leave a token's result spread by column and sum there; others leave it with the
        owner of the row. Where a layer has both, the owners' sums go to the columns first.
        """
        gathered = tokens * self.hidden * ACTIVATION_BYTES * self.remote
        merged = tokens * self.hidden * PSUM_BYTES / self.pes * self.remote
        return gathered + merged * ((whole_hits > 0) & (misses > 0))

    def split_total_bytes(self, rows: Floats) -> Floats:
        """Received by all ports for an expert split over HB and EXT."""
        sums = (2 * self.inner + self.hidden) * PSUM_BYTES * self.remote
        return rows * (sums + self.inner * ACTIVATION_BYTES * (self.pes - 1))

    def whole_total_bytes(self, rows: Floats) -> Floats:
        """Received by all ports for an expert that lies wholly in HB."""
        return self.column_gather_bytes(rows) * self.pes

    def owned_vector_ns(self, rows: Floats) -> Floats:
        """SiLU, product and requantization of a PE's own rows; the vector unit has one lane per array column."""
        return self._vector_ns(self.own_rows(rows), self.inner)

    def column_vector_ns(self, rows: Floats) -> Floats:
        """The same for a PE's own columns of all rows."""
        return self._vector_ns(whole(rows), self.inner / self.pes)

    def _vector_ns(self, rows: Floats, elements: float) -> Floats:
        compute = self.machine.compute
        return rows * whole(np.asarray(elements / compute.columns)) / compute.clock_ghz

    def link_ns(self, port_bytes: Floats) -> Floats:
        """Time of one port; machines without links keep rows with their owners and send nothing."""
        links = self.machine.links
        return np.zeros_like(port_bytes) if links is None else port_bytes / links.aggregation_gb_per_s

    def ext_rate(self, ext_gb_per_s: float) -> float:
        """Bytes per ns that reach the WMEMs: of the memory, or of the streamline that carries them."""
        links = self.machine.links
        return ext_gb_per_s if links is None else min(ext_gb_per_s, links.streamline_gb_per_s)
