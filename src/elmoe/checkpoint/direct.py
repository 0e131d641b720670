"""Files without the page cache: direct I/O where the file system has it. Knows nothing about what the files hold."""

from __future__ import annotations

import errno
import mmap
import os
import warnings
from pathlib import Path

import numpy as np

from elmoe.errors import StorageError
from elmoe.quant.bitnested import UInt8

BLOCK_BYTES = 4096
"""Offsets, sizes and addresses of direct reads are multiples of it: the largest logical block in use."""
CHUNK_BYTES = 8 << 20


def open_direct(path: Path) -> tuple[int, bool]:
    """(descriptor, whether it goes around the page cache) of a file for reading.

    Without direct I/O it warns, and the descriptor is an ordinary one. Raises StorageError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
        descriptor = -1
    if descriptor >= 0:
        try:
            with mmap.mmap(-1, BLOCK_BYTES) as block:
                os.preadv(descriptor, [block], 0)
            return descriptor, True
        except OSError as error:
            os.close(descriptor)
            if error.errno != errno.EINVAL:
                raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    warnings.warn(
        f"{path}: this file system has no direct I/O; reads go through the page cache and are dropped from it, slower",
        RuntimeWarning,
        stacklevel=2,
    )
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}") from error


def read_whole(path: Path) -> UInt8:
    """A file in anonymous memory, flat uint8, page-aligned. Raises StorageError."""
    size = path.stat().st_size
    memory = mmap.mmap(
        -1, max(-(-size // BLOCK_BYTES) * BLOCK_BYTES, BLOCK_BYTES), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    memory.madvise(mmap.MADV_HUGEPAGE)  # all of it is going to be touched
    view, done = memoryview(memory), 0
    descriptor, direct = open_direct(path)
    try:
        while done < size:
            got = os.preadv(descriptor, [view[done : done + CHUNK_BYTES]], done)
            if got == 0 or (got % BLOCK_BYTES and done + got < size):
                raise StorageError(f"{path} ended after {done + got:,} of {size:,} bytes; was it replaced?")
            done += got
        if not direct:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return np.frombuffer(memory, dtype=np.uint8)[:size]
