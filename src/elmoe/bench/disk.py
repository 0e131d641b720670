"""How fast this machine reads a file around the page cache right now: what streaming from the slow tier is measured by.

Requests of one size at random aligned offsets, some at a time, each by a thread of its own into huge pages
(``preadv`` on a descriptor opened with O_DIRECT; Python releases the lock meanwhile). The rate varies over minutes on a
shared machine, so it is probed in short rounds, in turn with what is measured.

    python -m elmoe.bench.disk FILE [--seconds 0.5] [--rounds 3]
"""

from __future__ import annotations

import argparse
import errno
import mmap
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError, ElmoeError, StorageError

ALIGNMENT_BYTES = 4096
"""Of offsets, sizes and memory: enough for every block device in use."""
REQUEST_BYTES = tuple(1 << bits for bits in (16, 18, 20, 22, 24))
"""64 KiB to 16 MiB."""
DEPTHS = (1, 4, 16)
ROUND_SECONDS, ROUNDS = 0.5, 3
HUGE_PAGE_BYTES = 2 << 20
IN_MEMORY = ("tmpfs", "ramfs")
"""File systems that take O_DIRECT (Linux 6.6 and later) though there is no device to read from."""
START_SECONDS = 10
"""Threads that have not begun after this are a fault."""


def read_rate(path: Path, request_bytes: int, depth: int, seconds: float = ROUND_SECONDS, seed: int = 0) -> float:
    """GB/s of direct reads of `request_bytes` at random places of a file, `depth` of them under way, for `seconds`.

    Raises ConfigError for sizes that direct I/O cannot have or a file smaller than a request, StorageError where the
    file cannot be read, lies in memory or its file system has no O_DIRECT.
    """
    if request_bytes < ALIGNMENT_BYTES or request_bytes % ALIGNMENT_BYTES:
        raise ConfigError(f"a direct read has a multiple of {ALIGNMENT_BYTES} bytes, not {request_bytes}")
    if _file_system(path) in IN_MEMORY:
        raise StorageError(f"{path} lies in memory ({_file_system(path)}); give a file on a local disk")
    if depth < 1 or seconds <= 0:
        raise ConfigError(f"depth and seconds must be above 0, not {depth} and {seconds:g}")
    with _direct(path) as descriptor:
        places = os.fstat(descriptor).st_size // request_bytes
        if not places:
            raise ConfigError(f"{path} is smaller than one request of {request_bytes} bytes; give a larger file")
        readers = [_Reader(descriptor, request_bytes, places, seconds, [seed, number]) for number in range(depth)]
        gate = threading.Barrier(depth)
        threads = [threading.Thread(target=reader.run, args=(gate,)) for reader in readers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    failed = next((reader.error for reader in readers if reader.error is not None), None)
    if failed is not None:
        raise _refusal(path, failed) from failed
    return sum(reader.rate for reader in readers) / 1e9


def median_rate(
    path: Path, request_bytes: int, depth: int, rounds: int = ROUNDS, seconds: float = ROUND_SECONDS
) -> float:
    """GB/s, the median of `rounds`; raises what `read_rate` raises."""
    return statistics.median(read_rate(path, request_bytes, depth, seconds, turn) for turn in range(rounds))


def rate_table(
    path: Path,
    request_bytes: tuple[int, ...] = REQUEST_BYTES,
    depths: tuple[int, ...] = DEPTHS,
    rounds: int = ROUNDS,
    seconds: float = ROUND_SECONDS,
) -> dict[int, dict[int, float]]:
    """Median GB/s by request size and depth, rounds of all of them in turn; raises what `read_rate` raises."""
    found: dict[tuple[int, int], list[float]] = {}
    for turn in range(rounds):
        for size in request_bytes:
            for depth in depths:
                found.setdefault((size, depth), []).append(read_rate(path, size, depth, seconds, turn))
    return {size: {depth: statistics.median(found[size, depth]) for depth in depths} for size in request_bytes}


class _Reader:
    """One thread's reads."""

    def __init__(self, descriptor: int, request_bytes: int, places: int, seconds: float, seed: list[int]) -> None:
        self._descriptor, self._request_bytes, self._places = descriptor, request_bytes, places
        self._seconds, self._rng = seconds, np.random.default_rng(seed)
        self.rate = 0.0
        """Bytes per second."""
        self.error: OSError | None = None

    def run(self, gate: threading.Barrier) -> None:
        """Read until the time is over; the last read, which goes beyond it, counts with its time."""
        memory = _huge_pages(self._request_bytes)
        gate.wait(START_SECONDS)
        done, started = 0, time.perf_counter()
        try:
            while (elapsed := time.perf_counter() - started) < self._seconds:
                offset = int(self._rng.integers(self._places)) * self._request_bytes
                if os.preadv(self._descriptor, [memory.data], offset) < self._request_bytes:
                    raise OSError(errno.EIO, "short read")
                done += self._request_bytes
        except OSError as error:
            self.error = error
            return
        self.rate = done / elapsed


def _huge_pages(size_bytes: int) -> npt.NDArray[np.uint8]:
    """Touched memory, in huge pages where it is large enough: a request is a few pieces then, and not one per 4 KiB."""
    whole = mmap.mmap(-1, size_bytes + 2 * HUGE_PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole.madvise(mmap.MADV_HUGEPAGE)
    pages = np.frombuffer(whole, dtype=np.uint8)
    start = -pages.ctypes.data % HUGE_PAGE_BYTES
    memory = pages[start : start + -(-size_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES]
    memory[:] = 0
    return memory[:size_bytes]


@contextmanager
def _direct(path: Path) -> Iterator[int]:
    if not hasattr(os, "O_DIRECT"):
        raise StorageError("this system has no O_DIRECT; the probe needs Linux")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _file_system(path: Path) -> str:
    """Its type, "" where that cannot be known."""
    try:
        number, lines = path.stat().st_dev, Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    mounted = f"{os.major(number)}:{os.minor(number)}"
    return next((line.split(" - ", 1)[1].split()[0] for line in lines if line.split()[2] == mounted), "")


def _refusal(path: Path, error: OSError) -> StorageError:
    if error.errno == errno.EINVAL:
        return StorageError(f"{path}: its file system has no direct I/O (O_DIRECT); give a file on a local disk")
    return StorageError(f"{path} cannot be read: {os.strerror(error.errno or 0)}")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=ROUND_SECONDS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    try:
        table = rate_table(arguments.file, rounds=arguments.rounds, seconds=arguments.seconds)
    except ElmoeError as error:
        raise SystemExit(f"error: {error}") from None
    print("GB/s by request size and depth")
    print("bytes".rjust(12), *(str(depth).rjust(7) for depth in DEPTHS))
    for size, rates in table.items():
        print(f"{size:12,}", *(f"{rates[depth]:7.2f}" for depth in DEPTHS))


if __name__ == "__main__":
    main()
