"""Stimuli and expected outputs of every block, cycle by cycle, from the golden model.

The multiplier unit gets every input there is. Dot products get every weight code in every lane against extreme and
random activations, in every precision, with sums over several tiles. The scale stage gets edges of FP16 and FP32
(subnormal numbers, ties, cancellation, overflow) beside what layers have. The same seed gives the same vectors.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from elmoe.rtl import golden
from elmoe.rtl.designs import ACTIVATION_BITS, GROUP, NIBBLE_BITS, Design, Precision, Role
from elmoe.rtl.tile import DEFAULT_BLOCKS, joined

DOT_CYCLES = 3
SCALE_CYCLES, TERM_CYCLES, ADD_CYCLES = 3, 4, 3
"""As in `dot.py` and `scale.py`, which a test compares; this file needs no Amaranth."""
CODES = 256
WIDEST = 2**19
"""Largest magnitude of a group sum."""
TILES_PER_SUM = 5
SCALE_GROUPS, LANE_GROUPS = 20_000, 600
Cycle = dict[str, int]


@dataclass(frozen=True)
class Vectors:
    """Inputs of every cycle, and outputs as they stand before the clock edge that ends it (None: not compared)."""

    inputs: list[Cycle]
    expected: list[Cycle | None]

    def __len__(self) -> int:
        return len(self.inputs)

    def head(self, cycles: int) -> Vectors:
        """The first cycles."""
        return Vectors(self.inputs[:cycles], self.expected[:cycles])


def signed(value: int, bits: int) -> int:
    """Two's complement bits as a signed integer."""
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def vectors(block: str, design: Design, seed: int = 1) -> Vectors:
    """Of a block of `blocks.py`."""
    return _MAKERS[block](design, random.Random(seed))


def stored(design: Design, code: int, role: Role) -> int:
    """What a weight port is given in a pass: a nibble, or the code."""
    if not design.sliced:
        return code & ((1 << design.field_bits) - 1)
    return code & 15 if role is Role.LSB else code >> 4 & 15


def control(design: Design, role: Role, draft: bool = True) -> Cycle:
    """The role's control inputs."""
    if not design.sliced:
        return {}
    return {"msb": int(role is not Role.LSB)} | ({"draft": int(role is Role.DRAFT)} if draft else {})


def codes_of(design: Design) -> range:
    """Every weight code."""
    return range(-8, 8) if design is Design.NATIVE_4X8 else range(-128, 128)


def _unit(design: Design, _: random.Random) -> Vectors:
    inputs, expected = [], []
    for role, code, activation in itertools.product(design.roles, codes_of(design), range(-128, 128)):
        weight = {"activation": activation, "weight": stored(design, code, role)}
        inputs.append(weight | control(design, role))
        expected.append({"product": activation * golden.field(design, code, role)})
    return Vectors(inputs, list(expected))


@dataclass(frozen=True)
class Pass:
    """One cycle of a dot product: activations, weight codes, and whether a new sum begins."""

    activations: Sequence[int]
    codes: Sequence[int]
    role: Role
    clear: bool


def _passes(design: Design, rng: random.Random, precisions: Sequence[Precision]) -> Iterator[Pass]:
    """Every code in every lane, against activations of six kinds; sums over up to TILES_PER_SUM tiles."""
    codes, top = codes_of(design), ACTIVATION_BITS - 1
    kinds: list[Callable[[], list[int]]] = [
        lambda: [-(1 << top)] * GROUP,
        lambda: [(1 << top) - 1] * GROUP,
        lambda: [(-1) ** i * 127 for i in range(GROUP)],
        lambda: [rng.choice((-128, -1, 0, 1, 127)) for _ in range(GROUP)],
        lambda: [rng.randint(-128, 127) for _ in range(GROUP)],
        lambda: [127 * (i == lane) for i in range(GROUP)],
    ]
    for precision, kind in itertools.product(precisions, kinds):
        for start in range(len(codes)):
            lane = start % GROUP
            activations = kind()
            weights = [codes[(start + i * (len(codes) // GROUP or 1)) % len(codes)] for i in range(GROUP)]
            for number, role in enumerate(precision.roles(design)):
                yield Pass(activations, weights, role, number == 0 and start % TILES_PER_SUM == 0)
    for code in (codes[0], codes[-1]):  # the largest sums
        for activation, role in itertools.product((-128, 127), design.roles):
            yield Pass([activation] * GROUP, [code] * GROUP, role, True)


def _precisions(design: Design) -> list[Precision]:
    return [p for p in Precision if design.sliced or (p is Precision.W4) == (design is Design.NATIVE_4X8)]


def _accumulated(design: Design, passes: Sequence[Pass]) -> list[int]:
    """The accumulator after every pass."""
    found, total = [], 0
    for item in passes:
        total = (0 if item.clear else total) + golden.dot(design, item.activations, item.codes, item.role)
        found.append(total)
    return found


def _dot_inputs(design: Design, item: Pass) -> Cycle:
    fields = [golden.field(design, code, item.role) for code in item.codes]
    return {
        "activations": joined(item.activations, ACTIVATION_BITS),
        "fields": joined(fields, design.field_bits),
        "enable": 1,
        "clear": int(item.clear),
    } | control(design, item.role, draft=False)


def dot_vectors(design: Design, passes: Sequence[Pass]) -> Vectors:
    """Of `Dot32`, one pass per cycle."""
    return _pipelined([_dot_inputs(design, item) for item in passes], _accumulated(design, passes))


def _dot32(design: Design, rng: random.Random) -> Vectors:
    return dot_vectors(design, list(_passes(design, rng, _precisions(design))))


def _pipelined(inputs: list[Cycle], sums: list[int]) -> Vectors:
    """Accumulators appear DOT_CYCLES later; a pause with `enable` low holds them."""
    pause = dict.fromkeys(inputs[0], 0)
    padding: list[Cycle | None] = [None] * DOT_CYCLES
    return Vectors(
        inputs + [pause] * (DOT_CYCLES + 1),
        padding + [{"accumulator": value} for value in [*sums, sums[-1]]],
    )


def _own_encoders(design: Design, rng: random.Random) -> Vectors:
    passes = list(_passes(design, rng, _precisions(design)))
    inputs = []
    for item in passes:
        cycle = _dot_inputs(design, item) | control(design, item.role)
        cycle["nibbles"] = joined([stored(design, code, item.role) for code in item.codes], NIBBLE_BITS)
        del cycle["fields"]
        inputs.append(cycle)
    return _pipelined(inputs, _accumulated(design, passes))


def _column(design: Design, rng: random.Random) -> Vectors:
    """Load both planes, advance, and look at every role; the shadow is loaded anew meanwhile."""
    inputs: list[Cycle] = []
    expected: list[Cycle | None] = []
    codes = list(codes_of(design))
    native = design is Design.NATIVE_4X8
    for start in range(len(codes)):
        weights = [codes[(start + 8 * i) % len(codes)] for i in range(GROUP)]
        high = joined(weights if native else [code >> 4 for code in weights], NIBBLE_BITS)
        low = joined([code & 15 for code in weights], NIBBLE_BITS)
        noise = joined([rng.getrandbits(4) for _ in range(GROUP)], NIBBLE_BITS)
        idle = control(design, design.roles[0])
        steps = [(high, 0b10, 0), (low, 0b01, 0), (noise, 0, 1)]
        inputs += [{"nibbles": n, "load": load, "advance": advance} | idle for n, load, advance in steps]
        expected += [None] * 3
        for role in design.roles:
            inputs.append({"nibbles": noise, "load": 3, "advance": 0} | control(design, role))
            fields = joined([golden.field(design, code, role) for code in weights], design.field_bits)
            expected.append({"fields": fields})
    return Vectors(inputs, expected)


def _nibble_column(design: Design, rng: random.Random) -> Vectors:
    """A slice is loaded, looked at, and held while other nibbles pass by."""
    inputs: list[Cycle] = []
    expected: list[Cycle | None] = []
    for start, role in itertools.product(range(CODES), design.roles):
        weights = [signed((start + 8 * i) % CODES, 8) for i in range(GROUP)]
        nibbles = joined([stored(design, code, role) for code in weights], NIBBLE_BITS)
        noise = joined([rng.getrandbits(4) for _ in range(GROUP)], NIBBLE_BITS)
        inputs += [{"nibbles": n, "load": load} | control(design, role) for n, load in ((nibbles, 1), (noise, 0))]
        fields = joined([golden.field(design, code, role) for code in weights], design.field_bits)
        expected += [None, {"fields": fields}]
    return Vectors(inputs, expected)


def _pair(design: Design, rng: random.Random) -> Vectors:
    inputs: list[Cycle] = []
    sums: list[tuple[int, int]] = []
    for start, kind in itertools.product(range(CODES), range(2)):
        full = kind == 0
        codes = [[signed((start + 8 * i + 77 * k) % CODES, 8) for i in range(GROUP)] for k in (0, 1)]
        activations = [rng.choice((-128, 127, rng.randint(-128, 127))) for _ in range(GROUP)]
        if full:  # both columns hold the slices of one output
            planes = [[code >> 4 for code in codes[0]], [code & 15 for code in codes[0]]]
            sums.append((golden.group_sum(design, activations, codes[0], Precision.W8), 0))
        else:
            planes = [[code >> 4 for code in column] for column in codes]
            pair = [golden.group_sum(design, activations, column, Precision.W4) for column in codes]
            sums.append((pair[0], pair[1]))
        nibbles = {f"nibbles{k}": joined(plane, NIBBLE_BITS) for k, plane in enumerate(planes)}
        common = {"activations": joined(activations, ACTIVATION_BITS), "full": int(full), "enable": 1, "clear": 1}
        inputs.append(common | nibbles)
    padding: list[Cycle | None] = [None] * DOT_CYCLES
    fulls = [cycle["full"] for cycle in inputs]
    found = [
        {"accumulator0": a} | ({} if full else {"accumulator1": b}) for (a, b), full in zip(sums, fulls, strict=True)
    ]
    return Vectors(inputs + [dict.fromkeys(inputs[0], 0)] * DOT_CYCLES, padding + list(found))


@dataclass(frozen=True)
class Group:
    """One group through the scale stage."""

    weight_scale: int
    activation_scale: int
    total: int
    first: bool
    addend: int

    @property
    def result(self) -> int:
        """The new sum."""
        term = golden.term(self.total, self.weight_scale, self.activation_scale)
        return golden.add(golden.NEGATIVE_ZERO if self.first else self.addend, term)


def normal_half(bits: int) -> int:
    """What `scale.normal_half` makes of FP16 bits."""
    exponent, fraction, sign = bits >> 10 & 31, bits & 1023, bits >> 15
    if exponent:
        return (fraction | 1024) | (exponent + 10) << 11 | sign << 17
    up = 11 - fraction.bit_length()
    return fraction << up | (11 - up) << 11 | sign << 17 if fraction else sign << 17


def _finite_half(rng: random.Random) -> int:
    bits = rng.choice((rng.getrandbits(16), rng.getrandbits(10), rng.getrandbits(12)))
    return bits & ~(1 << 14) if bits >> 10 & 31 == 31 else bits


def _activation_scale(rng: random.Random) -> int:
    exponent = rng.choice((rng.randint(20, 30), rng.randint(20, 254), rng.randint(100, 130), rng.randint(110, 125)))
    return 0 if rng.random() < 0.05 else exponent << 23 | rng.getrandbits(23)


def _group(rng: random.Random) -> Group:
    weight_scale, activation_scale = _finite_half(rng), _activation_scale(rng)
    total = rng.choice((-WIDEST, WIDEST - 1, 0, 1, -1, *[rng.randint(-(1 << k), 1 << k) for k in (4, 9, 14, 18)]))
    term = golden.term(total, weight_scale, activation_scale)
    near = (term ^ golden.SIGN) + rng.choice((0, 1, -1, 1 << 20, 3 << 22, -(5 << 21)))  # cancellation, ties
    addend = rng.choice((near, rng.getrandbits(32), rng.getrandbits(24), term)) & 0xFFFFFFFF
    if addend & golden.INFINITY == golden.INFINITY:
        addend &= ~(1 << 30)
    return Group(weight_scale, activation_scale, total, rng.random() < 0.2, addend)


def _scale(_: Design, rng: random.Random) -> Vectors:
    return scale_vectors([_group(rng) for _ in range(SCALE_GROUPS)])


def scale_vectors(groups: Sequence[Group]) -> Vectors:
    """Of `ScaleAccumulate`, one group per cycle."""
    idle = {"weight_scale": 0, "activation_scale": 0, "group_sum": 0, "first": 0, "addend": 0}
    latency = SCALE_CYCLES + TERM_CYCLES + ADD_CYCLES
    inputs = [dict(idle) for _ in range(len(groups) + latency)]
    expected: list[Cycle | None] = [None] * latency
    for t, group in enumerate(groups):
        inputs[t] |= {"weight_scale": normal_half(group.weight_scale), "activation_scale": group.activation_scale}
        inputs[t + SCALE_CYCLES]["group_sum"] = group.total
        inputs[t + SCALE_CYCLES + TERM_CYCLES] |= {"first": int(group.first), "addend": group.addend}
        finite = group.result & golden.INFINITY != golden.INFINITY
        expected.append({"total": group.result} if finite else None)
    return Vectors(inputs, expected)


def _lane(design: Design, rng: random.Random) -> Vectors:
    """Groups of both precisions into the slots in turn, two cycles each; every sum is looked at when it is new."""
    slots, before = 2 * DEFAULT_BLOCKS, DOT_CYCLES + TERM_CYCLES
    after = before + ADD_CYCLES
    idle = _dot_inputs(design, Pass([0] * GROUP, [0] * GROUP, Role.MSB, True)) | {"enable": 0}
    idle |= dict.fromkeys(
        ("weight_scale", "activation_scale", "first", "write", "read_slot", "write_slot", "out_slot"), 0
    )
    inputs = [dict(idle) for _ in range(2 * LANE_GROUPS + after + 2)]
    expected: list[Cycle | None] = [None] * len(inputs)
    sums: dict[int, int] = {}
    for k in range(LANE_GROUPS):
        slot, roles = k % slots, rng.choice(list(Precision)).roles(design)
        codes = [rng.randint(-127, 127) for _ in range(GROUP)]
        activations = [rng.randint(-127, 127) for _ in range(GROUP)]
        for number, role in enumerate(roles):
            inputs[2 * k + number] |= _dot_inputs(design, Pass(activations, codes, role, number == 0))
        last = 2 * k + len(roles) - 1
        total = sum(golden.dot(design, activations, codes, role) for role in roles)
        first = slot not in sums or rng.random() < 0.2
        group = Group(
            rng.getrandbits(14), rng.randint(105, 130) << 23 | rng.getrandbits(23), total, first, sums.get(slot, 0)
        )
        sums[slot] = group.result
        inputs[last] |= {"weight_scale": normal_half(group.weight_scale), "activation_scale": group.activation_scale}
        inputs[last + before - 1]["read_slot"] = slot
        inputs[last + before]["first"] = int(first)
        inputs[last + after] |= {"write": 1, "write_slot": slot}
        inputs[last + after + 1]["out_slot"] = slot
        expected[last + after + 1] = {"out": group.result}
    return Vectors(inputs, expected)


_MAKERS: dict[str, Callable[[Design, random.Random], Vectors]] = {
    "unit": _unit,
    "dot32": _dot32,
    "dot32_own_encoders": _own_encoders,
    "column": _column,
    "nibble_column": _nibble_column,
    "pair": _pair,
    "scale": _scale,
    "lane": _lane,
}
