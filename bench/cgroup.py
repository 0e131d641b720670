"""Runs a command under a memory limit that counts its page cache, and says what the kernel counted.

    python bench/cgroup.py --limit-bytes 420000000 [--cold FILE]... -- COMMAND [ARGUMENT]...

The limit is that of a memory cgroup of its own (v1 or v2; needs root, or a delegated group), made below the group that
this process is in and removed afterwards. Everything that the command allocates and every page of a file that it is the
first to read counts; what it exceeds in page cache is evicted, what it exceeds in memory of its own gets it killed.

Read bytes are those of ``/proc/PID/io`` (`read_bytes`: what the process and its children made the storage layer fetch,
page faults and direct I/O alike, page cache hits not) once it has ended. Prints one JSON object; its `stdout` is the
command's. (The blkio controller of v1 counts nothing unless a device is throttled, so it is no second account.)
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

REMOVE_SECONDS = 10
MESSAGE_BYTES = 2000
NEEDS_ROOT = "a memory limit needs root, or a delegated cgroup with a memory controller"
_numbers = itertools.count()


class GroupError(Exception):
    """The machine has no control groups that we may use; one line."""


@dataclasses.dataclass(frozen=True)
class Limited:
    """What a command did under a limit."""

    returncode: int
    """As of `subprocess`: -9 when it was killed, as the kernel does to one that exceeds the limit."""
    stdout: str
    message: str
    """The end of what it wrote to standard error."""
    seconds: float
    limit_bytes: int
    peak_bytes: int
    """Most that the group ever held, page cache included."""
    read_bytes: int
    """From storage, by ``/proc/PID/io``."""
    killed: bool
    """Whether the kernel killed something in the group for want of memory."""


class MemoryGroup:
    """A memory cgroup with a limit; a context manager.

    Raises GroupError where none can be made.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        parent, self.version = _parent()
        self.folder = parent / f"elmoe-{os.getpid()}-{next(_numbers)}"
        try:
            self.folder.mkdir()
        except OSError as error:
            raise GroupError(f"{self.folder}: {error.strerror}; {NEEDS_ROOT}") from None
        try:
            self._limit()
        except OSError as error:
            self.close()
            raise GroupError(f"{self.folder}: {error.strerror}; {NEEDS_ROOT}") from None

    def wrapper(self, folder: Path, program: str) -> Path:
        """A script that runs `program` inside the group from its first page on, with the arguments that it gets.

        It takes the place of a program where only a path can be given, as that of a peer's interpreter.
        """
        path = folder / f"{self.folder.name}.sh"
        join = f"echo $$ > {shlex.quote(str(self.folder / 'cgroup.procs'))}"
        path.write_text(f'#!/bin/sh\n{join} || exit\nexec {shlex.quote(program)} "$@"\n')
        path.chmod(0o700)
        return path

    @property
    def peak_bytes(self) -> int:
        """Most that it ever held."""
        return int(self._read("memory.max_usage_in_bytes", "memory.peak"))

    @property
    def killed(self) -> bool:
        """Whether the kernel killed a process of the group for want of memory."""
        return _field(self._read("memory.oom_control", "memory.events"), "oom_kill") > 0

    def close(self) -> None:
        """Remove the group, once its processes are gone."""
        until = time.monotonic() + REMOVE_SECONDS
        while self.folder.is_dir():
            try:
                self.folder.rmdir()
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def __enter__(self) -> MemoryGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _limit(self) -> None:
        if self.version == 1:
            (self.folder / "memory.limit_in_bytes").write_text(str(self.limit_bytes))
            with suppress(OSError):  # no swap accounting in this kernel
                (self.folder / "memory.memsw.limit_in_bytes").write_text(str(self.limit_bytes))
        else:
            (self.folder / "memory.max").write_text(str(self.limit_bytes))
            with suppress(OSError):
                (self.folder / "memory.swap.max").write_text("0")

    def _read(self, first: str, second: str) -> str:
        return (self.folder / (first if self.version == 1 else second)).read_text()


def run_limited(
    command: Sequence[str | Path],
    limit_bytes: int,
    *,
    environment: Mapping[str, str] | None = None,
    cold: Sequence[Path] = (),
    timeout_seconds: float | None = None,
) -> Limited:
    """Run a command to its end under a memory limit.

    environment: added to ours. cold: files whose pages are dropped from the page cache before: pages that are there
    already would not count against the limit. Raises GroupError where no limit can be set, FileNotFoundError for a
    command that there is not, TimeoutError when it took too long and was killed.
    """
    found = shutil.which(command[0])
    if found is None:
        raise FileNotFoundError(f"{command[0]}: there is no such program")
    for file in cold:
        drop_cached(file)
    with ExitStack() as stack:
        group = stack.enter_context(MemoryGroup(limit_bytes))
        output, messages = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program = group.wrapper(scratch, found)
        started = time.perf_counter()
        process = subprocess.Popen(
            [program, *command[1:]], stdout=output, stderr=messages, env={**os.environ, **(environment or {})}
        )
        timer = threading.Timer(timeout_seconds or threading.TIMEOUT_MAX, process.kill)
        timer.start()
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its account is there until it is reaped
            seconds = time.perf_counter() - started
            read_bytes = process_read_bytes(process.pid)
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        if timeout_seconds is not None and seconds >= timeout_seconds:
            raise TimeoutError(f"{command[0]} was killed after {timeout_seconds:g} s")
        output.seek(0)
        size = messages.seek(0, os.SEEK_END)
        messages.seek(max(0, size - MESSAGE_BYTES))
        return Limited(
            returncode=process.returncode,
            stdout=output.read().decode(errors="replace"),
            message=messages.read().decode(errors="replace").strip(),
            seconds=seconds,
            limit_bytes=limit_bytes,
            peak_bytes=group.peak_bytes,
            read_bytes=read_bytes,
            killed=group.killed,
        )


def process_read_bytes(pid: int) -> int:
    """Bytes that a process, its threads and its reaped children read from storage so far."""
    return _field(Path(f"/proc/{pid}/io").read_text().replace(":", ""), "read_bytes")


def drop_cached(file: Path) -> None:
    """Drop a file's pages from the page cache, written out first; those that somebody has mapped stay."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _parent() -> tuple[Path, int]:
    """(the group below which a child with a memory controller can be made, version of its hierarchy)."""
    roots = _mounts()
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if "memory" in names.split(",") and "memory" in roots:
            return _existing(roots["memory"], path), 1
        if not names and "" in roots:
            unified = _existing(roots[""], path)
            for folder in (unified, *unified.parents):  # a group with processes gives its children no controllers
                file = folder / "cgroup.subtree_control"
                if file.exists() and "memory" in file.read_text().split():
                    return folder, 2
    raise GroupError(f"no memory controller is mounted; {NEEDS_ROOT}")


def _mounts() -> dict[str, Path]:
    """Mount point of each v1 controller, and under "" that of the v2 hierarchy."""
    found: dict[str, Path] = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup":
            found |= {option: Path(place) for option in options.split(",")}
        elif kind == "cgroup2":
            found[""] = Path(place)
    return found


def _existing(root: Path, path: str) -> Path:
    """The group, or the nearest above it that is visible from here."""
    folder = root / path.lstrip("/")
    while not folder.is_dir() and folder != root:
        folder = folder.parent
    return folder


def _field(text: str, name: str) -> int:
    """The number in the line `NAME NUMBER`; 0 without such a line."""
    return next((int(line.split()[1]) for line in text.splitlines() if line.split()[:1] == [name]), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-bytes", type=int, required=True)
    parser.add_argument("--cold", type=Path, action="append", default=[], help="a file to drop from the page cache")
    parser.add_argument("--timeout", type=float, help="seconds")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    try:
        found = run_limited(
            arguments.command, arguments.limit_bytes, cold=arguments.cold, timeout_seconds=arguments.timeout
        )
    except (GroupError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    json.dump(dataclasses.asdict(found), sys.stdout, indent=1)
    print()
    raise SystemExit(0 if found.returncode == 0 else 1)


if __name__ == "__main__":
    main()
