from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import CONFIG

from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.layout import layout_of
from elmoe.checkpoint.supported import supported_model
from elmoe.errors import InternalError
from elmoe.models.footprint import footprint

MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, MXFP4])
def test_pieces_are_aligned_disjoint_and_inside_their_files(changes: dict[str, object]) -> None:
    _, program = supported_model(CONFIG | changes)
    layout = layout_of(program)
    ends = dict.fromkeys(layout.file_bytes, 0)
    for _, extent in sorted(layout.extents(), key=lambda piece: piece[1]):
        assert extent.offset % (64 if extent.file == "dense.bin" else 4096) == 0
        assert extent.offset >= ends[extent.file]
        ends[extent.file] = extent.offset + extent.size_bytes
    for file, end in ends.items():
        assert end <= layout.file_bytes[file]
        assert file == "dense.bin" or layout.file_bytes[file] % 4096 == 0


@pytest.mark.parametrize("changes", [{}, MXFP4])
def test_sizes_are_those_of_the_footprint(changes: dict[str, object]) -> None:
    shape, program = supported_model(CONFIG | changes)
    layout, sizes = layout_of(program), footprint(shape, program)
    total = sum(extent.size_bytes for _, extent in layout.extents())
    assert total == sizes.total
    assert layout.experts.msb_record_bytes == sizes.expert_msb
    assert layout.experts.lsb_record_bytes == sizes.expert_lsb
    assert sum(layout.file_bytes.values()) >= sizes.total


def test_mxfp4_experts_are_one_record_each() -> None:
    layout = layout_of(supported_model(CONFIG | MXFP4)[1])
    assert layout.file_bytes["experts_lsb.bin"] == layout.experts.lsb_stride == 0
    assert layout.experts.extent("lsb", 1, 2) == ("experts_lsb.bin", 0, 0)
    # gate_up [64, 96] and down [96, 32]: per 16 rows 512 bytes a tile of 64 inputs, scales 32 a tile, rounded up to 64
    assert layout.experts.msb_record_bytes == 4 * (2 * 512 + 64) + 6 * (512 + 64)


@pytest.mark.parametrize(("layer", "expert"), [(-1, 0), (2, 0), (0, -1), (0, 3)])
def test_no_record_outside_of_the_grid(layer: int, expert: int) -> None:
    _, program = supported_model(CONFIG)
    with pytest.raises(InternalError, match=f"expert {expert} of MoE block {layer} was asked of a model with 2 x 3"):
        layout_of(program).experts.extent("msb", layer, expert)


def test_an_aligned_read_of_the_last_record_stays_in_the_file(converted: Path) -> None:
    checkpoint = Checkpoint.open(converted)
    for plane in ("msb", "lsb"):
        file, offset, size_bytes = checkpoint.expert_extent(plane, 1, 2)
        rounded = -(-size_bytes // 4096) * 4096
        assert offset + rounded <= (converted / file).stat().st_size


def test_views_are_aligned_in_memory(converted: Path) -> None:
    checkpoint = Checkpoint.open(converted)
    assert checkpoint.linear_planes("embedding")[1].ctypes.data % 64 == 0
    assert checkpoint.vector("final_norm").ctypes.data % 64 == 0
    assert checkpoint.expert_lsb(1, 1).ctypes.data % 4096 == 0
