"""The reference model of the RTL in Python integers: fields, dot products, FP16 group scales, FP32 accumulation.

The same arithmetic as `quant/arithmetic.py` and the backends (docs/numerics.md), bit for bit: INT8 x INT8 products are
summed exactly in a group of 32; the sum becomes FP32, is multiplied with ``weight scale x activation scale`` (itself
rounded to FP32), and groups are added in ascending order; one rounding (to nearest, ties to even) per operation,
nothing fused, subnormal numbers kept. FP32 values are their 32 bits as a Python integer, FP16 values their 16 bits.

Domain: weight scales are finite FP16; activation scales are zero or in ``[2**-107, 2**128)`` as `quantize_activations`
makes them. Results beyond the FP32 range are infinite here and in the RTL; where IEEE 754 then has a NaN (infinity
minus infinity, infinity times zero) both keep an infinity, so "finite or not" agrees with the engine, which refuses
such logits. Knows nothing about cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from elmoe.errors import ConfigError
from elmoe.rtl.designs import GROUP, Design, Precision, Role

SIGN, INFINITY = 1 << 31, 0xFF << 23
FRACTION_BITS, BIAS, SMALLEST_EXPONENT = 23, 127, 1
SMALLEST_ACTIVATION_EXPONENT = BIAS - 107
"""Biased exponent of the smallest activation scale: ``2**-100 / 127`` is above ``2**-107``."""
NEGATIVE_ZERO = SIGN
"""What a sum begins with: adding anything to it gives that thing, also a zero of either sign."""


def field(design: Design, code: int, role: Role) -> int:
    """The multiplier's signed weight operand for an INT8 code (or, in native 4x8, an INT4 code)."""
    if role is Role.WHOLE:
        return code
    msb, lsb = code >> 4, code & 15
    if role is Role.LSB:
        return lsb
    if design is Design.AUGMENTED:
        return 2 * msb + (1 if role is Role.DRAFT else 0)
    return msb


def shift(design: Design, role: Role) -> int:
    """Left shift of a sum of products in this role."""
    return design.msb_shift if role in (Role.DRAFT, Role.MSB) else 0


def dot(design: Design, activations: Sequence[int], codes: Sequence[int], role: Role) -> int:
    """One pass: the sum of products of activations and fields, shifted to its place."""
    total = sum(a * field(design, w, role) for a, w in zip(activations, codes, strict=True))
    return total << shift(design, role)


def group_sum(design: Design, activations: Sequence[int], codes: Sequence[int], precision: Precision) -> int:
    """All passes of one group of 32, added as integers."""
    return sum(dot(design, activations, codes, role) for role in precision.roles(design))


class Float(NamedTuple):
    """``(-1)**negative * magnitude * 2**exponent``, unrounded."""

    negative: bool
    magnitude: int
    exponent: int


def unpack(bits: int) -> Float:
    """The exact value of a finite FP32 number."""
    exponent, fraction = bits >> FRACTION_BITS & 0xFF, bits & ((1 << FRACTION_BITS) - 1)
    if exponent == 0:
        return Float(bool(bits & SIGN), fraction, SMALLEST_EXPONENT - BIAS - FRACTION_BITS)
    return Float(bool(bits & SIGN), fraction | 1 << FRACTION_BITS, exponent - BIAS - FRACTION_BITS)


def rounded(value: Float) -> int:
    """FP32 bits of a value, to nearest, ties to even; infinite beyond the range."""
    sign = SIGN if value.negative else 0
    if not value.magnitude:
        return sign
    smallest = SMALLEST_EXPONENT - BIAS - FRACTION_BITS
    exponent = max(value.exponent + value.magnitude.bit_length() - 1 - FRACTION_BITS, smallest)
    dropped = exponent - value.exponent
    if dropped <= 0:
        mantissa = value.magnitude << -dropped
    else:
        mantissa, rest = value.magnitude >> dropped, value.magnitude & ((1 << dropped) - 1)
        half = 1 << (dropped - 1)
        mantissa += rest > half or (rest == half and mantissa & 1)
    # A mantissa below 2**23 is subnormal, one that was rounded up to 2**24 carries into the exponent: both by adding.
    return sign | min(((exponent - smallest) << FRACTION_BITS) + mantissa, INFINITY)


def multiply(a: int, b: int) -> int:
    """FP32 x FP32."""
    negative = bool((a ^ b) & SIGN)
    if INFINITY in (a & ~SIGN, b & ~SIGN):
        return (SIGN if negative else 0) | INFINITY
    x, y = unpack(a), unpack(b)
    return rounded(Float(negative, x.magnitude * y.magnitude, x.exponent + y.exponent))


def add(a: int, b: int) -> int:
    """FP32 + FP32."""
    for infinite in (a, b):
        if infinite & ~SIGN == INFINITY:
            return infinite
    x, y = unpack(a), unpack(b)
    exponent = min(x.exponent, y.exponent)
    total = sum((-v.magnitude if v.negative else v.magnitude) << (v.exponent - exponent) for v in (x, y))
    negative = total < 0 if total else x.negative and y.negative
    return rounded(Float(negative, abs(total), exponent))


def from_integer(value: int) -> int:
    """INT32 -> FP32."""
    return rounded(Float(value < 0, abs(value), 0))


def from_half(bits: int) -> int:
    """FP16 -> FP32, exact; ConfigError for infinities and NaN."""
    exponent, fraction = bits >> 10 & 0x1F, bits & 0x3FF
    if exponent == 0x1F:
        raise ConfigError(f"weight scale {bits:#06x} is not a finite FP16 number")
    value = Float(bool(bits >> 15), fraction, -24) if exponent == 0 else Float(False, fraction | 0x400, exponent - 25)
    return rounded(value._replace(negative=bool(bits >> 15)))


def combined_scale(weight_scale: int, activation_scale: int) -> int:
    """FP16 x FP32 -> FP32; ConfigError for an activation scale that the engine cannot make."""
    exponent = activation_scale >> FRACTION_BITS & 0xFF
    if activation_scale & ~SIGN and not SMALLEST_ACTIVATION_EXPONENT <= exponent < 0xFF:
        raise ConfigError(f"activation scale {activation_scale:#010x} is neither zero nor in [2**-107, 2**128)")
    return multiply(from_half(weight_scale), activation_scale)


def term(total: int, weight_scale: int, activation_scale: int) -> int:
    """One group's contribution: its integer sum on both scales."""
    scale = combined_scale(weight_scale, activation_scale)
    return multiply(from_integer(total), scale)


def output(
    design: Design,
    precision: Precision,
    activations: tuple[Sequence[int], Sequence[int]],
    weights: tuple[Sequence[int], Sequence[int]],
) -> int:
    """One output element: FP32 bits.

    `activations` are K INT8 codes and K/32 FP32 scales, `weights` K INT8 codes and K/32 FP16 scales.
    """
    (codes, scales), (weight_codes, weight_scales) = activations, weights
    total = NEGATIVE_ZERO
    for g, (weight_scale, scale) in enumerate(zip(weight_scales, scales, strict=True)):
        part = slice(GROUP * g, GROUP * (g + 1))
        total = add(total, term(group_sum(design, codes[part], weight_codes[part], precision), weight_scale, scale))
    return total
