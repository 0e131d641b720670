"""Files read around the page cache."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from elmoe.checkpoint import direct
from elmoe.checkpoint.direct import CHUNK_BYTES, open_direct, read_whole
from elmoe.errors import StorageError


@pytest.mark.parametrize("size", [1, 64, 4096, 4160, 100_000, CHUNK_BYTES + 64])
def test_a_whole_file_is_read_as_it_is(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    path = tmp_path / "file.bin"
    path.write_bytes(data.tobytes())
    found = read_whole(path)
    assert np.array_equal(found, data)
    assert found.ctypes.data % 4096 == 0


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nothing\.bin cannot be opened: No such file"):
        open_direct(tmp_path / "nothing.bin")


@pytest.mark.parametrize("at", ["open", "preadv"])
def test_file_systems_without_direct_io_are_read_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(range(256)) * 40)
    real = {"open": os.open, "preadv": os.preadv}
    direct_ones = set()

    def opened(name: Path, flags: int) -> int:
        if at == "open" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        descriptor = real["open"](name, flags)
        if flags & os.O_DIRECT:
            direct_ones.add(descriptor)
        else:
            direct_ones.discard(descriptor)
        return descriptor

    def read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if at == "preadv" and descriptor in direct_ones:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real["preadv"](descriptor, buffers, offset)

    monkeypatch.setattr(direct.os, "open", opened)
    monkeypatch.setattr(direct.os, "preadv", read)
    with pytest.warns(RuntimeWarning, match=r"file\.bin: this file system has no direct I/O"):
        found = read_whole(path)
    assert found.tobytes() == bytes(range(256)) * 40


def test_a_file_that_ends_early_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(20_000))
    monkeypatch.setattr(direct.os, "preadv", lambda *_: 0)
    with pytest.raises(StorageError, match=r"file\.bin ended after 0 of 20,000 bytes"):
        read_whole(path)
