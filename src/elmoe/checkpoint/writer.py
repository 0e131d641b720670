"""Writes pieces into the `.bin` files of a folder that is being made, and keeps their CRC-32s."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.checkpoint.layout import Extent, Layout
from elmoe.checkpoint.manifest import Crcs


class PieceWriter:
    """Files of their final size, filled piece by piece; padding stays zero.

    A piece may come in parts, as long as the parts come in order.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.crcs: Crcs = {}
        self._written: dict[Extent, int] = {}
        self._files: dict[str, int] = {}
        try:
            for name, size_bytes in layout.file_bytes.items():
                self._files[name] = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                if size_bytes:
                    os.posix_fallocate(self._files[name], 0, size_bytes)  # a full disk shows here, not hours later
        except BaseException:
            self._close()
            raise

    def append(self, extent: Extent, data: npt.NDArray[Any]) -> None:
        """Write the next bytes of a piece."""
        remaining = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        offset = extent.offset + self._written.get(extent, 0)
        self.crcs[extent] = zlib.crc32(remaining, self.crcs.get(extent, 0))
        self._written[extent] = self._written.get(extent, 0) + len(remaining)
        while remaining:
            count = os.pwrite(self._files[extent.file], remaining, offset)
            remaining, offset = remaining[count:], offset + count

    def __enter__(self) -> PieceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for descriptor in self._files.values():
                    os.fsync(descriptor)
        finally:
            self._close()

    def _close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
