"""The floating-point half of a PE lane: INT32 group sum x (FP16 weight scale x FP32 activation scale) + FP32 sum.

Bit-exact with `golden.py`, and so with the engine, on its domain: products and sums are rounded to nearest even, and
subnormal numbers are kept. Registers: SCALE_LATENCY for the combined scale, beside the dot product; TERM_LATENCY for
the product; ADD_LATENCY for the addition, whose last stage ends in the accumulator that takes the sum. FP16 scales are
normalised once per weight column (`normal_half`), not in every lane.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from elmoe.rtl.compressor import BitHeap
from elmoe.rtl.dot import delayed

SCALE_LATENCY = 3
TERM_LATENCY = 4
ADD_LATENCY = 3
HALF_BITS = 18
"""A normalised FP16 number: sign, 6 bits of exponent, 11 of mantissa with its leading one (0 for zero)."""
SUM_BITS = 20
"""An INT32 group sum has no more significant bits: 32 * 128 * 128 = 2**19."""
MANTISSA, EXPONENT_BITS = 24, 8
DEEPEST_SUBNORMAL_SHIFT = 7
"""Of a combined scale: 2**-24 * 2**-107 lies 5 places below the smallest normal number."""
PRODUCT_CUT = 19.0
"""Depth of the pipeline cut inside a multiplier, in carry delays."""
HALF_EXPONENT_BIAS = 35
"""``value = mantissa * 2**(stored - 35)``; stored is 1 for the smallest subnormal number."""


class Parts(NamedTuple):
    """An FP32 number on its way: biased exponent, at least 1, and mantissa with its leading bit (0: subnormal)."""

    negative: Any
    exponent: Any
    mantissa: Any


def register(m: Module, value: Any) -> Any:
    """A data register: no reset."""
    shape = Value.cast(value).shape()
    held = Signal(shape, reset_less=True)
    m.d.sync += held.eq(value)
    return held


def leading_zeros(m: Module, value: Any) -> Any:
    """Number of zeros above the highest one of a non-zero value, by halving."""
    width = 1 << (len(value) - 1).bit_length()
    part, count = Cat(Const(0, width - len(value)), value), list[Any]()
    while width > 1:
        width //= 2
        empty, rest = Signal(), Signal(width)
        m.d.comb += [empty.eq(part[width:] == 0), rest.eq(Mux(empty, part[:width], part[width:]))]
        count.insert(0, empty)
        part = rest
    return Cat(*count)


def product(m: Module, a: Any, b: Any, structural: bool, plus: Any = 0) -> Any:
    """(a + plus) * b of unsigned values, `plus` 0 or 1, in two cycles: carry-save tree | carry-propagate adder.

    The second one is not yet registered.
    """
    width = len(a) + len(b)
    if not structural:
        return register(m, ((a + plus) * b)[:width])
    heap = BitHeap(m, width)
    heap.add_product(a, b)
    if isinstance(plus, Value):
        heap.add_product(plus, b)
    heap.compress(PRODUCT_CUT)
    heap.register()
    x, y = heap.rows()
    return (x + y)[:width]


def packed(parts: Parts, guard: Any, sticky: Any) -> Any:
    """FP32 bits without the sign, 9 + 23 wide, rounded to nearest even. A carry runs into the exponent by itself."""
    up = guard & (sticky | parts.mantissa[0])
    exponent = Mux(parts.mantissa[-1], parts.exponent, 0)  # subnormal
    return (Cat(parts.mantissa[:-1], exponent) + up)[: MANTISSA - 1 + EXPONENT_BITS + 1]


def saturated(m: Module, magnitude: Any) -> Any:
    """31 bits of an FP32 magnitude from 32 unbounded ones: infinite from exponent 255 on."""
    wide = Signal(MANTISSA + EXPONENT_BITS)
    bounded = Signal(MANTISSA + EXPONENT_BITS - 1)
    infinite = wide[MANTISSA - 1 :] >= 255
    m.d.comb += [wide.eq(magnitude), bounded.eq(Mux(infinite, 255 << (MANTISSA - 1), wide[:-1]))]
    return bounded


def parts_of(negative: Any, magnitude: Any) -> Parts:
    """Exponent and mantissa of 31 stored bits."""
    stored = magnitude[MANTISSA - 1 :]
    normal = stored != 0
    return Parts(negative, Mux(normal, stored, 1), Cat(magnitude[: MANTISSA - 1], normal))


def normal_half(m: Module, bits: Any) -> Any:
    """FP16 bits -> normalised, HALF_BITS wide: subnormal numbers get a leading one and a lower exponent."""
    fraction, stored = bits[:10], bits[10:15]
    zeros, normal = Signal(4), Signal(HALF_BITS)
    m.d.comb += zeros.eq(leading_zeros(m, fraction))
    high = Cat(fraction, Const(1, 1), stored + 10)
    low = Cat((fraction << zeros << 1)[:11], Mux(fraction == 0, 0, 10 - zeros))
    m.d.comb += normal.eq(Cat(Mux(stored == 0, low, high)[:17], bits[15]))
    return normal


class ScaleAccumulate(wiring.Component):
    """One lane's floating-point half.

    weight_scale (normalised, HALF_BITS) and activation_scale (FP32) with a pass's operands; group_sum
    SCALE_LATENCY cycles later; `first` and addend (the running FP32 sum) TERM_LATENCY after that -> total,
    ADD_LATENCY after that, not yet registered. With `first` the addend counts as nothing.
    """

    def __init__(self, structural: bool) -> None:
        self.structural = structural
        super().__init__(
            {
                "weight_scale": In(HALF_BITS),
                "activation_scale": In(32),
                "group_sum": In(signed(SUM_BITS)),
                "first": In(1),
                "addend": In(32),
                "total": Out(32),
            }
        )

    def elaborate(self, _: object) -> Module:
        """Build it."""
        m = Module()
        scale = self._combined_scale(m)
        term = self._term(m, scale)
        m.d.comb += self.total.eq(self._sum(m, term))
        return m

    def _combined_scale(self, m: Module) -> Parts:
        """FP16 x FP32: multiply | add | align and round."""
        half, single = self.weight_scale, self.activation_scale
        mantissa = Cat(single[: MANTISSA - 1], single[MANTISSA - 1 : 31] != 0)
        digits = Signal(11 + MANTISSA, reset_less=True)
        m.d.sync += digits.eq(product(m, half[:11], mantissa, self.structural))
        negative = delayed(m, half[17] ^ single[31], 2)
        # Exponent of digits in [2**33, 2**34) above that of the smallest normal number, kept positive by `lift`.
        lift = 64
        above = register(m, (half[11:17] + single[MANTISSA - 1 : 31] + lift - HALF_EXPONENT_BIAS + 9)[:10])
        below = Signal(10)
        m.d.comb += below.eq(Mux(above < lift, lift - above, 0))
        subnormal = register(m, above < lift)
        deep = register(m, Mux(below > DEEPEST_SUBNORMAL_SHIFT, DEEPEST_SUBNORMAL_SHIFT, below)[:3])
        biased = register(m, (above + 1 - lift)[:9])
        carry = digits[-1]
        spread = Cat(Const(0, DEEPEST_SUBNORMAL_SHIFT + 1), digits) >> Mux(subnormal, deep, carry)
        kept, guard, sticky = spread[-MANTISSA - 1 : -1], spread[-MANTISSA - 2], spread[: -MANTISSA - 2] != 0
        exponent = Mux(subnormal, 1, (biased + carry)[:9])
        magnitude = register(m, saturated(m, packed(Parts(negative, exponent, kept), guard, sticky)))
        return parts_of(register(m, negative), magnitude)

    def _term(self, m: Module, scale: Parts) -> Parts:
        """Integer x FP32: multiply | add | normalise | round."""
        negative_sum = self.group_sum[-1]
        size = self.group_sum.as_unsigned() ^ negative_sum.replicate(SUM_BITS)  # magnitude, less one where negative
        width = SUM_BITS + MANTISSA
        digits = Signal(width, reset_less=True)
        m.d.sync += digits.eq(product(m, size, scale.mantissa, self.structural, plus=negative_sum))
        negative = delayed(m, scale.negative ^ negative_sum, 3)
        exponent = register(m, register(m, scale.exponent))
        zeros, most = Signal(6), Signal(9)
        m.d.comb += [zeros.eq(leading_zeros(m, digits)), most.eq(exponent + SUM_BITS - 1)]
        limited = Mux(zeros > most, most, zeros)[:6]
        normal = register(m, (digits << limited)[:width])
        infinite = register(m, exponent == 255)
        biased = register(m, (exponent + SUM_BITS - limited)[:9])
        parts = Parts(negative, biased, normal[-MANTISSA:])
        rounded = packed(parts, normal[-MANTISSA - 1], normal[: -MANTISSA - 1] != 0)
        magnitude = register(m, saturated(m, Mux(infinite, 255 << (MANTISSA - 1), rounded)))
        return parts_of(register(m, negative), magnitude)

    def _sum(self, m: Module, term: Parts) -> Any:
        """FP32 + FP32: order and align | add | normalise | round."""
        addend = Signal(32)
        m.d.comb += addend.eq(Mux(self.first, 1 << 31, self.addend))  # -0 leaves the term as it is
        other = parts_of(addend[31], addend[:31])
        swap = Cat(term.mantissa, term.exponent) > Cat(other.mantissa, other.exponent)
        big = Parts(*(Mux(swap, x, y) for x, y in zip(term, other, strict=True)))
        small = Parts(*(Mux(swap, y, x) for x, y in zip(term, other, strict=True)))
        distance = Signal(8)
        m.d.comb += distance.eq(big.exponent - small.exponent)
        spread = Signal(2 * MANTISSA + 4)
        m.d.comb += spread.eq(Cat(Const(0, MANTISSA + 4), small.mantissa) >> Mux(distance > 31, 31, distance)[:5])
        aligned = Cat(spread[: MANTISSA + 2] != 0, spread[MANTISSA + 2 :])  # two more places, and all below in one bit
        high, low = register(m, big.mantissa << 3), register(m, aligned)
        exponent, negative = register(m, big.exponent), register(m, big.negative)
        differ, both = register(m, big.negative ^ small.negative), register(m, big.negative & small.negative)
        total = register(m, Mux(differ, high - low, high + low)[: MANTISSA + 4])
        exponent, negative, both = (register(m, x) for x in (exponent, negative, both))
        zeros = Signal(5)
        m.d.comb += zeros.eq(leading_zeros(m, total))
        limited = Mux(zeros > exponent, exponent, zeros)[:5]
        normal = register(m, (total << limited)[: MANTISSA + 4])
        sign = register(m, Mux(total == 0, both, negative))
        biased, infinite = register(m, (exponent + 1 - limited)[:9]), register(m, exponent == 255)
        rounded = packed(Parts(sign, biased, normal[-MANTISSA:]), normal[3], normal[:3] != 0)
        magnitude = saturated(m, Mux(infinite, 255 << (MANTISSA - 1), rounded))
        return Cat(magnitude, sign)
