"""The PE: rows x columns lanes, weight columns that the rows share, and the sequencer between WMEM, IOMEM and results.

Weights are stationary: a tile is loaded into shadow registers, word by word, while the one before it is multiplied, and
`advance` makes it active. In cycles, with L words per tile, C = blocks x passes and a tile's words there from R on:

    advance[i+1] = max(max(advance[i], R[i+1]) + L[i+1], advance[i] + C[i])

which is what `sim/pe.py` computes. Streams are ready/valid. Data registers have no reset.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, ClockSignal, Instance, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from elmoe.rtl import scale
from elmoe.rtl.designs import ACTIVATION_BITS, GROUP, Design, Precision
from elmoe.rtl.dot import DOT_LATENCY, Dot32, WeightColumn, delayed
from elmoe.rtl.tile import ACCUMULATE_CYCLES, HALF_BITS, PIPELINE_CYCLES, PLANE_BITS, PeShape

ADDEND_CYCLES = scale.SCALE_LATENCY + scale.TERM_LATENCY
READ_CYCLES = ADDEND_CYCLES - 1
WRITE_CYCLES = ADDEND_CYCLES + scale.ADD_LATENCY
assert DOT_LATENCY == scale.SCALE_LATENCY
assert WRITE_CYCLES + 1 == PIPELINE_CYCLES

JOB = data.StructLayout({"groups": 16, "column_tiles": 16, "blocks": 8, "wide": 1})
"""One matrix product (`tile.Job`); `wide` is W8."""


class Lane(wiring.Component):
    """One cell of the array: dot product, group scale, and the running FP32 sums of its output in every slot.

    Operands and scales come together; READ_CYCLES later read_slot, ADDEND_CYCLES first, WRITE_CYCLES write, write_slot.
    """

    def __init__(self, design: Design, structural: bool, slots: int) -> None:
        self.design, self.structural, self.slots = design, structural, slots
        ports = {"activations": In(ACTIVATION_BITS * GROUP), "fields": In(design.field_bits * GROUP)}
        ports |= {"enable": In(1), "clear": In(1), "msb": In(1)}
        ports |= {"weight_scale": In(scale.HALF_BITS), "activation_scale": In(32), "first": In(1), "write": In(1)}
        ports |= {name: In(range(slots)) for name in ("read_slot", "write_slot", "out_slot")}
        super().__init__(ports | {"out": Out(32)})

    def elaborate(self, _: object) -> Module:
        """Build it."""
        m = Module()
        m.submodules.dot = dot = Dot32(self.design, self.structural)
        m.submodules.scale = scaled = scale.ScaleAccumulate(self.structural)
        sums = Array(Signal(32, reset_less=True, name=f"sum{k}") for k in range(self.slots))
        for name in ("activations", "fields", "enable", "clear", "msb"):
            m.d.comb += getattr(dot, name).eq(getattr(self, name))
        for name in ("weight_scale", "activation_scale", "first"):
            m.d.comb += getattr(scaled, name).eq(getattr(self, name))
        addend = Signal(32, reset_less=True)
        m.d.sync += addend.eq(sums[self.read_slot])
        m.d.comb += [
            scaled.group_sum.eq(dot.accumulator[: scale.SUM_BITS].as_signed()),
            scaled.addend.eq(addend),
            self.out.eq(sums[self.out_slot]),
        ]
        with m.If(self.write):
            m.d.sync += sums[self.write_slot].eq(scaled.total)
        return m


class _Tile:
    """The tile in the shadow registers, and the word of it that is on its way."""

    def __init__(self, shape: PeShape) -> None:
        self.word = Signal(range(shape.tile_words(Precision.W8)))
        self.taken = Signal()
        self.loaded = Signal()
        self.wide = Signal()
        self.first = Signal()
        """Group of its column tile."""
        self.last = Signal()
        self.advance = Signal()
        self.bank = Signal()
        """Of accumulators, that its column tile is summed in."""
        self.bank_busy = Signal()


class _Pass:
    """The active tile, and the pass that its columns and a block of rows are making."""

    def __init__(self, shape: PeShape) -> None:
        self.valid = Signal()
        self.second = Signal()
        self.last = Signal()
        """Of its block."""
        self.ends = Signal()
        """The last one of the tile."""
        self.taken = Signal()
        """The next block's activations arrive."""
        self.block = Signal(range(shape.row_blocks))
        self.wide = Signal()
        self.first = Signal()
        self.final = Signal()
        self.bank = Signal()


class Pe(wiring.Component):
    """See the module. `lanes` names the module of an emitted lane to instantiate; None builds behavioural ones inside.

    job, weights (WMEM) and activations (IOMEM) stream in, results out (`tile.Operands`). advanced pulses when a tile
    becomes active, finished when its sums are in the accumulators.
    """

    def __init__(self, design: Design, shape: PeShape, lanes: str | None = None) -> None:
        self.design, self.shape, self.lanes = design, shape, lanes
        row_bits = ACTIVATION_BITS * GROUP + 32
        super().__init__(
            {
                "job": In(stream.Signature(JOB)),
                "weights": In(stream.Signature(shape.port_bits)),
                "activations": In(stream.Signature(shape.rows * row_bits)),
                "results": Out(stream.Signature(32 * shape.columns)),
                "advanced": Out(1),
                "finished": Out(1),
            }
        )

    def elaborate(self, _: object) -> Module:
        """Build it."""
        m = Module()
        tile, current, out_slot = _Tile(self.shape), _Pass(self.shape), Signal(range(self.shape.slots))
        self._load(m, tile)
        self._issue(m, tile, current)
        outs = self._array(m, tile, current, out_slot)
        self._drain(m, tile, current, outs, out_slot)
        return m

    def _load(self, m: Module, tile: _Tile) -> None:
        """Words into shadow registers; which group and column tile they are of."""
        job = self.job.payload
        group, column_tile = Signal(16), Signal(16)
        words = Mux(job.wide, self.shape.tile_words(Precision.W8), self.shape.tile_words(Precision.W4))
        m.d.comb += [
            # The first word is an MSB word in any job, so it may come before the next job is known.
            self.weights.ready.eq(tile.advance | (~tile.loaded & (self.job.valid | (tile.word == 0)))),
            tile.taken.eq(self.weights.valid & self.weights.ready),
            tile.wide.eq(job.wide),
            tile.first.eq(group == 0),
            tile.last.eq(group == job.groups - 1),
            self.job.ready.eq(tile.advance & tile.last & (column_tile == job.column_tiles - 1)),
        ]
        with m.If(tile.advance):
            m.d.sync += [tile.loaded.eq(0), group.eq(Mux(tile.last, 0, group + 1))]
            with m.If(tile.last):
                m.d.sync += column_tile.eq(Mux(self.job.ready, 0, column_tile + 1))
        with m.If(tile.taken):
            done = Signal()
            m.d.comb += done.eq(~tile.advance & (tile.word == words - 1))
            m.d.sync += [tile.word.eq(Mux(done, 0, tile.word + 1)), tile.loaded.eq(done)]

    def _issue(self, m: Module, tile: _Tile, current: _Pass) -> None:
        """Which pass of which block is multiplied, and when the next tile becomes active."""
        waiting, blocks, may_advance = Signal(), Signal(8), Signal()
        free = current.ends | ~(current.valid | waiting)
        # Passes of one block by two tiles are a tile's words apart, unless the block had to wait for its activations.
        delayed_block, rest = Signal(), Signal(range(ACCUMULATE_CYCLES))
        rested = ~delayed_block | (rest == ACCUMULATE_CYCLES - 1)
        m.d.sync += rest.eq(Mux(current.valid | waiting, 0, rest + (rest != ACCUMULATE_CYCLES - 1)))
        m.d.comb += [
            current.last.eq(current.valid & (current.second | ~current.wide)),
            current.ends.eq(current.last & (current.block == blocks - 1)),
            may_advance.eq(tile.loaded & free & rested & ~(tile.first & tile.bank_busy)),
            tile.advance.eq(may_advance & self.activations.valid),
            self.activations.ready.eq(may_advance | waiting | (current.last & ~current.ends)),
            current.taken.eq(self.activations.ready & self.activations.valid),
            self.advanced.eq(tile.advance),
        ]
        m.d.sync += current.second.eq(current.valid & current.wide & ~current.second)
        with m.If(current.last & ~current.ends):
            m.d.sync += [
                current.block.eq(current.block + 1),
                current.valid.eq(current.taken),
                waiting.eq(~current.taken),
            ]
        with m.If(waiting):
            m.d.sync += [delayed_block.eq(1), current.valid.eq(current.taken), waiting.eq(~current.taken)]
        with m.If(current.ends):
            m.d.sync += current.valid.eq(0)
        with m.If(tile.advance):
            m.d.sync += [
                current.valid.eq(1),
                current.block.eq(0),
                delayed_block.eq(0),
                blocks.eq(self.job.payload.blocks),
            ]
            m.d.sync += [current.wide.eq(tile.wide), current.first.eq(tile.first), current.final.eq(tile.last)]
            m.d.sync += current.bank.eq(tile.bank)

    def _array(self, m: Module, tile: _Tile, current: _Pass, out_slot: Any) -> list[list[Any]]:
        """Lanes [row][column]; the sum that `out_slot` selects in each."""
        shape = self.shape
        codes = Signal(shape.rows * ACTIVATION_BITS * GROUP, reset_less=True)
        scales = Signal(shape.rows * 32, reset_less=True)
        with m.If(current.taken):
            m.d.sync += Cat(codes, scales).eq(self.activations.payload)
        slot = Signal(range(shape.slots))
        m.d.comb += slot.eq(current.bank * shape.row_blocks + current.block)
        shared = {"enable": current.valid, "clear": ~current.second, "msb": ~current.second}
        shared |= {"first": delayed(m, current.first, ADDEND_CYCLES), "read_slot": delayed(m, slot, READ_CYCLES)}
        shared |= {"write": delayed(m, current.last, WRITE_CYCLES), "write_slot": delayed(m, slot, WRITE_CYCLES)}
        shared["out_slot"] = out_slot
        columns = self._columns(m, tile, current)
        outs = []
        for r in range(shape.rows):
            row = {"activations": codes.word_select(r, ACTIVATION_BITS * GROUP)}
            row["activation_scale"] = scales.word_select(r, 32)
            outs.append([self._lane(m, f"lane{r}_{k}", shared | row | columns[k]) for k in range(shape.columns)])
        return outs

    def _columns(self, m: Module, tile: _Tile, current: _Pass) -> list[dict[str, Any]]:
        """Fields and normalised scale of every column."""
        shape, found = self.shape, []
        planes_per_word, scales_per_word = shape.port_bits // PLANE_BITS, shape.port_bits // HALF_BITS
        word = Signal.like(tile.word)
        m.d.comb += word.eq(Mux(tile.advance, 0, tile.word))
        first_scale = Mux(tile.wide, 2 * shape.plane_words, shape.plane_words)
        for k in range(shape.columns):
            column = WeightColumn(self.design, structural=True)
            m.submodules[f"column{k}"] = column
            place = k // planes_per_word
            m.d.comb += [
                column.nibbles.eq(self.weights.payload.word_select(k % planes_per_word, PLANE_BITS)),
                column.load[1].eq(tile.taken & (word == place)),
                column.load[0].eq(tile.taken & tile.wide & (word == shape.plane_words + place)),
                column.advance.eq(tile.advance),
                column.msb.eq(~current.second),
                column.draft.eq(~current.wide),
            ]
            shadow, active = Signal(HALF_BITS, reset_less=True), Signal(scale.HALF_BITS, reset_less=True)
            with m.If(tile.taken & (word == first_scale + k // scales_per_word)):
                m.d.sync += shadow.eq(self.weights.payload.word_select(k % scales_per_word, HALF_BITS))
            with m.If(tile.advance):
                m.d.sync += active.eq(scale.normal_half(m, shadow))
            found.append({"fields": column.fields, "weight_scale": active})
        return found

    def _lane(self, m: Module, name: str, inputs: dict[str, Any]) -> Any:
        out = Signal(32)
        if self.lanes is not None:
            wires = {f"i_{port}": value for port, value in inputs.items()}
            m.submodules[name] = Instance(self.lanes, i_clk=ClockSignal(), o_out=out, **wires)
            return out
        m.submodules[name] = lane = Lane(self.design, False, self.shape.slots)
        m.d.comb += [getattr(lane, port).eq(value) for port, value in inputs.items()]
        m.d.comb += out.eq(lane.out)
        return out

    def _drain(self, m: Module, tile: _Tile, current: _Pass, outs: list[list[Any]], out_slot: Any) -> None:
        """Results of a bank when its last group is in, row by row; a bank is busy from its first group until then."""
        shape = self.shape
        ends = delayed(m, current.ends, PIPELINE_CYCLES)
        final, bank = (delayed(m, x, PIPELINE_CYCLES) for x in (current.final, current.bank))
        busy, full, blocks = (Array(Signal(bits, name=f"{name}{k}") for k in (0, 1)) for name, bits in _BANK)
        drained, row, block = Signal(), Signal(range(shape.rows)), Signal(range(shape.row_blocks))
        m.d.comb += [
            tile.bank_busy.eq(busy[tile.bank]),
            self.finished.eq(ends),
            self.results.valid.eq(full[drained]),
            self.results.payload.eq(Array(Cat(*line) for line in outs)[row]),
            out_slot.eq(drained * shape.row_blocks + block),
        ]
        with m.If(tile.advance & tile.first):
            m.d.sync += [busy[tile.bank].eq(1), blocks[tile.bank].eq(self.job.payload.blocks)]
        with m.If(tile.advance & tile.last):
            m.d.sync += tile.bank.eq(~tile.bank)
        with m.If(ends & final):
            m.d.sync += full[bank].eq(1)
        with m.If(self.results.valid & self.results.ready):
            m.d.sync += row.eq(Mux(row == shape.rows - 1, 0, row + 1))
            with m.If(row == shape.rows - 1):
                m.d.sync += block.eq(block + 1)
                with m.If(block == blocks[drained] - 1):
                    m.d.sync += [block.eq(0), full[drained].eq(0), busy[drained].eq(0), drained.eq(~drained)]


_BANK = (("busy", 1), ("full", 1), ("blocks", 8))
