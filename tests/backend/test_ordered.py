import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elmoe.backend import ordered

EPS = 2.0**-24
rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)
lengths = st.integers(1, 300)


def values(rng, *shape):
    """FP32 of mixed magnitudes, so that another order of adding gives other bits."""
    scale = 10.0 ** rng.uniform(-4, 4, shape)
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def same_bits(x, y):
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def folded(row):
    """The definition: element i to lane i % 32 in ascending order, then the upper half of the lanes onto the lower."""
    lanes = [np.float32(0)] * 32
    for i, value in enumerate(row):
        lanes[i % 32] = value if i < 32 else lanes[i % 32] + value
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [lanes[i] + lanes[half + i] for i in range(half)]
    return lanes[0]


def in_eights(row):
    """The definition: eight elements folded in halves, blocks of eight added in order."""
    total = None
    for first in range(0, len(row), 8):
        eight = [*row[first : first + 8], *[np.float32(0)] * 8][:8]
        four = [eight[i] + eight[i + 4] for i in range(4)]
        block = (four[0] + four[2]) + (four[1] + four[3])
        total = block if total is None else total + block
    return total


@given(rngs, lengths)
def test_sums_are_their_definitions_and_close_to_the_exact_sum(rng, length):
    x = values(rng, 4, length)
    for sums, definition in ((ordered.lane_sum(x), folded), (ordered.eight_sum(x, axis=1), in_eights)):
        for row, got in zip(x, sums, strict=True):
            assert got == definition(row)
            assert abs(float(got) - math.fsum(row)) <= (length / 8 + 5) * EPS * math.fsum(abs(row))


@given(st.lists(st.floats(-200, 88, width=32), min_size=1, max_size=50))
def test_exponential_is_within_two_ulp_and_exactly_zero_below_the_normal_numbers(xs):
    x = np.array(xs, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    got = ordered.exponential(x)
    live = x >= np.float32(-87.3)
    assert (got[~live] == 0).all()
    np.testing.assert_allclose(got[live], exact[live], rtol=2 * 2.0**-23)


def test_exponential_at_its_edges():
    x = np.array([0, -0.0, -87.3, -88, -np.inf, 88, 100, np.inf], dtype=np.float32)
    top = np.exp(np.float64(88))
    least = np.exp(np.float64(x[2]))
    np.testing.assert_allclose(ordered.exponential(x), [1, 1, least, 0, 0, top, top, top], rtol=1e-6)
    assert ordered.exponential(x[:1])[0] == 1


def layouts(x):
    """The same values, with the summed axis last, in other memory."""
    yield np.asfortranarray(x)
    yield x[::-1][::-1]
    wide = np.zeros((x.shape[0] * 2, x.shape[1] * 3), dtype=np.float32)
    wide[::2, ::3] = x
    yield wide[::2, ::3]
    yield np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, 1)), 1, 0)
    shifted = np.zeros(x.size + 3, dtype=np.float32)[3:].reshape(x.shape)  # not aligned to 16 bytes
    shifted[:] = x
    yield shifted


@pytest.mark.parametrize(
    "function",
    [
        ordered.lane_sum,
        ordered.softmax,
        ordered.log_total,
        lambda x: ordered.rms_norm(x, np.linspace(0.5, 2, x.shape[-1], dtype=np.float32), 1e-6),
        lambda x: ordered.product(x, np.sin(np.arange(7 * x.shape[-1], dtype=np.float32)).reshape(7, -1)),
    ],
    ids=["lane_sum", "softmax", "log_total", "rms_norm", "product"],
)
@given(rngs, lengths, st.integers(1, 9))
@settings(max_examples=60)
def test_a_row_has_the_same_bits_in_any_batch_and_any_memory(function, rng, length, rows):
    x = values(rng, rows, length)
    together = function(x)
    for row in range(rows):
        assert same_bits(function(x[row : row + 1])[0], together[row])
    assert same_bits(function(x[::-1])[::-1].copy(), together)
    for other in layouts(x):
        assert same_bits(np.ascontiguousarray(function(other)), together)


@given(rngs, lengths)
def test_eight_sum_along_any_axis(rng, length):
    x = values(rng, 2, length, 3)
    want = ordered.eight_sum(np.ascontiguousarray(np.moveaxis(x, 1, -1)), axis=-1)
    assert same_bits(ordered.eight_sum(x, axis=1), want)
    assert same_bits(ordered.eight_sum(x, axis=-2), want)


@given(rngs, st.integers(1, 20), st.integers(0, 9), st.integers(0, 20))
def test_eight_sum_carries_on_and_zeros_change_nothing(rng, blocks, more, cut):
    x = values(rng, 3, 8 * blocks, 2)
    total = ordered.eight_sum(x, axis=1)
    padded = np.concatenate([x, np.zeros((3, more, 2), dtype=np.float32)], axis=1)
    assert same_bits(ordered.eight_sum(padded, axis=1), total)
    first, rest = np.split(x, [8 * min(max(cut, 1), blocks)], axis=1)
    carried = ordered.eight_sum(first, axis=1)
    assert same_bits(ordered.eight_sum(rest, axis=1, total=carried) if rest.size else carried, total)


@given(rngs, lengths)
def test_softmax_norm_and_product_are_right(rng, length):
    x = (values(rng, 3, length) % 20).astype(np.float32)
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(axis=1, keepdims=True))
    np.testing.assert_allclose(ordered.softmax(x), e / e.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-30)
    weight = values(rng, length)
    norm = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(ordered.rms_norm(x, weight, 1e-5), norm, rtol=1e-5)
    matrix = values(rng, 5, length)
    bound = 1e-6 * (np.abs(wide) @ np.abs(matrix.astype(np.float64)).T) + 1e-30
    assert (np.abs(ordered.product(x, matrix) - wide @ matrix.astype(np.float64).T) <= bound).all()


# --- attention ---


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def cache_of(rng, cells, kv_heads=2, d=8):
    keys = rng.standard_normal((kv_heads, d, cells)).astype(np.float32)
    return keys, rng.standard_normal((kv_heads, cells, d)).astype(np.float32)


def int32(*items):
    return np.array(items, dtype=np.int32)


def softmax_attention(query, keys, values, seen):
    """One row in float64 over the cells `seen`, in order."""
    H, d = query.shape
    out = np.empty((H, d))
    for head in range(H):
        kv = head // (H // keys.shape[0])
        scores = query[head].astype(np.float64) @ keys[kv][:, seen].astype(np.float64)
        weights = np.exp(scores - scores.max())
        out[head] = weights / weights.sum() @ values[kv][seen].astype(np.float64)
    return out


def attend(query, keys, values, prefix, path, first=None, sinks=None):
    seen = np.zeros_like(prefix) if first is None else first
    return ordered.attention(query, keys, values, ordered.Sees(prefix, path, seen), sinks)


NO_PATH = np.zeros((1, 0), dtype=np.int32)


@given(rngs, st.integers(0, 100), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_attention_over_prefix_and_paths_is_softmax_attention(rng, prefix, path_lengths):
    cells = prefix + 12
    keys, values = cache_of(rng, cells)
    rows = len(path_lengths)
    query = rng.standard_normal((rows, 4, 8)).astype(np.float32)
    path = np.full((rows, 5), -1, dtype=np.int32)
    for row, length in enumerate(path_lengths):
        path[row, :length] = prefix + rng.permutation(12)[:length]
    got = attend(query, keys, values, np.full(rows, prefix, dtype=np.int32), path)
    for row, length in enumerate(path_lengths):
        seen = [*range(prefix), *path[row, :length]]
        np.testing.assert_allclose(got[row], softmax_attention(query[row], keys, values, seen), atol=2e-6)


@given(rngs, st.integers(1, 90), st.integers(1, 40))
def test_a_chunk_of_plain_rows_is_causal_softmax_attention(rng, first, rows):
    keys, values = cache_of(rng, first + rows)
    query = rng.standard_normal((rows, 4, 8)).astype(np.float32)
    prefix = np.arange(first, first + rows, dtype=np.int32)
    got = attend(query, keys, values, prefix, np.zeros((rows, 0), dtype=np.int32))
    for row in range(rows):
        want = softmax_attention(query[row], keys, values, range(prefix[row]))
        np.testing.assert_allclose(got[row], want, atol=2e-6)
        alone = attend(query[row : row + 1], keys, values, prefix[row : row + 1], NO_PATH)
        assert same_bits(alone[0], got[row])


@given(rngs, st.integers(1, 100), st.integers(1, 6), st.integers(0, 70), st.integers(0, 3))
def test_the_bits_of_a_row_do_not_depend_on_where_its_context_lies(rng, prefix, depth, spare, padding):
    """The same context as committed cells, and as committed cells and a path through scattered scratch cells."""
    total = prefix + depth
    keys, values = cache_of(rng, total)
    query = rng.standard_normal((1, 4, 8)).astype(np.float32)
    want = attend(query, keys, values, int32(total), NO_PATH)

    cells = total + depth + spare
    big_keys, big_values = (np.full((2, 8, cells), 65504, np.float32), np.full((2, cells, 8), -65504, np.float32))
    scattered = prefix + rng.permutation(cells - prefix)[:depth]
    big_keys[:, :, :prefix], big_values[:, :prefix] = keys[:, :, :prefix], values[:, :prefix]
    big_keys[:, :, scattered], big_values[:, scattered] = keys[:, :, prefix:], values[:, prefix:]
    path = np.full((3, depth + padding), -1, dtype=np.int32)
    path[0, :1], path[1, :depth], path[2, :1] = scattered[0], scattered, scattered[-1]
    queries = np.concatenate([query * 2, query, query * 3])
    tree = attend(queries, big_keys, big_values, np.full(3, prefix, dtype=np.int32), path)
    assert same_bits(tree[1:2], want)


@pytest.mark.parametrize("elements", [1, 1 << 12, 1 << 30])
def test_chunking_changes_no_bit(monkeypatch, elements):
    rng = np.random.default_rng(1)
    keys, values = cache_of(rng, 80)
    query = rng.standard_normal((40, 4, 8)).astype(np.float32)
    arguments = query, keys, values, np.arange(41, 81, dtype=np.int32), np.zeros((40, 0), dtype=np.int32)
    want, product = attend(*arguments), ordered.product(query[:, 0], keys[0].T)
    monkeypatch.setattr(ordered, "CHUNK_ELEMENTS", elements)
    assert same_bits(attend(*arguments), want)
    assert same_bits(ordered.product(query[:, 0], keys[0].T), product)


def test_rows_with_paths_after_different_prefixes_have_the_bits_of_rows_alone():
    rng = np.random.default_rng(0)
    keys, contents, query = values(rng, 2, 16, 90), values(rng, 2, 90, 16), values(rng, 3, 4, 16)
    prefix = np.array([70, 5, 33], dtype=np.int32)
    path = np.array([[80, 81], [82, -1], [83, 84]], dtype=np.int32)
    together = attend(query, keys, contents, prefix, path)
    for row in range(3):
        one = slice(row, row + 1)
        alone = attend(query[one], keys, contents, prefix[one], path[one])
        assert same_bits(together[one], alone)


@given(rngs, st.integers(1, 300), st.integers(1, 200), st.booleans())
def test_a_window_is_softmax_attention_over_what_it_shows(rng, positions, window, with_path):
    """Spans that the window hides whole, in part and not at all; the last positions in a path or not."""
    keys, contents = normal(rng, 2, 8, positions), normal(rng, 2, positions, 8)
    query, sinks = normal(rng, 1, 4, 8), normal(rng, 4)
    branch = min(3, positions - 1) if with_path else 0
    prefix, path = int32(positions - branch), np.arange(positions - branch, positions, dtype=np.int32)[None]
    first = max(0, positions - window)
    plain = attend(query, keys, contents, prefix, path, int32(first))
    seen = range(first, positions)
    np.testing.assert_allclose(plain[0], softmax_attention(query[0], keys, contents, seen), atol=2e-6)
    with_sinks = attend(query, keys, contents, prefix, path, int32(first), sinks)
    for head in range(4):
        scores = query[0, head].astype(np.float64) @ keys[head // 2][:, seen]
        weights = np.exp(scores)
        want = weights / (weights.sum() + np.exp(np.float64(sinks[head]))) @ contents[head // 2][seen]
        np.testing.assert_allclose(with_sinks[0, head], want, atol=2e-6)


def test_rows_with_different_windows_have_the_bits_of_rows_alone():
    rng = np.random.default_rng(1)
    keys, contents, query = values(rng, 2, 16, 400), values(rng, 2, 400, 16), values(rng, 3, 4, 16)
    prefix, first = np.array([400, 150, 290], dtype=np.int32), np.array([300, 0, 129], dtype=np.int32)
    no_path = np.zeros((3, 0), dtype=np.int32)
    together = attend(query, keys, contents, prefix, no_path, first)
    for row in range(3):
        one = slice(row, row + 1)
        alone = attend(query[one], keys, contents, prefix[one], no_path[one], first[one])
        assert same_bits(together[one], alone)


def test_values_may_be_narrower_than_keys():
    rng = np.random.default_rng(2)
    latents, query = normal(rng, 40, 24), normal(rng, 1, 4, 24)
    got = attend(query, latents.T[None], latents[None, :, :16], int32(40), NO_PATH)
    assert got.shape == (1, 4, 16)
    want = softmax_attention(query[0], latents.T[None], latents[None], range(40))[:, :16]
    np.testing.assert_allclose(got[0], want, atol=2e-6)
