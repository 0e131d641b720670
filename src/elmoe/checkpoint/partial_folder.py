"""A folder that appears at its destination whole or not at all.

Work happens in a hidden sibling, ``.NAME.partial``, locked with flock on the folder itself so that no lock file
is ever left over. Success renames it; any failure removes it; what a killed process left is wiped by the next
one. Knows nothing about models.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from elmoe.errors import BusyError, ConfigError, StorageError


@contextmanager
def partial_folder(destination: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `destination` when the block ends without an exception.

    Raises ConfigError when `destination` exists, StorageError when another process is writing it or the file
    system refuses.
    """
    partial = destination.with_name(f".{destination.name}.partial")
    lock = _lock(partial, destination)
    try:
        try:
            refuse_existing(destination)
            _wipe(partial)
            yield partial
            sync(partial)
            refuse_existing(destination)  # rename would replace an empty folder
            partial.rename(destination)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(destination.parent)
    finally:
        os.close(lock)


def refuse_existing(destination: Path) -> None:
    """ConfigError when something, even a dangling link, is at `destination`."""
    if os.path.lexists(destination):
        raise ConfigError(f"{destination} exists already; remove it or choose another destination")


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(partial: Path, destination: Path) -> int:
    """Create and lock the partial folder; an open descriptor that holds the lock."""
    while True:
        partial.mkdir(exist_ok=True)
        try:
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # its owner has just finished or failed
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, partial):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise BusyError(
                f"{destination} is being written by another conversion; wait for it or choose another destination"
            ) from None
        except OSError as error:  # NFS and the like
            os.close(descriptor)
            with suppress(OSError):  # not empty: somebody else's
                partial.rmdir()
            raise StorageError(
                f"{partial.parent}: its file system cannot lock folders ({error.strerror}); "
                "convert to a local disk and move the folder"
            ) from error
        os.close(descriptor)  # locked what was renamed or removed meanwhile


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _wipe(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
