"""Files that appear whole or not at all: written under a temporary name beside the destination, renamed at the end.

Knows nothing about what is in them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from elmoe.errors import StorageError


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and is removed when it raises.

    Until then the destination is as it was, even if the process is killed. Raises StorageError when the operating
    system refuses; errors of the block itself pass through.
    """
    path = path.resolve()  # the file that a link points to is replaced, not the link
    if path.is_dir():
        raise StorageError(f"{path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise StorageError(f"{path} is not a regular file; give the name of a file")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with storage_errors(path):
        file = partial.open("xb")
    try:
        yield file
        with storage_errors(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            partial.replace(path)
    except BaseException:
        with suppress(OSError):  # what went wrong is on its way already
            file.close()
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn operating system errors into StorageError with the destination's name."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
