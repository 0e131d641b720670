"""The INT8 grid is GGUF's, slices nest and merge at every width, and draft errors are what the paper says."""

from __future__ import annotations

from typing import Any

import gguf
import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from gguf.quants import quantize as gguf_quantize
from hypothesis import given
from hypothesis import strategies as st

from elmoe.errors import ConfigError, TensorError
from elmoe.quant.bitnested import (
    GROUP,
    MAX_DRAFT_BITS,
    MIN_DRAFT_BITS,
    Float16,
    Float32,
    Int8,
    Treatment,
    augmented,
    dequantize,
    draft_codes,
    merge_slices,
    quantize,
    quantize_dedicated,
    slice_codes,
)

WIDTHS = range(MIN_DRAFT_BITS, MAX_DRAFT_BITS + 1)
EVERY_CODE: Int8 = np.arange(-128, 128, dtype=np.int16).astype(np.int8)
LARGEST = 127 * 65504.0
"""The largest weight whose scale is an FP16 number."""

SHAPES = st.tuples(st.integers(1, 4), st.sampled_from([32, 64, 96]))
SEEDS = st.integers(0, 2**32 - 1)


def matrices(largest: float = LARGEST) -> st.SearchStrategy[Float32]:
    """Matrices of any FP32 numbers up to `largest`: zeros, subnormals, ties and huge ones side by side."""
    elements = st.floats(-largest, largest, width=32)
    return hnp.arrays(np.float32, SHAPES, elements=elements)


def scaled_matrix(seed: int, exponents: tuple[int, int], groups: int = 12) -> Float32:
    """Normal numbers, each group of 32 times a power of two of its own."""
    rng = np.random.default_rng(seed)
    exponent = rng.integers(*exponents, size=(groups, 1), endpoint=True)
    values = np.clip(rng.standard_normal((groups, GROUP)), -3.9, 3.9).astype(np.float32)
    return np.ldexp(values, exponent).reshape(4, -1)


def gguf_q8_0(weights: Float32) -> tuple[Int8, Float16]:
    """Codes and scales of the gguf package."""
    with np.errstate(all="ignore"):
        raw = gguf_quantize(weights, gguf.GGMLQuantizationType.Q8_0).reshape(weights.shape[0], -1, 34)
    codes = np.ascontiguousarray(raw[..., 2:]).view(np.int8).reshape(weights.shape)
    return codes, np.ascontiguousarray(raw[..., :2]).view(np.float16)[..., 0]


def assert_equals_gguf(weights: Float32) -> None:
    """Same scales, and same codes wherever 1/d is an FP32 number (gguf casts Inf and NaN to int8 elsewhere)."""
    codes, scales = quantize(weights)
    expected_codes, expected_scales = gguf_q8_0(weights)
    np.testing.assert_array_equal(scales.view(np.uint16), expected_scales.view(np.uint16))
    amax = np.abs(weights).reshape(*scales.shape, GROUP).max(axis=-1)
    defined = (amax == 0) | (amax / np.float32(127) > 2.0**-128)
    np.testing.assert_array_equal(
        codes.reshape(*scales.shape, GROUP)[defined], expected_codes.reshape(*scales.shape, GROUP)[defined]
    )


@given(matrices())
def test_quantize_equals_gguf_on_any_float(weights: Float32) -> None:
    assert_equals_gguf(weights)


@given(SEEDS, st.sampled_from([(-6, -2), (-149, 20), (-30, -14), (-20, -8), (10, 20)]))
def test_quantize_equals_gguf_at_every_scale(seed: int, exponents: tuple[int, int]) -> None:
    assert_equals_gguf(scaled_matrix(seed, exponents))


@given(SEEDS, st.integers(-130, 15))
def test_quantize_equals_gguf_half_way(seed: int, exponent: int) -> None:
    """With amax = 127 * 2**e every (n + 1/2) * 2**e is a tie, and so is its neighbourhood of one ulp."""
    rng = np.random.default_rng(seed)
    ties = (rng.integers(-127, 127, size=(6, GROUP)) + 0.5).astype(np.float32)
    nudged = np.nextafter(ties, rng.choice([-1e9, 1e9], size=ties.shape).astype(np.float32))
    blocks = np.where(rng.random(ties.shape) < 0.5, ties, nudged)
    blocks[:, 0] = 127
    assert_equals_gguf(np.ldexp(blocks, exponent).reshape(2, -1))


@pytest.mark.parametrize(("value", "code"), [(0.5, 1), (1.5, 2), (-0.5, -1), (-2.5, -3), (126.5, 127), (0.49, 0)])
def test_ties_round_away_from_zero(value: float, code: int) -> None:
    weights = np.zeros((1, GROUP), dtype=np.float32)
    weights[0, :2] = 127, value
    codes, scales = quantize(weights)
    assert codes[0, 1] == code
    assert scales[0, 0] == 1


def test_just_below_a_half_rounds_down() -> None:
    """floor(x + 0.5) would make 1 of the FP32 number before 0.5."""
    weights = np.zeros((1, GROUP), dtype=np.float32)
    weights[0, :2] = 127, np.nextafter(np.float32(0.5), np.float32(0))
    assert quantize(weights)[0][0, 1] == 0


@given(matrices())
def test_codes_are_symmetric_and_errors_bounded(weights: Float32) -> None:
    """Half a step of the FP32 scale, plus what storing the scale as FP16 moves the code's value."""
    codes, scales = quantize(weights)
    assert np.abs(codes.astype(np.int16)).max() <= 127
    blocks = weights.astype(np.float64).reshape(*scales.shape, GROUP)
    exact = np.abs(blocks).max(axis=-1) / 127
    bound = exact * (0.5 + 1e-4) + 127 * np.abs(exact - scales) + 1e-40
    error = np.abs(blocks - dequantize(codes, scales).reshape(blocks.shape)).max(axis=-1)
    assert (error <= bound).all()


@given(matrices())
def test_dequantize_is_exact(weights: Float32) -> None:
    codes, scales = quantize(weights)
    wide = scales.astype(np.float64).repeat(GROUP, axis=1)
    np.testing.assert_array_equal(dequantize(codes, scales).astype(np.float64), codes * wide)


def test_zero_groups_are_zero() -> None:
    weights = np.zeros((2, 64), dtype=np.float32)
    weights[1, 40], weights[0, 0] = 3, -0.0
    codes, scales = quantize(weights)
    np.testing.assert_array_equal(scales == 0, [[True, True], [True, False]])
    np.testing.assert_array_equal(dequantize(codes, scales) != 0, weights != 0)


def test_a_subnormal_scale_is_kept() -> None:
    weights = np.full((1, GROUP), 127 * 2.0**-24, dtype=np.float32)
    codes, scales = quantize(weights)
    assert scales[0, 0] == 2.0**-24
    np.testing.assert_array_equal(dequantize(codes, scales), weights)


@pytest.mark.parametrize("amax", [127 * 2.0**-25, 2.0**-100, 127 * 2.0**-128, 2.0**-126, 2.0**-149])
def test_a_scale_below_fp16_reads_as_zeros(amax: float) -> None:
    weights = np.linspace(-amax, amax, GROUP, dtype=np.float32)[None]
    codes, scales = quantize(weights)
    assert scales[0, 0] == 0
    assert not dequantize(codes, scales).any()


def test_the_largest_scale_is_kept() -> None:
    weights = np.full((1, GROUP), -LARGEST, dtype=np.float32)
    codes, scales = quantize(weights)
    assert scales[0, 0] == 65504
    assert (codes == -127).all()


@pytest.mark.parametrize("value", [127 * 65520.0, -1e30, float(np.finfo(np.float32).max)])
def test_a_scale_above_fp16_is_refused(value: float) -> None:
    weights = np.zeros((5, 96), dtype=np.float32)
    weights[3, 70] = value
    with pytest.raises(TensorError, match=r"^model\.norm: row 3 exceeds the FP16 scale range \(\|w\| > 8\.32e\+06"):
        quantize(weights, "model.norm")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 4])
def test_nan_and_inf_are_refused(value: float, row: int) -> None:
    weights = np.ones((5, 96), dtype=np.float32)
    weights[row, 95] = value
    with pytest.raises(TensorError, match=rf"^layers\.1\.w: NaN or Inf in row {row}; .* fetch it again$"):
        quantize(weights, "layers.1.w")


def test_float64_beyond_fp32_is_refused_without_a_warning() -> None:
    weights = np.ones((2, GROUP))
    weights[1, 5] = 1e300
    with pytest.raises(TensorError, match="w: NaN or Inf in row 1"):
        quantize(weights, "w")


@pytest.mark.parametrize("shape", [(2, 33), (2, 16), (32,), (1, 2, 32), (3, 31)])
def test_shapes_without_groups_are_refused(shape: tuple[int, ...]) -> None:
    text = rf"^w: shape \[{', '.join(map(str, shape))}\] cannot be quantised; .* multiple of 32 is needed$"
    with pytest.raises(TensorError, match=text):
        quantize(np.ones(shape, dtype=np.float32), "w")


@pytest.mark.parametrize("shape", [(0, 64), (3, 0)])
def test_empty_matrices(shape: tuple[int, int]) -> None:
    codes, scales = quantize(np.ones(shape, dtype=np.float32))
    assert (codes.shape, scales.shape) == (shape, (shape[0], shape[1] // GROUP))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_every_float_type_is_quantised_as_fp32(dtype: npt.DTypeLike) -> None:
    weights = scaled_matrix(7, (-9, 3)).astype(dtype)
    codes, scales = quantize(weights)
    expected_codes, expected_scales = quantize(weights.astype(np.float32))
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(scales, expected_scales)


@pytest.mark.parametrize("index", [np.s_[::2], np.s_[:, ::-1], np.s_[::-1], np.s_[:, 32:96], np.s_[1:2]], ids=str)
def test_strided_views_are_quantised_like_copies(index: Any) -> None:
    view = scaled_matrix(3, (-4, 4), groups=16)[index]
    for strided in (view, np.asfortranarray(view)):
        codes, scales = quantize(strided)
        expected_codes, expected_scales = quantize(view.copy())
        np.testing.assert_array_equal(codes, expected_codes)
        np.testing.assert_array_equal(scales, expected_scales)


@pytest.mark.parametrize("bits", WIDTHS)
def test_slices_merge_to_every_code(bits: int) -> None:
    msb, lsb = slice_codes(EVERY_CODE, bits)
    assert (msb.dtype, lsb.dtype) == (np.int8, np.uint8)
    assert (msb.min(), msb.max()) == (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    assert (lsb.min(), lsb.max()) == (0, (1 << (8 - bits)) - 1)
    np.testing.assert_array_equal(merge_slices(msb, lsb, bits), EVERY_CODE)


@pytest.mark.parametrize("bits", list(WIDTHS)[:-1])
def test_a_slice_is_the_prefix_of_the_next_wider_one(bits: int) -> None:
    narrow, _ = slice_codes(EVERY_CODE, bits)
    wide, _ = slice_codes(EVERY_CODE, bits + 1)
    np.testing.assert_array_equal(narrow, wide >> 1)


def errors_of(treatment: Treatment, bits: int, codes: Int8 = EVERY_CODE) -> npt.NDArray[np.int16]:
    return codes.astype(np.int16) - draft_codes(codes, bits, treatment).astype(np.int16)


@pytest.mark.parametrize("bits", WIDTHS)
def test_augmentation_error(bits: int) -> None:
    """``q - draft`` in [-half, half - 1] with half = 2**(7 - bits): [-8, 7] at 4 bits."""
    half = 1 << (7 - bits)
    errors = errors_of(Treatment.AUGMENT, bits)
    assert (errors.min(), errors.max()) == (-half, half - 1)
    assert (half != 8) or (errors.min(), errors.max()) == (-8, 7)


@pytest.mark.parametrize("bits", WIDTHS)
def test_truncation_error(bits: int) -> None:
    """``q - draft`` in [0, 2**(8 - bits) - 1]: [0, 15] at 4 bits."""
    errors = errors_of(Treatment.TRUNCATE, bits)
    assert (errors.min(), errors.max()) == (0, (1 << (8 - bits)) - 1)


@pytest.mark.parametrize("bits", WIDTHS)
def test_rounding_error(bits: int) -> None:
    """[-half, half - 1] like augmentation, but the top half step saturates: up to 2 * half - 1."""
    half = 1 << (7 - bits)
    errors = errors_of(Treatment.ROUND, bits)
    saturated = 128 - half <= EVERY_CODE
    assert (errors[~saturated].min(), errors[~saturated].max()) == (-half, half - 1)
    assert (errors[saturated].min(), errors[saturated].max()) == (half, 2 * half - 1)
    assert not (draft_codes(EVERY_CODE, bits, Treatment.ROUND) & (2 * half - 1)).any()


@pytest.mark.parametrize("bits", WIDTHS)
def test_an_augmented_code_is_eight_signed_bits(bits: int) -> None:
    """In wide integers: no wrap-around, and as the hardware has it: ``msb`` with a 1 behind, shifted."""
    msb, _ = slice_codes(EVERY_CODE, bits)
    low = 8 - bits
    wide = (msb.astype(np.int64) << low) + (1 << (low - 1))
    assert wide.min() >= -128
    assert wide.max() <= 127
    np.testing.assert_array_equal(augmented(msb, bits), wide)
    field = 2 * msb.astype(np.int64) + 1  # bits + 1 signed bits: 5 at the stored width
    assert field.min() >= -(1 << bits)
    assert field.max() <= (1 << bits) - 1
    np.testing.assert_array_equal(field << (low - 1), wide)


@pytest.mark.parametrize("bits", WIDTHS)
def test_mean_errors_over_all_codes(bits: int) -> None:
    """Augmentation: half/2 on average, bias -1/2. Truncation: half - 1/2, all of it bias. Equal at 7 bits only."""
    half = 1 << (7 - bits)
    augment, truncate = errors_of(Treatment.AUGMENT, bits), errors_of(Treatment.TRUNCATE, bits)
    assert (np.abs(augment).mean(), augment.mean()) == (half / 2, -0.5)
    assert (np.abs(truncate).mean(), truncate.mean()) == (half - 0.5, half - 0.5)


@pytest.mark.parametrize("bits", list(WIDTHS)[:-1])
def test_augmentation_beats_truncation_on_normal_weights(bits: int) -> None:
    weights = np.random.default_rng(bits).standard_normal((64, 256)).astype(np.float32)
    codes, _ = quantize(weights)
    augment, truncate = errors_of(Treatment.AUGMENT, bits, codes), errors_of(Treatment.TRUNCATE, bits, codes)
    assert np.abs(augment).mean() < np.abs(truncate).mean()
    assert abs(augment.mean()) < abs(truncate.mean())


@pytest.mark.parametrize("bits", [1, 8, 0, -1])
def test_other_widths_are_refused(bits: int) -> None:
    nibbles = np.zeros(1, dtype=np.uint8)
    calls = [
        lambda: slice_codes(EVERY_CODE, bits),
        lambda: merge_slices(EVERY_CODE, nibbles, bits),
        lambda: augmented(EVERY_CODE, bits),
        lambda: draft_codes(EVERY_CODE, bits),
        lambda: quantize_dedicated(np.zeros((1, GROUP), dtype=np.float32), bits),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=f"^draft bits must be 2 to 7, not {bits}$"):
            call()


def test_a_dedicated_copy_has_no_draft_codes() -> None:
    with pytest.raises(ConfigError, match=r"scales of its own; use quantize_dedicated"):
        draft_codes(EVERY_CODE, 4, Treatment.DEDICATED)


@given(st.data(), st.sampled_from(WIDTHS))
def test_dedicated_error(data: st.DataObject, bits: int) -> None:
    """Half a step of the FP16 scale; plus, for the outermost code, what rounding the scale down cuts off."""
    top = (1 << (bits - 1)) - 1
    weights = data.draw(matrices(top * 65504.0))
    codes, scales = quantize_dedicated(weights, bits)
    assert codes.min() >= -top - 1
    assert codes.max() <= top
    blocks = weights.astype(np.float64).reshape(*scales.shape, GROUP)
    scale = scales.astype(np.float64)
    amax = np.abs(blocks).max(axis=-1)
    bound = scale * (0.5 + 1e-5) + np.maximum(amax - top * scale, 0)
    error = np.abs(blocks - dequantize(codes, scales).reshape(blocks.shape)).max(axis=-1)
    assert (error <= bound).all()


@pytest.mark.parametrize("bits", list(WIDTHS)[1:])
def test_dedicated_codes_use_the_lowest_value(bits: int) -> None:
    """A subnormal FP16 scale may be a third too small: codes go on to -top - 1, and saturate at top."""
    top = (1 << (bits - 1)) - 1
    weights = np.zeros((1, GROUP), dtype=np.float32)
    weights[0, :2] = top * 1.49 * 2.0**-24, (-top - 1) * 2.0**-24
    codes, scales = quantize_dedicated(weights, bits)
    assert scales[0, 0] == 2.0**-24
    assert codes[0, :2].tolist() == [top, -top - 1]


def test_a_dedicated_copy_refuses_what_quantize_refuses() -> None:
    weights = np.ones((3, 64), dtype=np.float32)
    weights[2, 33] = np.nan
    with pytest.raises(TensorError, match="w: NaN or Inf in row 2"):
        quantize_dedicated(weights, 4, "w")
    weights[2, 33] = 7 * 65520.0
    with pytest.raises(TensorError, match=r"w: row 2 exceeds the FP16 scale range \(\|w\| > 4\.59e\+05\)"):
        quantize_dedicated(weights, 4, "w")
    with pytest.raises(TensorError, match=r"w: shape \[3, 60\] cannot be quantised"):
        quantize_dedicated(weights[:, :60], 4, "w")
