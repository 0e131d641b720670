from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from elmoe.checkpoint.weight_source import FloatRows, Int8Rows, Mxfp4Rows, Rows, floats, select, share_bytes
from elmoe.errors import InternalError, TensorError
from elmoe.models.source_tensors import Part, halves_order
from elmoe.quant import bitnested, mxfp4

Array = npt.NDArray[Any]


def spelled_out(tensor: Array, part: Part) -> Array:
    """All rows of a part, element by element."""
    slab = tensor.reshape(part.view)[part.slab]
    if part.transposed:
        slab = slab.T
    rows = []
    order = part.order or (0,)
    for row in range(part.rows):
        source_row = row // len(order) * len(order) + order[row % len(order)]
        rows.append(slab[part.first + part.step * source_row][: part.inputs])
    return np.stack(rows)


PARTS = {
    "whole": Part("t", (24, 64), 24),
    "some rows": Part("t", (24, 64), 5, first=9),
    "every second row": Part("t", (24, 64), 12, first=1, step=2),
    "a head": Part("t", (24, 64), 8, slab=2, slabs=3),
    "the end of a head": Part("t", (24, 64), 3, slab=1, slabs=3, first=5),
    "a fused expert": Part("t", (4, 6, 64), 6, slab=3, slabs=4),
    "half a fused expert": Part("t", (4, 6, 64), 3, slab=3, slabs=4, first=3),
    "a transposed fused expert": Part("t", (4, 6, 64), 64, slab=2, slabs=4, transposed=True),
    "gate columns": Part("t", (4, 6, 64), 32, slab=2, slabs=4, step=2, transposed=True),
    "up columns": Part("t", (4, 6, 64), 32, slab=2, slabs=4, first=1, step=2, transposed=True),
    "a transposed head": Part("t", (24, 64), 64, slab=1, slabs=3, transposed=True, inputs=5),
    "rotary rows": Part("t", (24, 64), 24, order=halves_order(8)),
    "rotary rows at the end": Part("t", (24, 64), 24, order=halves_order(12, 4)),
    "rotary rows behind others": Part("t", (24, 64), 8, first=16, order=halves_order(4)),
    "fewer inputs": Part("t", (24, 64), 24, inputs=32),
    "fewer inputs than a group": Part("t", (24, 64), 24, inputs=20),
}


@pytest.mark.parametrize("name", PARTS)
def test_rows_of_a_part(name: str) -> None:
    part = PARTS[name]
    tensor = np.random.default_rng(0).standard_normal(part.shape, dtype=np.float32)
    expected = spelled_out(tensor, part)
    slab = tensor.reshape(part.view)[part.slab]
    for first in range(part.rows):
        for last in range(first + 1, part.rows + 1):
            found = select(part, first, last, lambda rows: FloatRows(slab[rows]))
            assert isinstance(found, FloatRows)
            np.testing.assert_array_equal(found.values, expected[first:last])


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("kind", ["int8", "mxfp4"])
def test_quantised_rows_stay_as_they_are(name: str, kind: str) -> None:
    """But for what cuts through groups: that comes as floats of the same values."""
    part = PARTS[name]
    weights = np.random.default_rng(1).standard_normal(part.shape, dtype=np.float32).reshape(-1, 64)
    codes, scales = (bitnested if kind == "int8" else mxfp4).quantize(weights)
    slabs, height, _ = part.view
    codes, scales = codes.reshape(slabs, height, -1)[part.slab], scales.reshape(slabs, height, -1)[part.slab]

    def read(rows: Any) -> Rows:
        return Int8Rows(codes[rows], scales[rows]) if kind == "int8" else Mxfp4Rows(codes[rows], scales[rows])

    tensor = np.zeros(part.view, np.float32)
    tensor[part.slab] = floats(read(slice(None)), "t")
    expected = spelled_out(tensor, part)
    for first, last in ((0, part.rows), (1, 2), (part.rows // 2, part.rows)):
        found = select(part, first, last, read)
        assert isinstance(found, FloatRows) == (part.transposed or part.inputs == 20)
        np.testing.assert_array_equal(floats(found, "t"), expected[first:last])
        if not isinstance(found, FloatRows):
            narrow = replace(part, shape=(*part.shape[:-1], 2), inputs=None if part.inputs is None else 1)
            wide = np.zeros(narrow.view, scales.dtype)
            wide[part.slab] = scales
            np.testing.assert_array_equal(found.scales, spelled_out(wide, narrow)[first:last])


@pytest.mark.parametrize(
    ("part", "view", "width"),
    [
        (Part("t", (8,), 8), (1, 8, 1), 1),
        (Part("t", (8,), 4, slab=1, slabs=2), (2, 4, 1), 1),
        (Part("t", (3, 8), 3), (1, 3, 8), 8),
        (Part("t", (3, 8), 8, slab=2, slabs=3), (3, 8, 1), 1),  # a bias of an expert
        (Part("t", (3, 8), 4, slab=2, slabs=3, first=1, step=2), (3, 8, 1), 1),
        (Part("t", (1, 8), 1), (1, 1, 8), 8),  # a gate of shared experts, or a router of one expert
        (Part("t", (3, 4, 8), 4, slab=2, slabs=3), (3, 4, 8), 8),
        (Part("t", (3, 4, 8), 8, slab=2, slabs=3, transposed=True), (3, 4, 8), 4),
        (Part("t", (3, 4, 8), 8, slab=2, slabs=3, transposed=True, inputs=2), (3, 4, 8), 2),
    ],
)
def test_views(part: Part, view: tuple[int, int, int], width: int) -> None:
    assert (part.view, part.width) == (view, width)


def test_share_of_a_part_in_the_bytes_of_its_tensor() -> None:
    assert share_bytes(Part("t", (4, 6, 64), 3, slab=1, slabs=4), 4 * 6 * 64 * 2) == 3 * 64 * 2
    assert share_bytes(Part("t", (4, 6, 64), 64, slab=1, slabs=4, transposed=True, inputs=3), 4 * 6 * 64 * 2) == 384


@pytest.mark.parametrize(
    "part", [Part("t", (24, 64), 25), Part("t", (24, 64), 9, slab=2, slabs=3), Part("t", (24, 64), 4, inputs=65)]
)
def test_a_part_beyond_its_tensor_is_a_bug_of_ours(part: Part) -> None:
    slab = np.zeros(part.shape, np.float32).reshape(part.view)[part.slab]
    with pytest.raises(InternalError, match=r"rows 0 to \d+ of Part\(tensor='t'.* came as \[\d+, 64\]"):
        select(part, 0, part.rows, lambda rows: FloatRows(slab[rows]))


def test_floats_of_damaged_mxfp4() -> None:
    rows = Mxfp4Rows(np.zeros((1, 32), np.uint8), np.full((1, 1), 255, np.uint8))
    with pytest.raises(TensorError, match="name: NaN block scale in row 0"):
        floats(rows, "name")
