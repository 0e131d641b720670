"""A file on a block device of its own, whose read-ahead may differ from that of the disk below.

The kernel reads around a page fault as much as the device's ``read_ahead_kb`` says: 8 MiB on some cloud disks, where a
mapped model then reads whole layers for a few experts. Changing that for the disk would change it for everybody; here
the file is copied into an ext4 image, the image is mounted through a loop device with direct I/O (its pages are not
cached a second time), and only the loop device's read-ahead is set. Needs root, and room for a copy of the file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from elmoe.errors import StorageError

SPARE_BYTES = 1 << 27
"""For ext4's own structures."""


@contextmanager
def with_read_ahead(file: Path, kilobytes: int) -> Iterator[Path]:
    """Yield a copy of `file` with that read-ahead; image, device and copy are gone afterwards.

    Raises StorageError where a loop device cannot be had.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="read-ahead-", dir=file.parent)))
        image, mounted = folder / "image", folder / "mounted"
        mounted.mkdir()
        with image.open("wb") as made:
            os.posix_fallocate(made.fileno(), 0, file.stat().st_size + SPARE_BYTES)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", image)
        device = _run("losetup", "--find", "--show", "--direct-io=on", image)
        stack.callback(_run, "losetup", "--detach", device)
        _run("mount", device, mounted)
        stack.callback(_run, "umount", mounted)
        copy = mounted / file.name
        shutil.copyfile(file, copy)
        (Path("/sys/block") / Path(device).name / "queue" / "read_ahead_kb").write_text(str(kilobytes))
        yield copy


def read_ahead_kb(file: Path) -> int:
    """Of the block device that a file lies on; 0 where it lies on none."""
    number = file.stat().st_dev
    path = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    for folder in (path, path.resolve().parent):  # a partition has no queue of its own
        if (folder / "queue" / "read_ahead_kb").exists():
            return int((folder / "queue" / "read_ahead_kb").read_text())
    return 0


def _run(*command: str | Path) -> str:
    """Standard output of a command that must succeed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise StorageError(f"{command[0]} is needed for a read-ahead of its own; install it") from None
    except subprocess.CalledProcessError as error:
        raise StorageError(f"{command[0]}: {error.stderr.strip() or error}; a loop device needs root") from None
    return done.stdout.strip()
