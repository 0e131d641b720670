from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmoe.backend.protocol import DraftQuality, Rows
from elmoe.backend.traffic import count_traffic
from elmoe.models.footprint import Footprint

SIZES = Footprint(
    dense=1000, dense_msb=600, experts_msb=0, experts_lsb=0, scales=0, kv_per_token=7, windows=(), expert_msb=60,
    expert_lsb=40, moe_layers=1, experts=4, experts_per_tok=1,
)  # fmt: skip


def rows(sequences, prefix, path=()):
    def int32(items):
        return np.array(items, dtype=np.int32)

    count = len(sequences)
    paths = int32(path or np.zeros((count, 0)))
    return Rows(int32([0] * count), int32(sequences), int32(prefix), int32(prefix), int32(prefix), paths, int32([]))


READ = np.array([[True, True, True, False]])
POOL = np.array([[True, True, False, True]])
PLAIN = rows([0], [1])


@pytest.mark.parametrize(
    ("pool", "draft", "fast", "slow"),
    [
        (POOL, None, 1000 + 2 * 60, 2 * 40 + 100),
        (None, None, 1000 + 3 * 60, 3 * 40),
        (POOL, DraftQuality(4), 600 + 2 * 60, 60),
        (None, DraftQuality(4), 600 + 3 * 60, 0),
        (None, DraftQuality(8), 1000 + 3 * 60, 3 * 40),  # the pool holds MSB planes alone
        (None, DraftQuality(6), 800 + 3 * 60, 3 * 20),
        (POOL, DraftQuality(6), 800 + 2 * 60, 2 * 20 + 80),
        (None, DraftQuality(2), 400 + 3 * 40, 0),
    ],
)
def test_weights_are_counted_on_their_tier(pool, draft, fast, slow):
    traffic = count_traffic(SIZES, PLAIN, READ, pool, draft)
    assert (traffic.fast_bytes, traffic.slow_bytes) == (fast, slow)


@pytest.mark.parametrize(
    ("sequences", "prefix", "path", "cells"),
    [
        ([0], [5], (), 5),
        ([0, 0, 0], [3, 4, 5], (), 5),
        ([0, 1], [5, 9], (), 14),
        ([0, 0, 2], [5, 5, 3], [[5, -1], [5, 6], [3, -1]], 5 + 2 + 3 + 1),
    ],
)
def test_each_kv_cell_is_counted_once(sequences, prefix, path, cells):
    assert count_traffic(SIZES, rows(sequences, prefix, path), READ, None, None).kv_bytes == 7 * cells


@pytest.mark.parametrize(
    ("sequences", "prefix", "path", "cells", "in_window"),
    [
        ([0], [5], (), 5, 4),
        ([0], [3], (), 3, 3),
        ([0, 0, 0], [6, 7, 8], (), 8, 6),  # the first row sees positions 2 to 5, the last one 4 to 7
        ([0, 1], [5, 9], (), 14, 4 + 4),
        ([0, 0], [9, 9], [[9, -1], [9, 10]], 11, 4 + 1),  # the root sees 6 to 9, its child 7 to 10
    ],
)
def test_a_sliding_window_leaves_cells_behind(sequences, prefix, path, cells, in_window):
    plain = rows(sequences, prefix, path)
    steps = (plain.path >= 0).sum(axis=1) if plain.path.size else 0
    positions = (np.array(prefix) + steps - 1).astype(np.int32)
    sizes = replace(SIZES, windows=((4, 3),))
    traffic = count_traffic(sizes, replace(plain, positions=positions), READ, None, None)
    assert traffic.kv_bytes == 4 * cells + 3 * in_window


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_cells_are_counted_as_by_definition(counts, width, seed):
    """Of each sequence: its longest prefix and the distinct cells of its rows' paths."""
    rng = np.random.default_rng(seed)
    sequences = [sequence - 1 for sequence, count in enumerate(counts) for _ in range(count)]
    prefix = rng.integers(1, 50, len(sequences)).tolist()
    path = rng.integers(-1, 60, (len(sequences), width))
    want = 0
    for sequence in set(sequences):
        mine = [row for row, other in enumerate(sequences) if other == sequence]
        want += max(prefix[row] for row in mine) + len({int(cell) for row in mine for cell in path[row] if cell >= 0})
    one = replace(rows(sequences, prefix), path=path.astype(np.int32))
    assert count_traffic(SIZES, one, READ, None, None).kv_bytes == 7 * want
