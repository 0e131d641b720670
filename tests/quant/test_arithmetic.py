"""INT8 activations and the batch-invariant product: against scalars, bounds, and itself in other batches."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.quant.arithmetic import SMALLEST_AMAX, group_sums, linear, quantize_activations
from elmoe.quant.bitnested import GROUP, Float32, Int8, dequantize, quantize

SEEDS = st.integers(0, 2**32 - 1)
ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)


def activations(elements: st.SearchStrategy[float] = ANY_FLOAT) -> st.SearchStrategy[Float32]:
    return hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.sampled_from([32, 64])), elements=elements)


def round_half_even(value: float) -> int:
    whole = int(np.floor(value))
    above = value - whole
    if above == 0.5:
        return whole + whole % 2
    return whole + (above > 0.5)


def quantize_group_by_hand(group: list[np.float32]) -> tuple[list[int], np.float32]:
    """The docstring of `quantize_activations`, one FP32 scalar at a time."""
    amax = max(abs(value) for value in group)
    if amax < SMALLEST_AMAX:
        return [0] * len(group), np.float32(0)
    inverse = np.float32(127) / amax
    return [round_half_even(float(value * inverse)) for value in group], amax / np.float32(127)


def assert_like_by_hand(x: Float32) -> None:
    codes, scales = quantize_activations(x)
    assert (codes.dtype, scales.dtype) == (np.int8, np.float32)
    assert (codes.shape, scales.shape) == (x.shape, (x.shape[0], x.shape[1] // GROUP))
    for row in range(x.shape[0]):
        for g in range(scales.shape[1]):
            part = slice(g * GROUP, (g + 1) * GROUP)
            expected_codes, expected_scale = quantize_group_by_hand(list(x[row, part]))
            assert codes[row, part].tolist() == expected_codes
            assert scales[row, g] == expected_scale


@given(activations())
def test_activations_equal_the_scalar_definition(x: Float32) -> None:
    assert_like_by_hand(x)


@given(SEEDS, st.integers(-110, 110))
def test_activations_equal_the_scalar_definition_on_dense_rows(seed: int, exponent: int) -> None:
    values = np.random.default_rng(seed).standard_normal((2, 64)).astype(np.float32)
    assert_like_by_hand(np.ldexp(values, exponent))


@given(activations())
def test_activation_codes_stay_in_range(x: Float32) -> None:
    codes, scales = quantize_activations(x)
    assert np.abs(codes.astype(np.int16)).max() <= 127
    assert np.isfinite(scales).all()
    assert (scales >= 0).all()


@pytest.mark.parametrize("exponent", [-90, -1, 0, 60])
def test_activation_ties_go_to_even(exponent: int) -> None:
    halves = np.arange(-15.5, 16, 1, dtype=np.float32)
    x = np.ldexp(np.concatenate([halves[:31], [np.float32(127)]]).astype(np.float32), exponent)[None]
    codes, scales = quantize_activations(x)
    assert scales[0, 0] == 2.0**exponent
    assert codes[0, :31].tolist() == [round(half) for half in halves[:31].tolist()]  # Python rounds half to even
    assert (codes[0, :31] % 2 == 0).all()


def test_tiny_groups_are_zero() -> None:
    assert SMALLEST_AMAX == 2.0**-100
    x = np.zeros((3, GROUP), dtype=np.float32)
    x[0, 3] = SMALLEST_AMAX
    x[1, 3] = np.nextafter(SMALLEST_AMAX, np.float32(0))
    x[2, 3] = -np.finfo(np.float32).smallest_subnormal
    codes, scales = quantize_activations(x)
    assert codes[0, 3] == 127
    assert scales[0, 0] == SMALLEST_AMAX / np.float32(127)
    assert not codes[1:].any()
    assert not scales[1:].any()


def test_the_largest_floats_are_quantised() -> None:
    x = np.full((1, GROUP), np.finfo(np.float32).max, dtype=np.float32)
    x[0, ::2] *= -1
    codes, scales = quantize_activations(x)
    assert codes[0, :2].tolist() == [-127, 127]
    assert np.isfinite(scales).all()


def test_strided_activations() -> None:
    x = np.random.default_rng(0).standard_normal((6, 128)).astype(np.float32)
    codes, scales = quantize_activations(x[::2, 32:96])
    expected_codes, expected_scales = quantize_activations(x[::2, 32:96].copy())
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(scales, expected_scales)


def random_codes(rng: np.random.Generator, rows: int, inputs: int) -> Int8:
    return rng.integers(-127, 128, size=(rows, inputs)).astype(np.int8)


@given(SEEDS)
def test_group_sums_are_sums_of_integers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = random_codes(rng, 2, 96), random_codes(rng, 3, 96)
    sums = group_sums(x, w)
    assert sums.shape == (3, 2, 3)
    for g in range(3):
        part = slice(g * GROUP, (g + 1) * GROUP)
        for m in range(2):
            for n in range(3):
                pairs = zip(x[m, part].tolist(), w[n, part].tolist(), strict=True)
                assert sums[g, m, n] == sum(a * b for a, b in pairs)


@pytest.mark.parametrize(("x_code", "w_code"), [(127, 127), (127, -127), (-127, 127), (-127, -127), (-127, -128)])
def test_group_sums_at_the_extremes_are_fp32_integers(x_code: int, w_code: int) -> None:
    sums = group_sums(np.full((1, GROUP), x_code, np.int8), np.full((1, GROUP), w_code, np.int8))
    assert sums[0, 0, 0] == 32 * x_code * w_code
    assert abs(int(sums[0, 0, 0])) < 2**24
    assert int(sums.astype(np.float32)[0, 0, 0]) == 32 * x_code * w_code


@given(SEEDS, st.integers(-40, 40), st.sampled_from([32, 96, 320]))
def test_linear_error_bound(seed: int, exponent: int, inputs: int) -> None:
    """|y - x W^T|: half an activation step times sum |w|, group by group, plus FP32 rounding of G adds."""
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.standard_t(3, size=(3, inputs)).astype(np.float32), exponent)
    w_codes, w_scales = quantize(rng.standard_normal((5, inputs)).astype(np.float32))
    x_codes, x_scales = quantize_activations(x)
    y = linear(x_codes, x_scales, w_codes, w_scales)
    w = dequantize(w_codes, w_scales).astype(np.float64)
    by_group = np.abs(w).reshape(5, -1, GROUP).sum(axis=2)  # [N, G]
    half_step = x_scales.astype(np.float64) / 2 * (1 + 2 * 127 * 4 * 2.0**-24)  # codes come from rounded inverses
    products = np.abs(x).astype(np.float64) @ np.abs(w).T
    slack = (products + half_step @ by_group.T) * (by_group.shape[1] + 3) * 2.0**-24
    assert (np.abs(y - x.astype(np.float64) @ w.T) <= half_step @ by_group.T + slack).all()


@given(SEEDS, st.integers(1, 9))
def test_linear_of_a_row_does_not_depend_on_the_batch(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    exponents = rng.integers(-30, 30, size=(rows, 1))
    x = np.ldexp(rng.standard_normal((rows, 160)).astype(np.float32), exponents)
    w_codes, w_scales = quantize(rng.standard_normal((7, 160)).astype(np.float32))
    codes, scales = quantize_activations(x)
    together = linear(codes, scales, w_codes, w_scales).view(np.uint32)
    picked = rng.integers(0, rows, size=12)
    shuffled = linear(codes[picked], scales[picked], w_codes, w_scales).view(np.uint32)
    np.testing.assert_array_equal(shuffled, together[picked])
    for row in range(rows):
        part = slice(row, row + 1)
        alone_codes, alone_scales = quantize_activations(x[part])
        alone = linear(alone_codes, alone_scales, w_codes, w_scales).view(np.uint32)
        np.testing.assert_array_equal(alone, together[part])


@given(SEEDS)
def test_linear_adds_groups_in_ascending_order(seed: int) -> None:
    """Scalar FP32: scale product first, then the scaled sum, then the running total."""
    rng = np.random.default_rng(seed)
    x_codes, w_codes = random_codes(rng, 1, 128), random_codes(rng, 1, 128)
    x_scales = rng.random((1, 4), dtype=np.float32)
    w_scales = rng.random((1, 4)).astype(np.float16)
    sums = group_sums(x_codes, w_codes)[:, 0, 0]
    total = np.float32(0)
    for g in range(4):
        total += np.float32(sums[g]) * (np.float32(w_scales[0, g]) * x_scales[0, g])
    assert linear(x_codes, x_scales, w_codes, w_scales)[0, 0] == total


def test_no_rows() -> None:
    """An expert that no token chose."""
    codes, scales = quantize_activations(np.zeros((0, 64), dtype=np.float32))
    assert (codes.shape, scales.shape) == ((0, 64), (0, 2))
    w_codes, w_scales = quantize(np.ones((3, 64), dtype=np.float32))
    assert linear(codes, scales, w_codes, w_scales).shape == (0, 3)
