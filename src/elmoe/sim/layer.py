"""Time of the experts of one MoE layer: the closed formula that the cycle mode (`cycle.py`) checks.

Layout and costs per tile are `dataflow.py`'s. All resources work at the same time, so the slowest one sets the pace;
what is added is what nothing hides: filling the first half of WMEM or reading the last, the exchanges of the first and
the last expert, and the layer's result going to all PEs. Experts that differ in rows may each have another slowest
resource. Knows nothing about models, schemes, caches or events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.sim.dataflow import DOWN, GATE_UP, Dataflow
from elmoe.sim.spec import Machine

Floats = npt.NDArray[np.float64]

GATE_UP_SHARE, DOWN_SHARE = 2 / 3, 1 / 3
"""Of an expert's weights."""
LSB_BITS = 4


@dataclass(frozen=True)
class ExpertWork:
    """The experts that one layer's pass computes; arrays broadcast to [N] evaluated points.

    A *hit* has (part of) its weights in HB, a *miss* none. `rows` are (token, expert) pairs; `tokens` the rows of the
    layer's input. Rows are spread evenly over the experts unless `hit_rows` and `miss_rows` say otherwise.
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
    hit_rows: Floats | None = None
    """[N, X] rows of each hit in schedule order, zeros behind the last."""
    miss_rows: Floats | None = None

    @property
    def rows_per_expert(self) -> Floats:
        """Rows of each distinct expert, spread evenly."""
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
    exposed_ns: Floats | float = 0.0
    """What the layer takes beyond its slowest resource."""


def layer_ns(found: Resources) -> Floats:
    """Time of the layer: the slowest resource, and what nothing hides."""
    return _most(found.ext_ns, found.hb_ns, found.pe_ns, found.link_ns) + found.exposed_ns


@dataclass(frozen=True)
class _Experts:
    """Hits or misses in schedule order, [N, X]: X kinds that follow one another, `count` of each. Times in ns each."""

    count: Floats
    rows: Floats
    ext_ns: Floats | float
    hb_ns: Floats | float
    pe_ns: Floats
    link_ns: Floats
    vector_ns: Floats
    wait_ns: Floats
    """From the last product of gate/up to the first of down on the stream that sets the pace."""
    lone_ns: Floats | float
    """Gate/up before the first exchange and down after the last, on the stream that exchanges."""
    half_ns: float
    """Fetching half a WMEM buffer of that stream."""
    half_pe_ns: Floats
    """Multiplying it."""

    @property
    def number(self) -> Floats:
        """[N] experts."""
        return self.count.sum(axis=-1)

    def total(self, each: Floats) -> Floats:
        """[N] over all experts."""
        return (self.count * each).sum(axis=-1)

    def chain_ns(self, slower: Floats | float = 1.0, until: Floats | float = 0.0) -> Floats:
        """[N] from the first weight fetched to the last product.

        Products take `slower` times as long (both [N]) until another stream that comes first on the array has ended.
        """
        even = self.count.shape[-1] == 1
        chain = self._even_chain(slower, until) if even else self._ragged_chain(slower, until)
        edge = np.minimum(self.half_ns, self.half_pe_ns)
        return chain + self._last(edge) * np.minimum(self.number, 1.0)

    def _ragged_chain(self, slower: Floats | float, until: Floats | float) -> Floats:
        """Expert by expert in the order of `cycle.py`: gate/up of the next expert, then down when its exchange is over.

        While down waits both halves fill, which is made up for when the wait is over.
        """
        alone, link = self._stream_ns(1.0) * self.count, self.link_ns * self.count
        beside = self._stream_ns(np.asarray(slower)[..., None]) * self.count
        hidden = self._slack_ns + np.maximum(self.vector_ns + self.link_ns - self.wait_ns, 0.0)

        def step(now: Floats, share: float, i: int) -> Floats:
            return now + _until(until - now, share * beside[..., i], share * alone[..., i])

        now = step(np.zeros_like(alone[..., 0]), GATE_UP_SHARE, 0)
        sent = now + self.vector_ns[..., 0] + link[..., 0]
        for i in range(alone.shape[-1]):
            arrived = sent - hidden[..., i]
            if i + 1 < alone.shape[-1]:
                now = step(now, GATE_UP_SHARE, i + 1)
                sent = np.maximum(sent, now + self.vector_ns[..., i + 1]) + link[..., i + 1]
            now = step(np.maximum(now, arrived), DOWN_SHARE, i)
        return now

    def _even_chain(self, slower: Floats | float, until: Floats | float) -> Floats:
        """The same for equal experts, however many: weights without gaps, or exchanges without gaps.

        Weights have gaps where the first and the last down wait: behind the first is the second gate/up, behind the
        last the down before it.
        """
        stream = self._stream_ns(1.0)
        any_expert, others = np.minimum(self.number, 1.0), np.clip(self.number - 1, 0.0, 1.0)
        first = (self.wait_ns - GATE_UP_SHARE * stream)[..., 0]
        last = (self.wait_ns - self._slack_ns)[..., 0] - others * DOWN_SHARE * stream[..., 0]
        waits = any_expert * np.maximum(last, 0.0) + others * np.maximum(first, 0.0)
        by_link = self.total(self.link_ns) + any_expert * (self.vector_ns + self.lone_ns)[..., 0]
        beside = self.total(self._stream_ns(np.asarray(slower)[..., None]))
        return _most(_until(until, beside, self.total(stream)) + waits, by_link)

    def _stream_ns(self, slower: Floats | float) -> Floats:
        return _most(self.ext_ns, self.hb_ns, self.pe_ns * slower)

    @property
    def _slack_ns(self) -> Floats:
        return 2 * np.maximum(self.half_ns - self.half_pe_ns, 0.0)

    def _last(self, each: Floats) -> Floats:
        """[N] of the last expert."""
        index = np.maximum((self.count > 0).sum(axis=-1) - 1, 0)
        return np.take_along_axis(np.broadcast_to(each, self.count.shape), index[..., None], axis=-1)[..., 0]


def expert_resources(machine: Machine, work: ExpertWork, ext_gb_per_s: float, hb_gb_per_s: float) -> Resources:
    """Busy time of EXT, HB, PEs and links for one layer's experts. Bandwidths are effective GB/s, that is bytes per ns.

    A machine without HB or links is given misses only. ConfigError where its WMEM or IOMEM is too small.
    """
    flow = Dataflow(machine, work.hidden, work.expert_hidden)
    ext_rate, split = flow.ext_rate(ext_gb_per_s), work.hit_ext_bytes > 0
    hits = (_split_hits if split else _whole_hits)(flow, work, ext_rate, hb_gb_per_s)
    misses = _misses(flow, work, ext_rate)
    whole_hits = np.zeros_like(work.hits) if split else work.hits
    output_bytes = flow.output_bytes(work.tokens, whole_hits, work.misses) * (hits.number + misses.number > 0)
    output_ns = flow.link_ns(output_bytes)
    ext_bytes = work.hits * work.hit_ext_bytes + work.misses * work.miss_bytes
    hb_bytes = work.hits * work.hb_bytes
    busy = {
        "ext_ns": ext_bytes / ext_rate,
        "hb_ns": hb_bytes / hb_gb_per_s,
        "pe_ns": hits.total(hits.pe_ns) + misses.total(misses.pe_ns),
        "link_ns": hits.total(hits.link_ns) + output_ns,
    }
    both = hits.chain_ns() + misses.chain_ns() if split else _beside(hits, misses)
    received = (flow.split_total_bytes if split else flow.whole_total_bytes)(hits.rows)
    macs, macs_w4 = _macs(work, hits.total(hits.rows), misses.total(misses.rows))
    return Resources(
        **busy,
        ext_bytes=ext_bytes,
        hb_bytes=hb_bytes,
        link_bytes=hits.total(received) + output_bytes * flow.pes * (machine.links is not None),
        macs=macs,
        macs_w4=macs_w4,
        exposed_ns=np.maximum(both + output_ns - _most(*busy.values()), 0.0),
    )


def _beside(hits: _Experts, misses: _Experts) -> Floats:
    """[N] whole hits from HB beside misses from EXT, which come first on the array and leave the hits what remains."""
    misses_ns = misses.chain_ns()
    left = 1.0 - misses.total(misses.pe_ns) / np.maximum(misses_ns, 1e-300)
    return np.maximum(misses_ns, hits.chain_ns(1.0 / np.maximum(left, 1e-9), misses_ns))


def _until(span: Floats | float, beside: Floats, alone: Floats) -> Floats:
    """Time of work that takes `beside` as long as the `span` lasts and `alone` after it."""
    inside = np.clip(span, 0.0, beside)
    return inside + (1.0 - inside / np.maximum(beside, 1e-300)) * alone


def _macs(work: ExpertWork, hit_rows: Floats, miss_rows: Floats) -> tuple[Floats, Floats]:
    """8-bit and 4-bit multiply-accumulates; a split expert takes two of 4 bits, one for each plane."""
    weights = 3.0 * work.hidden * work.expert_hidden
    hit_passes = 2.0 if work.hit_ext_bytes > 0 else 1.0
    hit_macs, miss_macs = hit_rows * weights * hit_passes, miss_rows * weights
    hit_w4 = work.hit_ext_bytes > 0 or work.hb_bits == 4
    macs_w4 = hit_macs * hit_w4 + miss_macs * (work.miss_bits == 4)
    return hit_macs + miss_macs - macs_w4, macs_w4


def _rows(work: ExpertWork, number: Floats, ragged: Floats | None) -> tuple[Floats, Floats]:
    """Count and rows [N, X] of hits or misses."""
    if ragged is not None:
        return (ragged > 0).astype(np.float64), ragged
    rows = np.where(number > 0, work.rows_per_expert, 0.0)
    return np.broadcast_to(np.asarray(number, dtype=np.float64), rows.shape)[..., None], rows[..., None]


def _misses(flow: Dataflow, work: ExpertWork, ext_rate: float) -> _Experts:
    count, rows = _rows(work, work.misses, work.miss_rows)
    tile_ns = flow.paced_ns(flow.data_tile_ns(rows, work.miss_bits), work.miss_bytes)
    half = _half(flow, work.miss_bytes, ext_rate, flow.data_tiles)
    return _Experts(
        count=count,
        rows=rows,
        ext_ns=work.miss_bytes / ext_rate + half.gaps_ns(tile_ns),
        hb_ns=0.0,
        pe_ns=tile_ns * (flow.data_tiles(GATE_UP) + flow.data_tiles(DOWN)),
        link_ns=np.zeros_like(rows),
        vector_ns=flow.owned_vector_ns(rows),
        wait_ns=flow.pipeline_ns + flow.owned_vector_ns(rows),
        lone_ns=0.0,
        half_ns=half.fetch_ns,
        half_pe_ns=half.tiles * tile_ns,
    )


def _whole_hits(flow: Dataflow, work: ExpertWork, _: float, hb_rate: float) -> _Experts:
    count, rows = _rows(work, work.hits, work.hit_rows)
    tile_ns = flow.paced_ns(flow.tensor_tile_ns(rows, work.hb_bits), work.hb_bytes)
    half = _half(flow, work.hb_bytes, hb_rate / flow.pes, flow.tensor_tiles)
    link_ns, vector_ns = flow.link_ns(flow.column_gather_bytes(rows)), flow.column_vector_ns(rows)
    hb_ns = work.hb_bytes / hb_rate + half.gaps_ns(tile_ns)
    pe_ns = tile_ns * (flow.tensor_tiles(GATE_UP) + flow.tensor_tiles(DOWN))
    return _Experts(
        count=count,
        rows=rows,
        ext_ns=0.0,
        hb_ns=hb_ns,
        pe_ns=pe_ns,
        link_ns=link_ns,
        vector_ns=vector_ns,
        wait_ns=flow.pipeline_ns + vector_ns + link_ns,
        lone_ns=np.maximum(hb_ns, pe_ns),
        half_ns=half.fetch_ns,
        half_pe_ns=half.tiles * tile_ns,
    )


def _split_hits(flow: Dataflow, work: ExpertWork, ext_rate: float, hb_rate: float) -> _Experts:
    """EXT sets the pace: HB is ahead, so its sums have arrived when the LSB products are done."""
    count, rows = _rows(work, work.hits, work.hit_rows)
    tile_ns = flow.paced_ns(flow.data_tile_ns(rows, LSB_BITS), work.hit_ext_bytes)
    half = _half(flow, work.hit_ext_bytes, ext_rate, flow.data_tiles)
    tensor_tile_ns = flow.paced_ns(flow.tensor_tile_ns(rows, work.hb_bits), work.hb_bytes)
    tensor_ns = tensor_tile_ns * (flow.tensor_tiles(GATE_UP) + flow.tensor_tiles(DOWN))
    port = flow.sums_bytes(rows) + flow.owned_gather_bytes(rows) + flow.scatter_bytes(rows)
    return _Experts(
        count=count,
        rows=rows,
        ext_ns=work.hit_ext_bytes / ext_rate + half.gaps_ns(tile_ns),
        hb_ns=work.hb_bytes / hb_rate,
        pe_ns=tensor_ns + tile_ns * (flow.data_tiles(GATE_UP) + flow.data_tiles(DOWN)),
        link_ns=flow.link_ns(port),
        vector_ns=flow.owned_vector_ns(rows),
        wait_ns=flow.pipeline_ns + flow.owned_vector_ns(rows),
        lone_ns=work.hb_bytes / hb_rate,
        half_ns=half.fetch_ns,
        half_pe_ns=half.tiles * tile_ns,
    )


@dataclass(frozen=True)
class _Half:
    """One half of a WMEM buffer, full."""

    tiles: int
    fetch_ns: float
    rest: tuple[int, int]
    """Tiles of the last half of gate/up and of down."""

    def gaps_ns(self, tile_ns: Floats) -> Floats:
        """Of the memory, per expert: a nearly empty half arrives before the one ahead of it has been read."""
        gaps = [
            np.maximum(self.tiles * tile_ns - rest / self.tiles * self.fetch_ns, 0.0)
            for rest in self.rest
            if rest < self.tiles
        ]
        return np.sum(np.broadcast_arrays(0.0 * tile_ns, *gaps), axis=0)


def _half(flow: Dataflow, expert_bytes: float, gb_per_s: float, tiles: Callable[[int], int]) -> _Half:
    """Of a stream that brings `expert_bytes` of every expert to all PEs, `tiles` per step."""
    if not expert_bytes:
        return _Half(1, 0.0, (1, 1))
    tile_bytes = flow.tile_bytes(expert_bytes)
    most = flow.tiles_per_half(tile_bytes)
    gate_up, down = ((tiles(step) - 1) % most + 1 for step in (GATE_UP, DOWN))
    return _Half(most, most * tile_bytes / gb_per_s, (gate_up, down))


def _most(*times: Floats | float) -> Floats:
    return np.maximum.reduce(np.broadcast_arrays(*times))
