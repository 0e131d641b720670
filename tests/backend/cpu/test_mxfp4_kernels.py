"""Products with MXFP4 matrices, on every instruction-set path, against quant/{mxfp4,arithmetic}.py: equal bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import aligned, rngs, values

from backend.passes import same_bits
from elmoe.backend.cpu import _native
from elmoe.backend.cpu.backend import TARGET_BITS, weight_bits
from elmoe.backend.protocol import DraftQuality
from elmoe.quant import mxfp4
from elmoe.quant.arithmetic import group_sums, linear, quantize_activations
from elmoe.quant.tiles import mxfp4_plane_bytes, pack, pack_mxfp4

NO_PLANE = np.empty(0, dtype=np.uint8)
PLANE = np.zeros(mxfp4_plane_bytes(32, 96), dtype=np.uint8)


def matrix_of(codes, scales, bias=None):
    return _native.Matrix(aligned(pack_mxfp4(codes, scales)), NO_PLANE, *codes.shape, bias, mxfp4=True)


def multiplied(matrix, x, isa, bits=TARGET_BITS):
    return _native.linear(matrix, x, bits, isa)


def by_definition(x, codes, scales):
    return linear(*quantize_activations(x), mxfp4.doubled(codes), mxfp4.halved_scales(scales))


def random_weights(rng, outputs, inputs, smallest=60, largest=160):
    codes = rng.integers(0, 16, (outputs, inputs), dtype=np.uint8)
    return codes, rng.integers(smallest, largest + 1, (outputs, inputs // 32), dtype=np.uint8)


@given(
    rngs,
    st.integers(1, 17),
    st.sampled_from([1, 5, 15, 16, 17, 31, 48, 100]),
    st.sampled_from([32, 64, 96, 128, 160, 224, 480, 512, 544, 1056]),
)
@settings(max_examples=80)
def test_linear_is_the_definition_for_odd_shapes(isa, rng, rows, outputs, inputs):
    codes, scales = random_weights(rng, outputs, inputs)
    x = values(rng, rows, inputs)
    matrix = matrix_of(codes, scales)
    got = multiplied(matrix, x, isa)
    assert np.array_equal(got, by_definition(x, codes, scales))
    row = int(rng.integers(rows))
    assert same_bits(multiplied(matrix, x[row : row + 1], isa)[0], got[row]), "a row alone"


@pytest.mark.parametrize("rows", range(1, 18))
def test_every_number_of_rows(isa, rows):
    rng = np.random.default_rng(rows)
    codes, scales = random_weights(rng, 40, 224)
    x = values(rng, rows, 224)
    assert np.array_equal(multiplied(matrix_of(codes, scales), x, isa), by_definition(x, codes, scales))


def test_group_sums_are_exact_at_the_extremes(isa):
    """With halved scales of 1 the result is the integer itself: every code against activations of +-127."""
    codes = np.repeat(np.arange(16, dtype=np.uint8), 64).reshape(16, 64)
    codes = np.concatenate([codes, np.tile(np.uint8([7, 15]), (3, 32)), np.tile(np.uint8([15, 7]), (3, 32))])
    x = np.full((19, 64), 127, dtype=np.float32)
    x[1], x[2, ::2], x[3, 1::2], x[4, 32:] = -127, -127, -127, -127
    x[5:, 1:] = np.random.default_rng(0).integers(-127, 128, (14, 63))
    x[5:, 32] = 127
    got = multiplied(matrix_of(codes, np.full((22, 2), 128, dtype=np.uint8)), x, isa)
    sums = group_sums(x.astype(np.int8), mxfp4.doubled(codes))
    assert (got == sums.sum(axis=0)).all()
    assert np.abs(sums).max() == 32 * 127 * 12, "as bytes with their excess, twice that: beyond 16 bits"


def test_one_hot_activations_read_the_matrix_out(isa):
    rng = np.random.default_rng(3)
    codes, _ = random_weights(rng, 33, 96)
    scales = np.full((33, 3), 128, dtype=np.uint8)
    one_hot = 127 * np.eye(96, dtype=np.float32)
    read_out = multiplied(matrix_of(codes, scales), one_hot, isa).T / 127
    assert (read_out == mxfp4.doubled(codes)).all()


def test_every_scale_byte_is_read_exactly(isa):
    """At 17 places each. Bytes 0 and 1 are zero; 255, a NaN that no checkpoint has, is left out."""
    scales = np.stack([np.roll(np.arange(255, dtype=np.uint8), -shift) for shift in range(17)], axis=1)
    codes = np.zeros((255, 17 * 32), dtype=np.uint8)
    codes[:, 7::32] = 1  # twice 0.5
    x = np.zeros((17, 17 * 32), dtype=np.float32)
    for group in range(17):
        x[group, 32 * group + 7] = 1  # times half the scale: at most 2**126
    got = multiplied(matrix_of(codes, scales), x, isa)
    half = mxfp4.halved_scales(scales).T
    assert (half[:, :2] == 0).sum() > 0
    assert np.array_equal(got, np.float32(127) * (half * (np.float32(1) / np.float32(127))))


@given(rngs, st.sampled_from([(0, 3), (0, 20), (200, 240), (0, 240)]))
@settings(max_examples=20)
def test_scales_at_the_ends_of_fp32(isa, rng, bounds):
    """Where products and sums are subnormal, or almost too large."""
    codes, scales = random_weights(rng, 20, 160, *bounds)
    x = rng.standard_normal((3, 160)).astype(np.float32)
    assert np.array_equal(multiplied(matrix_of(codes, scales), x, isa), by_definition(x, codes, scales))


def test_the_bits_of_a_pass_do_not_matter(isa):
    """A draft multiplies an MXFP4 matrix as the target does."""
    rng = np.random.default_rng(4)
    matrix, x = matrix_of(*random_weights(rng, 20, 96)), values(rng, 3, 96)
    want = multiplied(matrix, x, isa)
    for width in range(2, 8):
        assert same_bits(multiplied(matrix, x, isa, weight_bits(DraftQuality(width))), want)


def test_padding_bytes_do_not_matter(isa):
    """Those of the scales' last line belong to nobody."""
    rng = np.random.default_rng(5)
    codes, scales = random_weights(rng, 32, 64)
    plane, x = pack_mxfp4(codes, scales), values(rng, 2, 64)
    filled = plane.reshape(2, 576).copy()
    filled[:, 512 + 32 :] = 77
    results = [
        multiplied(_native.Matrix(aligned(data), NO_PLANE, 32, 64, mxfp4=True), x, isa)
        for data in (plane, filled.reshape(-1))
    ]
    assert same_bits(*results)


def test_paths_agree_on_a_large_product():
    rng = np.random.default_rng(1)
    matrix, x = matrix_of(*random_weights(rng, 200, 2880)), values(rng, 9, 2880)
    results = {isa: multiplied(matrix, x, isa).tobytes() for isa in _native.isas()}
    assert len(set(results.values())) == 1, results.keys()
    assert _native.linear(matrix, x, TARGET_BITS).tobytes() in results.values(), "the default path"


def test_timings_take_both_kinds_of_matrices():
    rng = np.random.default_rng(2)
    matrices = [matrix_of(*random_weights(rng, outputs, 64)) for outputs in (16, 100)]
    int8 = pack(np.ones((40, 64), np.int8), np.ones((40, 2), np.float16))
    matrices.insert(1, _native.Matrix(*map(aligned, int8), 40, 64))
    seconds = _native.time_linear(matrices, values(rng, 5, 64), TARGET_BITS, 4)
    assert len(seconds) == 4
    assert min(seconds) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": 33}, "planes do not fit the matrix"),
        ({"inputs": 160}, "planes do not fit the matrix"),
        ({"mxfp4": False}, "planes do not fit the matrix"),
        ({"lsb": aligned(np.zeros(64, np.uint8))}, "planes do not fit the matrix"),
        ({"msb": aligned(PLANE[:-64])}, "planes do not fit the matrix"),
        ({"msb": aligned(PLANE, shift=32)}, "multiple of 64 bytes"),
        ({"bias": np.zeros(31, np.float32)}, "the bias does not fit"),
    ],
    ids=["outputs", "inputs", "int8", "second plane", "short", "shifted", "bias"],
)
def test_planes_that_do_not_fit_are_refused(change, message):
    arguments = {"msb": aligned(PLANE), "lsb": NO_PLANE, "outputs": 32, "inputs": 96, "mxfp4": True}
    _native.Matrix(**arguments)
    with pytest.raises(ValueError, match=message):
        _native.Matrix(**arguments | change)
