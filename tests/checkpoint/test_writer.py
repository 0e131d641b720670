from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from synthetic import CONFIG

from elmoe.checkpoint.layout import layout_of
from elmoe.checkpoint.supported import supported_model
from elmoe.checkpoint.writer import PieceWriter


def test_pieces_in_parts(tmp_path: Path) -> None:
    layout = layout_of(supported_model(CONFIG)[1])
    first, second = layout.experts.extent("msb", 0, 1), layout.experts.extent("msb", 0, 2)
    data = np.arange(first.size_bytes, dtype=np.uint32).astype(np.uint8)
    with PieceWriter(tmp_path, layout) as writer:
        writer.append(second, data[:100])
        writer.append(first, data)
        writer.append(second, data[100:])
    assert writer.crcs == {first: zlib.crc32(data.tobytes()), second: zlib.crc32(data.tobytes())}
    content = (tmp_path / first.file).read_bytes()
    assert len(content) == layout.file_bytes[first.file]
    for extent in (first, second):
        assert content[extent.offset : extent.offset + extent.size_bytes] == data.tobytes()
    assert not any(content[: first.offset])


def test_pieces_of_no_bytes(tmp_path: Path) -> None:
    layout = layout_of(supported_model(CONFIG | {"quantization_config": {"quant_method": "mxfp4"}})[1])
    extent = layout.experts.extent("lsb", 0, 1)
    with PieceWriter(tmp_path, layout) as writer:
        writer.append(extent, np.empty(0, np.uint8))
    assert writer.crcs == {extent: 0}
    assert (tmp_path / extent.file).read_bytes() == b""


def test_never_writes_into_files_that_exist(tmp_path: Path) -> None:
    (tmp_path / "experts_lsb.bin").write_bytes(b"x")
    with pytest.raises(FileExistsError):
        PieceWriter(tmp_path, layout_of(supported_model(CONFIG)[1]))
    assert (tmp_path / "experts_lsb.bin").read_bytes() == b"x"
