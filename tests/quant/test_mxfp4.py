"""MXFP4 against the OCP rules in exact fractions, ml_dtypes, gguf and the Hugging Face layout of GPT-OSS."""

from __future__ import annotations

from fractions import Fraction
from math import frexp

import gguf
import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from gguf.quants import dequantize as gguf_dequantize
from hypothesis import given
from hypothesis import strategies as st

from elmoe.errors import TensorError
from elmoe.quant import mxfp4
from elmoe.quant.bitnested import GROUP, Float32, UInt8

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""E2M1 magnitudes by code, from the OCP table."""

SEEDS = st.integers(0, 2**32 - 1)
MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([32, 64])),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def random_blocks(seed: int, scales: tuple[int, int] = (2, 252), rows: int = 3) -> tuple[UInt8, UInt8]:
    """Codes [rows, 96] and scale bytes [rows, 3] in a range that FP32 and the arithmetic can hold."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, size=(rows, 96), dtype=np.uint8)
    return codes, rng.integers(*scales, size=(rows, 3), dtype=np.uint8, endpoint=True)


def quantize_block_by_hand(block: list[float]) -> tuple[list[int], int]:
    """OCP MX v1.0 section 6.3 in exact fractions: nearest E2M1 value, ties to the even code, saturating."""
    amax = max(abs(value) for value in block)
    byte = max(frexp(amax)[1] - 1 - 2 + 127, 0) if amax else 0
    codes = []
    for value in block:
        scaled = Fraction(abs(value)) / Fraction(2) ** (byte - 127)
        distance = [abs(scaled - Fraction(candidate)) for candidate in VALUES]
        nearest = [code for code in range(8) if distance[code] == min(distance)]
        code = nearest[0] if len(nearest) == 1 else next(code for code in nearest if code % 2 == 0)
        codes.append(code | (8 if np.signbit(np.float32(value)) else 0))
    return codes, byte


def assert_like_by_hand(weights: Float32) -> None:
    codes, scales = mxfp4.quantize(weights)
    assert (codes.dtype, scales.dtype) == (np.uint8, np.uint8)
    assert (codes.shape, scales.shape) == (weights.shape, (weights.shape[0], weights.shape[1] // GROUP))
    for row in range(weights.shape[0]):
        for g in range(scales.shape[1]):
            part = slice(g * GROUP, (g + 1) * GROUP)
            expected_codes, byte = quantize_block_by_hand(weights[row, part].tolist())
            assert codes[row, part].tolist() == expected_codes
            assert scales[row, g] == byte


@given(MATRICES)
def test_quantize_follows_the_specification(weights: Float32) -> None:
    assert_like_by_hand(weights)


@given(SEEDS, st.integers(-149, 125))
def test_quantize_follows_the_specification_on_ties(seed: int, exponent: int) -> None:
    """Multiples of a quarter up to 8, and their neighbours one ulp away: every midpoint of the grid is among them."""
    rng = np.random.default_rng(seed)
    grid = rng.integers(-31, 32, size=(2, GROUP)).astype(np.float32) / 4
    nudged = np.nextafter(grid, rng.choice([-9, 9], size=grid.shape).astype(np.float32))
    assert_like_by_hand(np.ldexp(np.where(rng.random(grid.shape) < 0.6, grid, nudged), exponent))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4), (7, 6), (7.75, 6), (0.26, 0.5), (5.01, 6)],
)
def test_ties_to_even_and_saturation(value: float, expected: float) -> None:
    weights = np.zeros((1, GROUP), dtype=np.float32)
    weights[0, :3] = 6, value, -value
    codes, scales = mxfp4.quantize(weights)
    assert scales[0, 0] == 127
    assert mxfp4.dequantize(codes, scales)[0, :3].tolist() == [6, expected, -expected]


@given(MATRICES)
def test_elements_equal_ml_dtypes(weights: Float32) -> None:
    """With the shared scale divided out, the conversion is that of the float4_e2m1fn type, signed zeros included."""
    codes, scales = mxfp4.quantize(weights)
    exponent = scales.astype(np.int32).repeat(GROUP, axis=1) - 127
    expected = np.ldexp(weights, -exponent).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    np.testing.assert_array_equal(codes, expected)


def test_every_scale_equals_ml_dtypes() -> None:
    scales = np.arange(255, dtype=np.uint8)[None]
    expected = scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64) / 2
    expected[0, :2] = 0
    np.testing.assert_array_equal(mxfp4.halved_scales(scales).astype(np.float64), expected)


def test_half_of_every_scale_is_zero_or_a_normal_number_made_of_its_exponent_bits() -> None:
    """What the kernels do with a byte."""
    scales = np.arange(255, dtype=np.uint8)[None]
    exponents = np.maximum(scales.astype(np.int32) - 1, 0) << 23
    half = mxfp4.halved_scales(scales)
    assert half.dtype == np.float32
    assert half.tobytes() == exponents.tobytes()
    assert half[half > 0].min() == np.finfo(np.float32).smallest_normal


def test_doubled_codes_are_twice_the_values() -> None:
    codes = np.arange(16, dtype=np.uint8)
    doubled = mxfp4.doubled(codes)
    assert doubled.dtype == np.int8
    assert doubled.tolist() == [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
    np.testing.assert_array_equal(doubled, 2 * codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32))
    assert mxfp4.doubled(codes.reshape(2, 2, 4)).shape == (2, 2, 4)


def test_every_code_at_every_scale_dequantises_exactly() -> None:
    """Scale bytes 2 to 252, and 0 and 1 as zeros; from 253 on, 6 is beyond FP32."""
    codes = np.tile(np.arange(16, dtype=np.uint8), (253, 2))
    scales = np.arange(253, dtype=np.uint8)[:, None]
    values = np.array(VALUES + tuple(-value for value in VALUES))
    expected = values[codes] * 2.0 ** (scales.astype(np.float64) - 127)
    assert np.abs(expected[:2]).max() < 2.0**-123
    expected[:2] = 0
    np.testing.assert_array_equal(mxfp4.dequantize(codes, scales).astype(np.float64), expected)


@given(SEEDS)
def test_blocks_with_a_large_element_round_trip(seed: int) -> None:
    """A 4 or 6 in the block keeps the scale, and what is on the grid stays there (-0 becomes 0)."""
    codes, scales = random_blocks(seed)
    codes[:, ::GROUP] |= 6
    back_codes, back_scales = mxfp4.quantize(mxfp4.dequantize(codes, scales))
    np.testing.assert_array_equal(back_scales, scales)
    np.testing.assert_array_equal(back_codes, np.where(codes == 8, 0, codes))


@given(MATRICES)
def test_error_bound(weights: Float32) -> None:
    """A quarter of the scale below 2, a half below 4, one below 6, and less than two where 6 saturates.

    What is taken as zero is lost whole.
    """
    codes, scales = mxfp4.quantize(weights)
    bytes_of_all = scales.astype(np.float64).repeat(GROUP, axis=1)
    scale = 2.0 ** (bytes_of_all - 127)
    size = np.abs(weights) / scale
    assert size.max() < 8
    bound = np.select([bytes_of_all < 2, size < 2, size < 4, size < 6], [size, 0.25, 0.5, 1.0], size - 6)
    error = np.abs(weights.astype(np.float64) - mxfp4.dequantize(codes, scales))
    assert (error <= bound * scale).all()


def test_blocks_below_two_to_the_minus_123_are_zero() -> None:
    edge = np.float32(2.0**-123)
    weights = np.stack([np.full(GROUP, edge), np.full(GROUP, np.nextafter(edge, np.float32(0)))])
    codes, scales = mxfp4.quantize(weights)
    assert scales.tolist() == [[2], [1]]
    np.testing.assert_array_equal(mxfp4.dequantize(codes, scales), weights * [[1], [0]])


def test_zero_blocks_are_exact() -> None:
    weights = np.zeros((2, 64), dtype=np.float32)
    weights[1, 40] = -1.5
    codes, scales = mxfp4.quantize(weights)
    assert scales[0].tolist() == [0, 0]
    assert not codes[0].any()
    np.testing.assert_array_equal(mxfp4.dequantize(codes, scales), weights)


@pytest.mark.parametrize("value", [2.0**-149, 2.0**-126, 3 * 2.0**-149, float(np.finfo(np.float32).max)])
def test_the_ends_of_fp32(value: float) -> None:
    weights = np.full((1, GROUP), value, dtype=np.float32)
    assert_like_by_hand(weights)
    back = mxfp4.dequantize(*mxfp4.quantize(weights))
    assert np.isfinite(back).all()


def test_integer_dot_products_are_exact() -> None:
    """32 products of an INT8 activation and a doubled code stay far below 2**24."""
    assert 32 * 127 * max(mxfp4.DOUBLED_VALUES) < 2**24
    codes, scales = random_blocks(3, (100, 150))
    x = np.random.default_rng(4).integers(-127, 128, size=96)
    sums = (x * mxfp4.doubled(codes).astype(np.int64)).reshape(3, 3, GROUP).sum(axis=2)
    exact = (x * mxfp4.dequantize(codes, scales).astype(np.float64)).reshape(3, 3, GROUP).sum(axis=2)
    np.testing.assert_array_equal(sums * mxfp4.halved_scales(scales).astype(np.float64), exact)


@given(SEEDS)
def test_pack_and_unpack(seed: int) -> None:
    codes, _ = random_blocks(seed)
    blocks = mxfp4.pack(codes)
    assert (blocks.shape, blocks.dtype) == ((3, 3, 16), np.uint8)
    for row in range(3):
        for column in range(0, 96, 2):
            byte = int(blocks[row, column // 32, column % 32 // 2])
            assert (byte & 15, byte >> 4) == (codes[row, column], codes[row, column + 1])
    np.testing.assert_array_equal(mxfp4.unpack(blocks), codes)


def test_every_byte_unpacks_and_packs_back() -> None:
    blocks = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
    np.testing.assert_array_equal(mxfp4.pack(mxfp4.unpack(blocks)), blocks)


@given(SEEDS)
def test_dequantize_equals_gguf(seed: int) -> None:
    """gguf pairs element i with i + 16 in a byte, puts the scale first, doubles values and halves scales, like us."""
    codes, scales = random_blocks(seed)
    halves = codes.reshape(3, 3, 2, 16)
    raw = np.concatenate([scales[..., None], halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)], axis=-1)
    expected = gguf_dequantize(raw.reshape(3, -1), gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(mxfp4.dequantize(codes, scales), expected)


@pytest.mark.verify
@pytest.mark.filterwarnings("ignore")
def test_dequantize_equals_transformers() -> None:
    """GPT-OSS as transformers reads it: blocks [E, N, K/32, 16] to [E, K, N]."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.integrations.mxfp4")
    codes, scales = random_blocks(0, (1, 252), rows=8)
    blocks = torch.from_numpy(mxfp4.pack(codes).reshape(2, 4, 3, 16))
    theirs = module.convert_moe_packed_tensors(blocks, torch.from_numpy(scales.reshape(2, 4, 3)), dtype=torch.float32)
    ours = mxfp4.dequantize(mxfp4.unpack(mxfp4.pack(codes)), scales).reshape(2, 4, 96).transpose(0, 2, 1)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_a_nan_scale_is_refused() -> None:
    codes, scales = random_blocks(1, rows=5)
    scales[3, 1] = 255
    text = r"^experts\.down: NaN block scale in row 3; the checkpoint is damaged, fetch it again$"
    with pytest.raises(TensorError, match=text):
        mxfp4.dequantize(codes, scales, "experts.down")
    with pytest.raises(TensorError, match=text):
        mxfp4.halved_scales(scales, "experts.down")


@pytest.mark.parametrize(("byte", "code"), [(253, 7), (254, 12)])
def test_values_beyond_fp32_are_refused(byte: int, code: int) -> None:
    codes, scales = random_blocks(1, rows=5)
    codes[2, 40], scales[2, 1] = code, byte
    codes[2, 32:40], codes[2, 41:64] = 0, 0
    with pytest.raises(TensorError, match=r"^w: row 2 exceeds the FP32 range"):
        mxfp4.dequantize(codes, scales, "w")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_nan_and_inf_are_refused(value: float) -> None:
    weights = np.ones((4, 64))
    weights[2, 63] = value
    with pytest.raises(TensorError, match=r"^w: NaN or Inf in row 2; .* fetch it again$"):
        mxfp4.quantize(weights, "w")


@pytest.mark.parametrize("shape", [(2, 48), (32,), (2, 1, 32)])
def test_shapes_without_blocks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TensorError, match=r"^w: shape \[.*\] cannot be quantised; .* multiple of 32 is needed$"):
        mxfp4.quantize(np.ones(shape, dtype=np.float32), "w")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_every_float_type_is_quantised_as_fp32(dtype: npt.DTypeLike) -> None:
    weights = np.random.default_rng(2).standard_normal((6, 96)).astype(dtype)[::2]
    codes, scales = mxfp4.quantize(weights)
    expected_codes, expected_scales = mxfp4.quantize(weights.astype(np.float32))
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(scales, expected_scales)


def test_the_scale_is_the_floor_of_the_logarithm() -> None:
    """Just below a power of two the scale must not round up, as a rounded log2 would."""
    weights = np.zeros((1, GROUP), dtype=np.float32)
    for exponent in range(-120, 128):
        weights[0, 0] = np.ldexp(np.float32(1), exponent)
        assert mxfp4.quantize(weights)[1][0, 0] == exponent - 2 + 127
        weights[0, 0] = np.nextafter(weights[0, 0], np.float32(0))
        assert mxfp4.quantize(weights)[1][0, 0] == exponent - 1 - 2 + 127
