"""The golden model against NumPy, `quant/` and IEEE 754."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elmoe.errors import ConfigError
from elmoe.quant.arithmetic import SMALLEST_AMAX, linear
from elmoe.quant.bitnested import GROUP as QUANT_GROUP
from elmoe.quant.bitnested import Treatment, draft_codes, slice_codes
from elmoe.rtl import golden
from elmoe.rtl.designs import GROUP, Design, Precision, Role
from elmoe.rtl.tile import PeShape, operands, result_matrix
from elmoe.rtl.verify import random_layer

CODES = np.arange(-128, 128, dtype=np.int8)
bits32 = st.one_of(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**24),
    st.builds(
        lambda sign, exponent, f: sign << 31 | exponent << 23 | f,
        st.integers(0, 1),
        st.integers(100, 150),
        st.integers(0, 2**23 - 1),
    ),
).filter(lambda b: b >> 23 & 0xFF != 0xFF)


def single(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def bits(value: np.float32) -> int:
    return int(np.float32(value).view(np.uint32))


@pytest.mark.parametrize("design", [Design.AUGMENTED, Design.CONVENTIONAL])
def test_both_slices_make_the_code(design):
    for code in CODES.tolist():
        parts = [golden.field(design, code, role) << golden.shift(design, role) for role in (Role.MSB, Role.LSB)]
        assert sum(parts) == code
        assert all(-16 <= golden.field(design, code, role) <= 15 for role in Role if role is not Role.WHOLE)


def test_draft_fields_are_those_of_quant():
    drafts = {Design.AUGMENTED: Treatment.AUGMENT, Design.CONVENTIONAL: Treatment.TRUNCATE}
    for design, treatment in drafts.items():
        fields = [golden.field(design, code, Role.DRAFT) << golden.shift(design, Role.DRAFT) for code in CODES.tolist()]
        assert fields == draft_codes(CODES, 4, treatment).tolist()


def test_group_is_the_engine_s():
    assert GROUP == QUANT_GROUP
    msb, lsb = slice_codes(CODES)
    assert [golden.field(Design.CONVENTIONAL, code, Role.MSB) for code in CODES.tolist()] == msb.tolist()
    assert [golden.field(Design.AUGMENTED, code, Role.LSB) for code in CODES.tolist()] == lsb.tolist()


@given(bits32, bits32)
@settings(max_examples=3000)
def test_multiplication_and_addition_are_ieee_754(a, b):
    with np.errstate(all="ignore"):
        assert golden.multiply(a, b) == bits(single(a) * single(b))
        assert golden.add(a, b) == bits(single(a) + single(b))
        near = (a ^ golden.SIGN) + 1
        if near >> 23 & 0xFF != 0xFF:
            assert golden.add(a, near) == bits(single(a) + single(near))


def test_every_half_is_exact():
    for half in range(1 << 16):
        if half >> 10 & 31 != 31:
            assert golden.from_half(half) == bits(np.float32(np.uint16(half).view(np.float16)))


@given(st.integers(-(2**31), 2**31 - 1))
@settings(max_examples=1000)
def test_integers_are_rounded_once(value):
    assert golden.from_integer(value) == bits(np.float32(value))


@pytest.mark.parametrize("precision", Precision)
def test_layers_are_those_of_quant(precision):
    x, (codes, scales) = random_layer(5, 9, 160, seed=1)
    seen = codes if precision is Precision.W8 else draft_codes(codes)
    shape = PeShape(rows=2, columns=4, port_bits=128, row_blocks=3)
    made = operands(shape, Design.AUGMENTED, precision, x, (codes, scales))
    y = result_matrix(shape, made.job, made.results, 5, 9)
    assert (y.view(np.uint32) == linear(*x, seen, scales).view(np.uint32)).all()
    assert len(made.weight_words) == made.job.tiles * shape.tile_words(precision)


def test_overflow_is_infinite_and_stays():
    huge = bits(np.float32(3e38))
    assert golden.add(huge, huge) == golden.INFINITY
    assert golden.add(golden.INFINITY, huge ^ golden.SIGN) == golden.INFINITY
    assert golden.multiply(huge, huge ^ golden.SIGN) == golden.INFINITY | golden.SIGN
    assert golden.multiply(golden.INFINITY, 0) == golden.INFINITY


def test_the_smallest_activation_scale_is_in_the_domain():
    smallest = np.float32(SMALLEST_AMAX) / np.float32(127)
    golden.combined_scale(1, bits(smallest))
    assert bits(smallest) >> 23 >= golden.SMALLEST_ACTIVATION_EXPONENT


def test_outside_the_domain():
    with pytest.raises(ConfigError, match="weight scale 0x7c00 is not a finite FP16 number"):
        golden.from_half(0x7C00)
    with pytest.raises(ConfigError, match="activation scale 0x00000001 is neither zero nor in"):
        golden.combined_scale(0x3C00, 1)
    with pytest.raises(ConfigError, match="native-8x8 multiplies no w4 weights; use augmented or conventional"):
        golden.group_sum(Design.NATIVE_8X8, [0] * 32, [0] * 32, Precision.W4)
