"""How fast a disk reads past the page cache: by request size, from idle, and beside computation on all cores."""

from __future__ import annotations

import mmap
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

WRITTEN_BYTES = 1 << 26


class DiskFile:
    """A file that is read at random places, `queue` requests at a time, by O_DIRECT."""

    def __init__(self, path: Path, queue: int) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            raise SystemExit(f"error: {path} cannot be read past the page cache: {error.strerror}") from None
        self.queue = queue
        self.size_bytes = os.fstat(self._file).st_size
        self._rng = np.random.default_rng(0)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)

    def seconds(self, request_bytes: int, total_bytes: int) -> float:
        """Time to read `total_bytes` in requests of one size."""
        count = max(1, total_bytes // request_bytes)
        pages = (self.size_bytes - request_bytes) // mmap.PAGESIZE + 1
        places = iter((self._rng.integers(0, pages, count) * mmap.PAGESIZE).tolist())
        turn, gate = threading.Lock(), threading.Barrier(min(self.queue, count) + 1)

        def read() -> None:
            buffer = mmap.mmap(-1, request_bytes)
            buffer[:: mmap.PAGESIZE] = bytes(len(buffer[:: mmap.PAGESIZE]))  # its pages are there before the clock runs
            gate.wait()
            while True:
                with turn:
                    place = next(places, None)
                if place is None:
                    return
                if os.preadv(self._file, [buffer], place) != request_bytes:
                    raise OSError("a read came up short")

        threads = [threading.Thread(target=read) for _ in range(min(self.queue, count))]
        for thread in threads:
            thread.start()
        gate.wait()
        begin = time.perf_counter()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begin

    def rate(self, request_bytes: int, total_bytes: int) -> float:
        """GB/s of reads of one size."""
        count = max(1, total_bytes // request_bytes)
        return count * request_bytes / self.seconds(request_bytes, total_bytes) / 1e9

    def latency_us(self, request_bytes: int, rounds: int) -> float:
        """Until an idle disk delivers at its rate: what a batch of one request takes beyond its share of a long one.

        Median over `rounds`.
        """
        single = statistics.median(self.seconds(request_bytes, request_bytes) for _ in range(rounds))
        return max(0.0, 1e6 * single - 1e-3 * request_bytes / self.rate(request_bytes, 64 * request_bytes))


@contextmanager
def disk_file(place: Path, size_bytes: int, queue: int) -> Iterator[DiskFile]:
    """`place` itself where it is a file, else a file of random bytes in that folder, removed afterwards."""
    if place.is_file():
        opened = DiskFile(place, queue)
        try:
            yield opened
        finally:
            opened.close()
        return
    with tempfile.NamedTemporaryFile(dir=place, prefix="elmoe-probe-") as file:
        block = np.random.default_rng(1).integers(0, 256, WRITTEN_BYTES, dtype=np.uint8).tobytes()
        for _ in range(-(-size_bytes // WRITTEN_BYTES)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        opened = DiskFile(Path(file.name), queue)
        try:
            yield opened
        finally:
            opened.close()


def rates(disk: DiskFile, sizes: Sequence[int], rounds: int, total_bytes: int) -> dict[int, float]:
    """GB/s by request size; sizes in turn, median over rounds."""
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size, each in found.items():
            # small requests take long per byte, and tell as much in fewer
            each.append(disk.rate(size, min(total_bytes, 4096 * size)))
    return {size: statistics.median(each) for size, each in found.items()}
