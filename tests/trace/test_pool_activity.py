from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from elmoe.trace.parquet import read_trace
from elmoe.trace.pool_activity import pool_activity
from elmoe.trace.schema import PassKind


def pool(*members: list[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    resident = np.zeros((2, 5), dtype=np.bool_)
    for layer, experts in enumerate(members):
        resident[layer, experts] = True
    return resident


def test_by_hand(make_record: Any, write_trace: Any) -> None:
    """Two layers, five experts, two per token; rows that were not kept and draft rows do not count."""
    prefill = replace(
        make_record(0, PassKind.PREFILL, 1),
        experts=np.array([[[0, 1], [4, 3]]], dtype=np.int16),
        kept=np.array([True]),
        pool=pool([2, 3], [2, 3]),
    )
    draft = replace(make_record(1, PassKind.DRAFT, 2), pool=pool([0, 1], [3, 4]))
    verify = replace(
        make_record(1, PassKind.VERIFY, 2),
        experts=np.array([[[0, 2], [4, 0]], [[1, 1], [1, 1]]], dtype=np.int16),
        kept=np.array([True, False]),
        pool=pool([0, 1], [3, 4]),
    )
    plain = replace(
        make_record(2, PassKind.AR, 1),
        experts=np.array([[[0, 2], [4, 2]]], dtype=np.int16),
        kept=np.array([True]),
        pool=pool([0, 2], [0, 1]),
    )
    found = pool_activity(read_trace(write_trace([prefill, draft, verify, plain])))
    np.testing.assert_allclose(found.hotness, np.array([[3, 1, 2, 0, 0], [1, 0, 1, 1, 3]]) / 6)
    np.testing.assert_allclose(found.residency, np.array([[3, 2, 1, 0, 0], [1, 1, 0, 2, 2]]) / 3)
    assert found.hit_share == pytest.approx((1 + 1 + 2 + 0) / 8)
    assert found.pool_share == pytest.approx(2 / 5)


def test_an_empty_trace(write_trace: Any) -> None:
    found = pool_activity(read_trace(write_trace([])))
    assert found.hotness.shape == found.residency.shape == (2, 5)
    assert not found.hotness.any()
    assert found.hit_share == found.pool_share == 0.0
