"""The integer half of a PE: weight encoder, IA8 x W5 unit, 32-way dot product with INT32 accumulation, weight column.

Every block exists twice: *structural*, with the generated carry-save tree (what is emitted and synthesised), and
behavioural, with Amaranth's operators (what Amaranth's simulator runs, and the naive model that the structural one is
compared with). The compared designs come from the same code. Data registers have no reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from elmoe.rtl.compressor import BitHeap
from elmoe.rtl.designs import ACTIVATION_BITS, GROUP, NIBBLE_BITS, Design

DOT_LATENCY = 3
"""Cycles from operands to the accumulator: products and most of the tree | rest of it | shift and accumulate."""
TREE_CUT = 20.0
"""Depth of the pipeline cut inside the tree, in carry delays."""
WIDE_BITS = 2 * NIBBLE_BITS


def encode(design: Design, nibble: Any, msb: Any, draft: Any) -> Any:
    """The 5-bit field of a stored nibble. `msb` is the role of the pass; `draft` only matters in an MSB pass.

    Conventional: extend by the sign or by zero, a gate. Augmented: align left with the constant below, or extend by
    zero: the multiplexer that the paper's claim is about.
    """
    if design is Design.CONVENTIONAL:
        return Cat(nibble, msb & nibble[-1])
    return Mux(msb, Cat(draft, nibble), Cat(nibble, Const(0, 1)))


def delayed(m: Module, value: Any, cycles: int) -> Any:
    """`value` some cycles later. No reset: it is flushed by what follows."""
    for _ in range(cycles):
        later = Signal.like(value, reset_less=True)
        m.d.sync += later.eq(value)
        value = later
    return value


class Unit(wiring.Component):
    """One multiplier with its own encoder, combinational.

    activation int8, weight (a nibble, or a whole code in native designs), msb and draft (sliced) -> product.
    """

    def __init__(self, design: Design, structural: bool) -> None:
        self.design, self.structural = design, structural
        weight = NIBBLE_BITS if design.sliced else design.field_bits
        ports = {"activation": In(signed(ACTIVATION_BITS)), "weight": In(weight)}
        ports |= {"msb": In(1), "draft": In(1)} if design.sliced else {}
        super().__init__(ports | {"product": Out(signed(design.product_bits))})

    def elaborate(self, _: object) -> Module:
        """Build it."""
        m = Module()
        weight = Signal(self.design.field_bits)
        encoded = encode(self.design, self.weight, self.msb, self.draft) if self.design.sliced else self.weight
        m.d.comb += weight.eq(encoded)
        if self.structural:
            heap = BitHeap(m, self.design.product_bits)
            heap.add_signed_product(self.activation, weight)
            x, y = heap.rows()
            m.d.comb += self.product.eq(x + y)
        else:
            m.d.comb += self.product.eq(self.activation * weight.as_signed())
        return m


def product_sum(m: Module, design: Design, pairs: Sequence[tuple[Any, Any]], structural: bool) -> Any:
    """Sum of products, registered twice: in the cut and at the end. Pairs of (activation, field), as raw bits."""
    total = Signal(signed(design.sum_bits), reset_less=True)
    if structural:
        heap = BitHeap(m, design.sum_bits)
        for activation, weight in pairs:
            heap.add_signed_product(activation, weight)
        heap.compress(TREE_CUT)
        heap.register()
        x, y = heap.rows()
        m.d.sync += total.eq((x + y)[: design.sum_bits])
        return total
    sums = [activation.as_signed() * weight.as_signed() for activation, weight in pairs]
    while len(sums) > 1:
        sums = [sum(sums[k : k + 2]) for k in range(0, len(sums), 2)]
    cut = Signal(signed(design.sum_bits), reset_less=True)
    m.d.sync += [cut.eq(sums[0]), total.eq(cut)]
    return total


def accumulate(m: Module, accumulator: Any, enable: Any, clear: Any, addend: Any) -> None:
    """INT32: start anew with `clear`."""
    with m.If(enable):
        m.d.sync += accumulator.eq(Mux(clear, 0, accumulator) + addend)


class Dot32(wiring.Component):
    """32-way dot product into an INT32 accumulator. Fields are encoded already: a column's encoder serves all rows.

    activations 32 x int8, fields 32 x design.field_bits, enable, clear (start a new sum), msb (sliced: shift)
    -> accumulator, DOT_LATENCY cycles later.
    """

    def __init__(self, design: Design, structural: bool) -> None:
        self.design, self.structural = design, structural
        ports = {"activations": In(ACTIVATION_BITS * GROUP), "fields": In(design.field_bits * GROUP)}
        ports |= {"enable": In(1), "clear": In(1)} | ({"msb": In(1)} if design.sliced else {})
        super().__init__(ports | {"accumulator": Out(signed(32))})

    def elaborate(self, _: object) -> Module:
        """Build it."""
        m = Module()
        pairs = [
            (self.activations.word_select(i, ACTIVATION_BITS), self.fields.word_select(i, self.design.field_bits))
            for i in range(GROUP)
        ]
        total = product_sum(m, self.design, pairs, self.structural)
        enable, clear = (delayed(m, x, DOT_LATENCY - 1) for x in (self.enable, self.clear))
        if self.design.sliced:
            msb = delayed(m, self.msb, DOT_LATENCY - 1)
            total = Mux(msb, total << self.design.msb_shift, total)
        accumulator = Signal(signed(32), reset_less=True)
        accumulate(m, accumulator, enable, clear, total)
        m.d.comb += self.accumulator.eq(accumulator)
        return m


class Dot32OwnEncoders(wiring.Component):
    """The same with an encoder inside every unit instead of one per weight column; for comparison."""

    def __init__(self, design: Design, structural: bool) -> None:
        self.dot = Dot32(design, structural)
        ports = {"activations": In(ACTIVATION_BITS * GROUP), "nibbles": In(NIBBLE_BITS * GROUP), "draft": In(1)}
        super().__init__(ports | {"enable": In(1), "clear": In(1), "msb": In(1), "accumulator": Out(signed(32))})

    def elaborate(self, _: object) -> Module:
        """Build it."""
        m = Module()
        m.submodules.dot = dot = self.dot
        nibbles = (self.nibbles.word_select(i, NIBBLE_BITS) for i in range(GROUP))
        m.d.comb += [
            dot.fields.eq(Cat(encode(dot.design, nibble, self.msb, self.draft) for nibble in nibbles)),
            dot.activations.eq(self.activations),
            dot.enable.eq(self.enable),
            dot.clear.eq(self.clear),
            dot.msb.eq(self.msb),
            self.accumulator.eq(dot.accumulator),
        ]
        return m


class WeightColumn(wiring.Component):
    """32 weights of one output column: a shadow register that is being loaded, an active one, one encoder per weight.

    nibbles (one plane, 32 x 4) enter the plane that `load` selects (bit 0 LSB, bit 1 MSB); `advance` makes the shadow
    active; msb and draft are the role of the pass -> fields. Native designs hold a whole code, loaded alike.
    """

    def __init__(self, design: Design, structural: bool) -> None:
        del structural  # has no tree
        self.design = design
        self.planes = 1 if design is Design.NATIVE_4X8 else 2
        ports = {"nibbles": In(NIBBLE_BITS * GROUP), "load": In(2), "advance": In(1)}
        ports |= {"msb": In(1), "draft": In(1)} if design.sliced else {}
        super().__init__(ports | {"fields": Out(design.field_bits * GROUP)})

    def elaborate(self, _: object) -> Module:
        """Build it."""
        m = Module()
        planes = []
        for index in range(2 - self.planes, 2):
            shadow = Signal(NIBBLE_BITS * GROUP, reset_less=True, name=f"shadow{index}")
            active = Signal(NIBBLE_BITS * GROUP, reset_less=True, name=f"active{index}")
            with m.If(self.load[index]):
                m.d.sync += shadow.eq(self.nibbles)
            with m.If(self.advance):
                m.d.sync += active.eq(shadow)
            planes.append(active)
        words = [[plane.word_select(i, NIBBLE_BITS) for plane in planes] for i in range(GROUP)]
        if self.design.sliced:
            chosen = [Mux(self.msb, high, low) for low, high in words]
            m.d.comb += self.fields.eq(Cat(encode(self.design, nibble, self.msb, self.draft) for nibble in chosen))
        else:
            m.d.comb += self.fields.eq(Cat(*(Cat(*parts) for parts in words)))
        return m


class NibbleColumn(wiring.Component):
    """32 weights of one column in a single register of a nibble each, and their encoders: slices are streamed in turn.

    The array that the paper draws; `WeightColumn` holds both slices, and its multiplexer between them makes the
    augmented field for nothing. nibbles, load, msb and draft (the role of what is held) -> fields.
    """

    def __init__(self, design: Design, structural: bool) -> None:
        del structural  # has no tree
        self.design = design
        ports = {"nibbles": In(NIBBLE_BITS * GROUP), "load": In(1), "msb": In(1), "draft": In(1)}
        super().__init__(ports | {"fields": Out(design.field_bits * GROUP)})

    def elaborate(self, _: object) -> Module:
        """Build it."""
        m = Module()
        held = Signal(NIBBLE_BITS * GROUP, reset_less=True)
        with m.If(self.load):
            m.d.sync += held.eq(self.nibbles)
        nibbles = (held.word_select(i, NIBBLE_BITS) for i in range(GROUP))
        m.d.comb += self.fields.eq(Cat(encode(self.design, nibble, self.msb, self.draft) for nibble in nibbles))
        return m


class ColumnPair(wiring.Component):
    """Two columns side by side, one hardwired to MSB slices; the baseline that a spatial bit-slice array would be.

    full: column 0 has the MSB and column 1 the LSB slices of one output. Otherwise a draft: both have MSB slices, of
    two outputs. A conventional column that only ever sees MSB slices needs a 4-bit multiplier; an augmented one 5 bits.
    """

    def __init__(self, design: Design, structural: bool) -> None:
        self.design, self.structural = design, structural
        ports = {"activations": In(ACTIVATION_BITS * GROUP), "full": In(1), "enable": In(1), "clear": In(1)}
        ports |= {f"nibbles{k}": In(NIBBLE_BITS * GROUP) for k in (0, 1)}
        super().__init__(ports | {f"accumulator{k}": Out(signed(32)) for k in (0, 1)})

    def elaborate(self, _: object) -> Module:
        """Build it."""
        m = Module()
        draft = ~self.full
        totals = [self._column(m, 0, Const(1, 1), draft), self._column(m, 1, draft, draft)]
        enable, clear, full = (delayed(m, x, DOT_LATENCY - 1) for x in (self.enable, self.clear, self.full))
        high, shift = totals[0] << self.design.msb_shift, self.design.msb_shift
        accumulate(m, self.accumulator0, enable, clear, high + Mux(full, totals[1], 0))
        accumulate(m, self.accumulator1, enable & ~full, clear, totals[1] << shift)
        return m

    def _column(self, m: Module, index: int, msb: Any, draft: Any) -> Any:
        nibbles = getattr(self, f"nibbles{index}")
        pairs = []
        for i in range(GROUP):
            nibble = nibbles.word_select(i, NIBBLE_BITS)
            narrow = self.design is Design.CONVENTIONAL and isinstance(msb, Const)
            weight = nibble if narrow else encode(self.design, nibble, msb, draft)
            wire = Signal(len(weight))
            m.d.comb += wire.eq(weight)
            pairs.append((self.activations.word_select(i, ACTIVATION_BITS), wire))
        return product_sum(m, self.design, pairs, self.structural)
