"""Cycle mode: the experts of one MoE layer, tile by tile, on a machine with HB (elmoe-3d, hb-xpu) or without (xpu).

What `layer.py` says in closed form, played through event by event, with rows per expert as a router draws them.
Layout and costs per tile are `dataflow.py`'s. What is specified here is order:

- **Streams.** HB and EXT each fetch their own list of weights in schedule order, without gaps as long as one of the two
  halves of their WMEM buffer is free (prefetch is bounded by that and nothing else; it does not reach into the layer
  before). All banks of HB move in step, as every expert's slices are equally long. EXT is one stream for all PEs.
- **Schedule.** `grouped`: hits by ascending expert index, then misses. `interleaved`: all by expert index. In both, the
  gate and up projections of an expert come before the down projection of its predecessor, which gives exchanges time
  to hide in; IOMEM holds the activations of both.
- **Array.** EXT first (it is the scarce resource), HB in the gaps, switching at tile boundaries. Where HB sets the pace
  and products fill the array, a faster EXT can therefore cost a percent. A machine that says how wide WMEM's port is
  (`wmem_port_bytes`) loads a tile word by word while the one before is multiplied, to the cycle as the RTL does.
- **Link and vector unit.** First come, first served.
- **Dependencies.** Split expert (MSB in HB, LSB from EXT): HB sums of gate and up go to the row owners; when they and
  the LSB products are there, SiLU and requantization; the owners go on with the LSB of down, and send the activations
  to all PEs for the MSB of down, whose sums come back. Whole expert in HB: vector unit on the PE's columns, exchange
  of columns, down. Miss: everything stays with the row owners. When all is done the layer's result goes to all PEs.

One PE is played, the one that owns the most rows (rows are dealt from PE 0 on, so it is the same for every expert): the
others do the same things in the same order and none of them later. Memories serve at the rates that are passed in, the
DRAM model's average for the chunk length; single row conflicts are below what a half of WMEM can show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elmoe.errors import ConfigError
from elmoe.sim.dataflow import DOWN, GATE_UP, Dataflow
from elmoe.sim.layer_pass import LayerPass
from elmoe.sim.pe import Action, Agenda, Array, Event, Stream, Task, Unit
from elmoe.sim.spec import Machine

EXT, HB, PE, VECTOR, LINK = RESOURCES = ("EXT", "HB", "PE", "VECTOR", "LINK")


@dataclass(frozen=True)
class LayerTiming:
    """What came out of a run."""

    total_ns: float
    busy_ns: dict[str, float]
    """By resource (RESOURCES); of one PE, its bank and its port."""
    ext_bytes: int
    hb_bytes: int
    link_bytes: float
    """Received by the ports of all PEs."""
    macs_w8: int
    macs_w4: int
    events: list[Event]

    def resolved(self) -> dict[str, Any]:
        """Everything but the events."""
        return {name: value for name, value in vars(self).items() if name != "events"}


def simulate_layer(
    machine: Machine, layer: LayerPass, ext_gb_per_s: float, hb_gb_per_s: float = 0.0, order: str = "grouped"
) -> LayerTiming:
    """Play one layer through. Bandwidths are effective GB/s of all channels (bytes per ns); hb_gb_per_s only with HB.

    Raises ConfigError for hits on a machine without HB, an unknown order, or buffers that hold no tile.
    """
    if machine.hb is None and any(layer.hits):
        raise ConfigError(f"{machine.name} has no HB; every expert must be a miss")
    return _Run(machine, layer, ext_gb_per_s, hb_gb_per_s).play(layer.schedule(order))


class _Run:
    """One run: the resources, and what becomes possible when something is done."""

    def __init__(self, machine: Machine, layer: LayerPass, ext_gb_per_s: float, hb_gb_per_s: float) -> None:
        self.layer = layer
        self.flow = Dataflow(machine, layer.hidden, layer.expert_hidden)
        self.agenda = Agenda()
        self.events: list[Event] = []
        self.ext = Stream(EXT, self.flow.ext_rate(ext_gb_per_s), self.agenda, self.events)
        self.hb = Stream(HB, hb_gb_per_s, self.agenda, self.events)
        streams, clock_ghz = [self.ext, self.hb], machine.compute.clock_ghz
        self.array = Array(streams, clock_ghz, self.flow.pipeline_ns, self.agenda, self.events)
        self.vector = Unit(VECTOR, self.agenda, self.events)
        self.link = Unit(LINK, self.agenda, self.events)
        self.link_bytes = 0.0
        self.pending = 0

    def play(self, schedule: Sequence[int]) -> LayerTiming:
        experts = [self._expert(index) for index in schedule]
        self.pending = len(experts)
        for now, before in zip([*experts, None], [None, *experts], strict=True):
            # Down of the expert before comes second, to leave its exchange the time of a projection.
            for expert, step in ((now, GATE_UP), (before, DOWN)):
                for stream, task, tiles_per_half in expert[step] if expert is not None else ():
                    stream.add(task, tiles_per_half)
        for stream in self.array.streams:
            stream.fetch(0.0)
        total = self.agenda.run()
        assert self.pending == 0, "an expert waits for something that never happens"
        units: tuple[Stream | Array | Unit, ...] = (self.ext, self.hb, self.array, self.vector, self.link)
        return LayerTiming(
            total_ns=total,
            busy_ns={name: unit.busy_ns for name, unit in zip(RESOURCES, units, strict=True)},
            ext_bytes=self.ext.moved_bytes,
            hb_bytes=self.hb.moved_bytes,
            link_bytes=self.link_bytes,
            macs_w8=self.array.macs[8],
            macs_w4=self.array.macs[4],
            events=self.events,
        )

    def _expert(self, index: int) -> list[list[tuple[Stream, Task, int]]]:
        """Tasks of gate/up and of down, each with its stream and the tiles that fit half a buffer."""
        if not self.layer.hits[index]:
            return _Miss(self, index).tasks()
        return _Split(self, index).tasks() if self.layer.split else _Whole(self, index).tasks()

    def finished(self, now: float) -> None:
        """An expert is done; after the last one the layer's result goes to all PEs."""
        self.pending -= 1
        if self.pending or self.flow.machine.links is None:
            return
        chosen = [hit for hit, rows in zip(self.layer.hits, self.layer.rows, strict=True) if rows]
        whole_hits = 0 if self.layer.split else sum(chosen)
        port = self.flow.output_bytes(*(np.asarray(n) for n in (self.layer.tokens, whole_hits, chosen.count(False))))
        self.link_bytes += float(port) * self.flow.pes
        self.link.request(now, float(self.flow.link_ns(port)), ("output", -1, DOWN), _nothing)


def _nothing(now: float) -> None:
    """Nothing follows."""


class _Expert:
    """One expert: its tasks, and the chain of its dependencies. `step` methods are called when something is done."""

    def __init__(self, run: _Run, index: int) -> None:
        self.run, self.index, self.flow = run, index, run.flow
        self.rows = np.asarray(float(run.layer.rows[index]))
        self.open: dict[str, Task] = {}
        self.waits = 2

    def task(self, stream: Stream, step: int, size: int, bits: int, done: Action) -> tuple[Stream, Task, int]:
        """Gate and up are two thirds of an expert."""
        flow, tensor = self.flow, stream is self.run.hb
        weights = flow.shape(step)[0] * flow.shape(step)[1]
        part = size * 2 // 3 if step == GATE_UP else size - size * 2 // 3
        tile_ns = (flow.tensor_tile_ns if tensor else flow.data_tile_ns)(self.rows, bits)
        tiles = (flow.tensor_tiles if tensor else flow.data_tiles)(step)
        macs = int(self.rows) * weights
        tile_bytes = flow.tile_bytes(size)
        load_ns = flow.load_ns(tile_bytes)
        task = Task(self.index, step, tiles, part, macs, bits, float(tile_ns), load_ns, step == GATE_UP, done)
        if step == DOWN:
            self.open[stream.name] = task
        return stream, task, flow.tiles_per_half(tile_bytes)

    def let(self, stream: Stream, now: float) -> None:
        """Down may be multiplied."""
        self.open[stream.name].open = True
        self.run.array.dispatch(now)

    def compute(self, now: float, length_ns: Any, then: Action) -> None:
        self.run.vector.request(now, float(length_ns), ("SiLU", self.index, GATE_UP), then)

    def send(self, now: float, port_bytes: Any, what: tuple[str, int], then: Action) -> None:
        name, step = what
        self.run.link.request(now, float(self.flow.link_ns(port_bytes)), (name, self.index, step), then)

    def joined(self) -> bool:
        """Whether the other of two branches has arrived already."""
        self.waits -= 1
        return self.waits == 0


class _Miss(_Expert):
    """All weights from EXT: nothing leaves the row owners."""

    def tasks(self) -> list[list[tuple[Stream, Task, int]]]:
        run, layer = self.run, self.run.layer
        up = self.task(run.ext, GATE_UP, layer.miss_bytes, layer.miss_bits, self.gated)
        return [[up], [self.task(run.ext, DOWN, layer.miss_bytes, layer.miss_bits, run.finished)]]

    def gated(self, now: float) -> None:
        self.compute(now, self.flow.owned_vector_ns(self.rows), lambda then: self.let(self.run.ext, then))


class _Whole(_Expert):
    """All weights from HB: PEs exchange columns of the activation."""

    def tasks(self) -> list[list[tuple[Stream, Task, int]]]:
        run, layer = self.run, self.run.layer
        run.link_bytes += float(self.flow.whole_total_bytes(self.rows))
        up = self.task(run.hb, GATE_UP, layer.hb_bytes, layer.hb_bits, self.gated)
        return [[up], [self.task(run.hb, DOWN, layer.hb_bytes, layer.hb_bits, run.finished)]]

    def gated(self, now: float) -> None:
        self.compute(now, self.flow.column_vector_ns(self.rows), self.activated)

    def activated(self, now: float) -> None:
        port = self.flow.column_gather_bytes(self.rows)
        self.send(now, port, ("gather", GATE_UP), lambda then: self.let(self.run.hb, then))


class _Split(_Expert):
    """MSB plane from HB, LSB plane from EXT: partial sums meet at the row owners."""

    def tasks(self) -> list[list[tuple[Stream, Task, int]]]:
        run, layer = self.run, self.run.layer
        run.link_bytes += float(self.flow.split_total_bytes(self.rows))
        lsb, msb = (run.ext, layer.hit_ext_bytes, 4), (run.hb, layer.hb_bytes, layer.hb_bits)
        gate_up = [self._part(GATE_UP, lsb, self.summed), self._part(GATE_UP, msb, self.multiplied)]
        return [gate_up, [self._part(DOWN, lsb, self.collected), self._part(DOWN, msb, self.scattered)]]

    def _part(self, step: int, plane: tuple[Stream, int, int], done: Action) -> tuple[Stream, Task, int]:
        stream, size, bits = plane
        return self.task(stream, step, size, bits, done)

    def multiplied(self, now: float) -> None:
        """MSB of gate and up."""
        self.send(now, self.flow.sums_bytes(self.rows), ("sums", GATE_UP), self.summed)

    def summed(self, now: float) -> None:
        if self.joined():
            self.waits = 2
            self.compute(now, self.flow.owned_vector_ns(self.rows), self.activated)

    def activated(self, now: float) -> None:
        self.let(self.run.ext, now)
        port = self.flow.owned_gather_bytes(self.rows)
        self.send(now, port, ("gather", GATE_UP), lambda then: self.let(self.run.hb, then))

    def scattered(self, now: float) -> None:
        """MSB of down."""
        self.send(now, self.flow.scatter_bytes(self.rows), ("scatter", DOWN), self.collected)

    def collected(self, now: float) -> None:
        if self.joined():
            self.run.finished(now)
