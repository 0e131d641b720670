"""The kernels one by one, on every instruction-set path, against the definition in quant/arithmetic.py: equal bits."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import aligned, rngs, values

from backend.passes import same_bits
from elmoe.backend.cpu import _native
from elmoe.backend.cpu.backend import MSB_PLANE, TARGET_BITS, weight_bits
from elmoe.backend.protocol import DraftQuality
from elmoe.quant.arithmetic import SMALLEST_AMAX, group_sums, quantize_activations
from elmoe.quant.arithmetic import linear as linear_by_definition
from elmoe.quant.bitnested import draft_codes
from elmoe.quant.tiles import pack, unpack, unpack_draft

WIDTHS = [8, *range(2, 8)]


def matrix_of(codes, scales):
    msb, lsb = pack(codes, scales)
    return _native.Matrix(aligned(msb), aligned(lsb), *codes.shape)


def bits_of(width):
    return weight_bits(DraftQuality(width))


def seen(codes, width):
    """The codes that a pass of this width multiplies."""
    return codes if width == 8 else draft_codes(codes, width)


def random_weights(rng, outputs, inputs):
    scales = np.abs(rng.standard_normal((outputs, inputs // 32)) * 10.0 ** rng.uniform(-9, 4, (outputs, 1)))
    return rng.integers(-128, 128, (outputs, inputs), dtype=np.int8), scales.astype(np.float16)


# --- quantize ---


def assert_quantized_like_the_definition(x, isa):
    codes, scales = _native.quantize(x, isa)
    want_codes, want_scales = quantize_activations(x)
    assert same_bits(codes, want_codes)
    assert same_bits(scales, want_scales)


@given(rngs, st.integers(1, 3), st.integers(1, 9), st.sampled_from([-44, -35, -30, -3, 0, 3, 20, 38]))
@settings(max_examples=50)
def test_quantize_at_every_magnitude(isa, rng, rows, groups, exponent):
    x = (rng.uniform(-3.4, 3.4, (rows, groups * 32)) * 10.0 ** (exponent - rng.integers(0, 5))).astype(np.float32)
    assert_quantized_like_the_definition(x, isa)


def test_quantize_halfway_zero_and_smallest(isa):
    halves = np.arange(-126.5, 127.5).astype(np.float32)
    halfway = np.concatenate([np.append(part, np.float32(127)) for part in np.split(np.append(halves, [0] * 6), 13)])
    x = np.zeros((1, 32 * 13), dtype=np.float32)
    for group, part in enumerate(halfway.reshape(13, -1)):
        x[0, 32 * group : 32 * group + part.size] = part
    codes, scales = _native.quantize(x, isa)
    assert (scales == 1).all()
    assert (codes == np.rint(x)).all(), "half to even"
    assert_quantized_like_the_definition(x, isa)

    tiny = np.float32(SMALLEST_AMAX)
    for amax in (0, 1e-45, 2.0**-126, np.nextafter(tiny, np.float32(0)), tiny, np.finfo(np.float32).max):
        x = np.full((2, 64), amax, dtype=np.float32)
        x[0, ::2] = -x[0, ::2]
        x[1, 1:32] = 0
        assert_quantized_like_the_definition(x, isa)
        codes, scales = _native.quantize(x, isa)
        assert set(np.abs(codes).ravel().tolist()) <= ({0, 127} if amax >= tiny else {0})
        assert (scales > 0).all() == (amax >= tiny)


# --- linear ---


@given(
    rngs,
    st.integers(1, 33),
    st.sampled_from([1, 5, 15, 16, 17, 31, 48, 100]),
    st.sampled_from([32, 64, 96, 160, 480, 512, 544, 1056]),
    st.sampled_from(WIDTHS),
)
@settings(max_examples=80)
def test_linear_is_the_definition_for_odd_shapes(isa, rng, rows, outputs, inputs, width):
    codes, scales = random_weights(rng, outputs, inputs)
    x = values(rng, rows, inputs)
    matrix = matrix_of(codes, scales)
    got = _native.linear(matrix, x, bits_of(width), isa)
    assert np.array_equal(got, linear_by_definition(*quantize_activations(x), seen(codes, width), scales))
    row = int(rng.integers(rows))
    assert same_bits(_native.linear(matrix, x[row : row + 1], bits_of(width), isa)[0], got[row]), "a row alone"


@pytest.mark.parametrize("width", WIDTHS)
def test_group_sums_are_exact_at_the_extremes(isa, width):
    """With scales of 1 the result is the integer itself: every weight code against activations of +-127."""
    every = np.arange(-128, 128).astype(np.int8)
    codes = np.repeat(every, 64).reshape(256, 64)
    codes = np.concatenate([codes, np.tile(np.int8([-128, 127]), (16, 32)), np.full((1, 64), -128, np.int8)])
    x = np.full((19, 64), 127, dtype=np.float32)
    x[1], x[2, ::2], x[3, 1::2], x[4, 32:] = -127, -127, -127, -127
    x[5:, 1:] = np.random.default_rng(0).integers(-127, 128, (14, 63))
    x[5:, 32] = 127
    scales = np.ones((len(codes), 2), dtype=np.float16)
    got = _native.linear(matrix_of(codes, scales), x, bits_of(width), isa)
    sums = group_sums(x.astype(np.int8), seen(codes, width))
    assert (got == sums.sum(axis=0)).all()
    assert np.abs(sums).max() >= 32 * 127 * 96, "far beyond 16 bits"


@pytest.mark.parametrize("width", range(2, 8))
def test_draft_weights_are_those_of_bitnested(isa, width):
    """One-hot activations of code 127 read the matrix out."""
    rng = np.random.default_rng(width)
    codes, scales = random_weights(rng, 33, 96)
    scales[:] = 1
    one_hot = 127 * np.eye(96, dtype=np.float32)
    matrix = matrix_of(codes, scales)
    read_out = _native.linear(matrix, one_hot, bits_of(width), isa).T / 127
    assert (read_out == draft_codes(codes, width)).all()
    if width == 4:
        assert bits_of(width)[0] == MSB_PLANE
        assert (read_out == unpack_draft(pack(codes, scales)[0], 33, 96)[0]).all()
        masked = (2, 0xF0, 8)
        assert (read_out == _native.linear(matrix, one_hot, masked, isa).T / 127).all(), "with or without the LSB plane"
    assert (unpack(*pack(codes, scales), 33, 96)[0] == _native.linear(matrix, one_hot, TARGET_BITS, isa).T / 127).all()


def test_the_msb_product_does_not_look_at_the_lsb_plane(isa):
    rng = np.random.default_rng(0)
    codes, scales = random_weights(rng, 20, 96)
    msb, lsb = pack(codes, scales)
    x = values(rng, 3, 96)
    results = [
        _native.linear(_native.Matrix(aligned(msb), aligned(plane), 20, 96), x, bits_of(4), isa)
        for plane in (lsb, ~lsb)
    ]
    assert same_bits(*results)


def test_every_fp16_scale_is_read_exactly(isa):
    """Normal, subnormal, zero; negative, which no quantiser writes."""
    halves = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    codes = np.zeros((len(halves), 32), dtype=np.int8)
    codes[:, 7] = 1
    x = np.zeros((1, 32), dtype=np.float32)
    x[0, 7] = 127
    got = _native.linear(matrix_of(codes, halves[:, None]), x, TARGET_BITS, isa)
    assert (got[0] == np.float32(127) * halves.astype(np.float32)).all()


def test_paths_agree_on_a_large_product():
    rng = np.random.default_rng(1)
    matrix, x = matrix_of(*random_weights(rng, 200, 2048)), values(rng, 9, 2048)
    for width in (8, 4, 5):
        results = {isa: _native.linear(matrix, x, bits_of(width), isa).tobytes() for isa in _native.isas()}
        assert len(set(results.values())) == 1, results.keys()
        assert _native.linear(matrix, x, bits_of(width)).tobytes() in results.values(), "the default path"


# --- the rest ---


@given(rngs, st.integers(0, 300), st.integers(0, 70))
def test_crc32_is_that_of_zlib(rng, length, begin):
    data = rng.integers(0, 256, length + begin, dtype=np.uint8)[begin:]
    assert _native.crc32(data) == zlib.crc32(data.tobytes())


def test_timings_are_one_per_repeat():
    rng = np.random.default_rng(2)
    matrices = [matrix_of(*random_weights(rng, outputs, 64)) for outputs in (16, 100)]
    seconds = _native.time_linear(matrices, values(rng, 5, 64), TARGET_BITS, 4)
    assert len(seconds) == 4
    assert min(seconds) > 0
    reads = _native.time_reads(1 << 20, 3)
    assert len(reads) == 3
    assert min(reads) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": 0}, "outputs >= 1 and inputs a multiple of 32"),
        ({"inputs": 48}, "outputs >= 1 and inputs a multiple of 32"),
        ({"inputs": 0}, "outputs >= 1 and inputs a multiple of 32"),
        ({"outputs": 33}, "planes do not fit the matrix"),
        ({"inputs": 160}, "planes do not fit the matrix"),
        ({"bias": np.zeros(31, np.float32)}, "the bias does not fit"),
        ({"msb": "shifted"}, "multiple of 64 bytes"),
        ({"lsb": "shifted"}, "multiple of 64 bytes"),
        ({"lsb": "short"}, "planes do not fit the matrix"),
    ],
    ids=str,
)
def test_planes_that_do_not_fit_are_refused(change, message):
    msb, lsb = pack(np.zeros((32, 96), np.int8), np.zeros((32, 3), np.float16))
    arguments = {"msb": aligned(msb), "lsb": aligned(lsb), "outputs": 32, "inputs": 96, **change}
    for name, plane in (("msb", msb), ("lsb", lsb)):
        if isinstance(arguments[name], str):
            arguments[name] = aligned(plane, shift=32) if arguments[name] == "shifted" else aligned(plane[:-64])
    with pytest.raises(ValueError, match=message):
        _native.Matrix(**arguments)


def test_what_does_not_fit_a_product_is_refused():
    matrix = matrix_of(np.zeros((32, 96), np.int8), np.zeros((32, 3), np.float16))
    for x in (np.zeros((1, 64), np.float32), np.zeros((0, 96), np.float32)):
        with pytest.raises(ValueError, match="x does not fit the matrix"):
            _native.linear(matrix, x, TARGET_BITS)
    with pytest.raises(ValueError, match="no kernels named sse9"):
        _native.linear(matrix, np.zeros((1, 96), np.float32), TARGET_BITS, "sse9")
    with pytest.raises(ValueError, match="inputs must be a multiple of 32"):
        _native.quantize(np.zeros((1, 40), np.float32))
    with pytest.raises(ValueError, match="fewer bytes than a page"):
        _native.time_reads(100, 1)
