"""A heap of equally weighted bits and its carry-save compression: the generator behind every multiplier and adder tree.

Partial products are Baugh-Wooley's. Columns are compressed greedily, earliest bits first, by *inverting* full adders
(the cell that standard libraries have), so every bit carries its polarity and inverters appear only where a full adder
would mix them. `register` cuts the tree at any depth. Yosys' own tree for the same sum is twice as large (docs/rtl.md).

Full adders are instances of `FULL_ADDER`; what they become is `emit.py`'s and `synth.py`'s.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from amaranth.hdl import Cat, Const, Instance, Module, Signal

from elmoe.rtl.designs import FULL_ADDER

SUM_DELAY, CARRY_DELAY = 2.0, 1.0
"""Of a full adder, in carry delays."""


class Bit(NamedTuple):
    """One bit of a column, ordered by arrival."""

    arrival: float
    number: int
    signal: Any
    inverted: bool


class BitHeap:
    """Bits of weight ``2**column``; their sum modulo ``2**width`` is what counts."""

    def __init__(self, m: Module, width: int) -> None:
        self.m = m
        self.width = width
        self.full_adders = 0
        self._columns: list[list[Bit]] = [[] for _ in range(width)]
        self._constant = 0
        self._numbers = itertools.count()

    def add(self, column: int, signal: Any, inverted: bool = False, arrival: float = 0.0) -> None:
        """One bit; `inverted` when the signal is its complement."""
        if column < self.width:
            self._columns[column].append(Bit(arrival, next(self._numbers), signal, inverted))

    def add_signed_product(self, a: Any, b: Any) -> None:
        """A * b of two signed values (Baugh-Wooley: products with one sign bit count as ``~p - 1``)."""
        for i, j in itertools.product(range(len(a)), range(len(b))):
            negative = (i == len(a) - 1) != (j == len(b) - 1)
            self.add(i + j, self._nand(a[i], b[j]), inverted=not negative)
            if negative:
                self._constant -= 1 << (i + j)

    def add_product(self, a: Any, b: Any) -> None:
        """A * b of two unsigned values."""
        for i, j in itertools.product(range(len(a)), range(len(b))):
            self.add(i + j, self._nand(a[i], b[j]), inverted=True)

    def compress(self, limit: float = math.inf) -> None:
        """Compress every column to two bits, or as far as no bit arrives after `limit`."""
        constant = self._constant % (1 << self.width)
        self._constant = 0
        for column in range(self.width):
            if constant >> column & 1:
                self.add(column, Const(1, 1))
            self._columns[column] = self._compressed(column, limit)

    def register(self) -> None:
        """A pipeline register through every bit."""
        for column, bits in enumerate(self._columns):
            self._columns[column] = [self._registered(bit) for bit in bits]

    def rows(self) -> tuple[Any, Any]:
        """Compress, and the two addends that are left, as unsigned values of `width` bits."""
        self.compress()
        pairs = [[self._true(bit) for bit in sorted(bits)] for bits in self._columns]
        zero = Const(0, 1)
        first, second = (Cat(*(pair[k] if k < len(pair) else zero for pair in pairs)) for k in (0, 1))
        return first, second

    def _compressed(self, column: int, limit: float) -> list[Bit]:
        queue, late = list(self._columns[column]), list[Bit]()
        heapq.heapify(queue)
        while len(queue) >= 3 and len(queue) + len(late) > 2:
            picked = self._pick(queue)
            arrival = max(bit.arrival for bit in picked)
            if arrival + SUM_DELAY > limit:
                late += picked
                continue
            majority = sum(bit.inverted for bit in picked) >= 2
            operands = [bit.signal if bit.inverted == majority else self._inverse(bit.signal) for bit in picked]
            carry, total = self._full_adder(operands)
            heapq.heappush(queue, Bit(arrival + SUM_DELAY, next(self._numbers), total, not majority))
            self.add(column + 1, carry, not majority, arrival + CARRY_DELAY)
        return queue + late

    @staticmethod
    def _pick(queue: list[Bit]) -> list[Bit]:
        """The three earliest bits, of one polarity while that costs no more than a full adder's delay."""
        first = heapq.heappop(queue)
        picked, passed = [first], list[Bit]()
        while queue and len(picked) < 3:
            bit = heapq.heappop(queue)
            alike = bit.inverted == first.inverted or bit.arrival > first.arrival + SUM_DELAY
            (picked if alike else passed).append(bit)
        while len(picked) < 3:
            picked.append(passed.pop(0))
        for bit in passed:
            heapq.heappush(queue, bit)
        return picked

    def _full_adder(self, operands: Sequence[Any]) -> tuple[Any, Any]:
        carry_n, sum_n = Signal(), Signal()
        constants = [x for x in operands if isinstance(x, Const)]
        if constants:  # then it is two gates
            x, y = (operand for operand in operands if not isinstance(operand, Const))
            one = constants[0].value
            self.m.d.comb += [carry_n.eq(~(x | y) if one else ~(x & y)), sum_n.eq(x ^ y if one else ~(x ^ y))]
            return carry_n, sum_n
        a, b, c = operands
        self.m.submodules += Instance(FULL_ADDER, i_a=a, i_b=b, i_c=c, o_carry_n=carry_n, o_sum_n=sum_n)
        self.full_adders += 1
        return carry_n, sum_n

    def _nand(self, x: Any, y: Any) -> Any:
        made = Signal()
        self.m.d.comb += made.eq(~(x & y))
        return made

    def _inverse(self, x: Any) -> Any:
        if isinstance(x, Const):
            return Const(1 - x.value, 1)
        made = Signal()
        self.m.d.comb += made.eq(~x)
        return made

    def _true(self, bit: Bit) -> Any:
        return self._inverse(bit.signal) if bit.inverted else bit.signal

    def _registered(self, bit: Bit) -> Bit:
        if isinstance(bit.signal, Const):
            return bit
        held = Signal(reset_less=True)
        self.m.d.sync += held.eq(bit.signal)
        return Bit(0.0, bit.number, held, bit.inverted)
