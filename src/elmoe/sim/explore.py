"""A design-space sweep, resumable: chunks are evaluated by an arm and kept beside the output until all are there.

While a sweep runs, ``OUT.parquet.parts/`` holds one file per finished chunk and ``sweep.json``, everything that the
rows follow from (the sweep, its machines and models, the version and state of the simulator). A run that was ended
in any way continues from there; if anything in ``sweep.json`` differs, it starts anew. At the end the parts become
``OUT.parquet``, whole or not at all, and the folder goes. Knows nothing about what is in the rows.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elmoe.errors import BusyError, ConfigError, StorageError
from elmoe.sim.sweep import Chunk, Sweep
from elmoe.sim.sweep_rows import MINIMISE, SCENARIO, pareto
from elmoe.sim.workers import Arm, in_process
from elmoe.trace.atomic import atomic_file, storage_errors

if TYPE_CHECKING:
    import pyarrow as pa

STATE = "sweep.json"


@dataclass(frozen=True)
class Explored:
    """What a run did."""

    points: int
    """Rows of the output."""
    done: int
    """Evaluated by this run; the others were there already."""
    problems: int
    """Points that cannot be."""
    pareto: int
    """Rows on the Pareto front of their scenario."""


def explore(
    sweep: Sweep,
    output: Path,
    arm: Arm = in_process,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Explored:
    """Evaluate what is missing and write `output`: the same sweep gives the same bytes, whatever arm and history.

    on_progress gets points that are there and all points. Raises ConfigError for an output that is no .parquet file,
    BusyError where another run works on it, StorageError where the file system refuses.
    """
    if output.suffix != ".parquet":
        raise ConfigError(f"{output}: a sweep is written as .parquet; name the output that way")
    if output.is_dir():
        raise StorageError(f"{output} is a folder; give the name of a file")
    config = sweep.resolved()
    folder = output.with_name(f"{output.name}.parts")
    with _parts(folder, json.dumps(config, sort_keys=True)):
        chunks = list(sweep.chunks())
        missing = [chunk for chunk in chunks if not _part(folder, chunk).exists()]
        total, done = sum(chunk.points for chunk in chunks), sum(chunk.points for chunk in missing)
        there = total - done
        on_progress(there, total)
        for chunk, rows in arm(sweep, missing):
            _write(rows, _part(folder, chunk))
            there += chunk.points
            on_progress(there, total)
        merged = _merged([_part(folder, chunk) for chunk in chunks])
        _write(merged.replace_schema_metadata({"elmoe": json.dumps(config)}), output)
        shutil.rmtree(folder)
    possible = merged["problem"].null_count
    return Explored(total, done, total - possible, sum(merged["pareto"].to_pylist()))


@contextmanager
def _parts(folder: Path, state: str) -> Iterator[None]:
    """The folder of parts, locked, with parts of this state only."""
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, folder)
        path = folder / STATE
        with storage_errors(folder):
            if not path.exists() or path.read_text(encoding="utf-8") != state:
                _empty(folder)
        with atomic_file(path) as file:
            file.write(state.encode())
        try:
            yield
        finally:
            if folder.exists() and all(entry.name == STATE for entry in folder.iterdir()):
                shutil.rmtree(folder)  # nothing to continue from
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    busy = BusyError(f"{folder} is in use by another run; wait for it or choose another output")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise busy  # its owner finished and removed it while we opened it
    except BlockingIOError:
        raise busy from None
    except OSError as error:  # NFS and the like
        raise StorageError(
            f"{folder}: its file system cannot lock folders ({error.strerror}); choose an output on a local disk"
        ) from error


def _empty(folder: Path) -> None:
    """Remove what runs leave; anything else is not ours to remove."""
    entries = list(folder.iterdir())
    for entry in entries:
        if entry.is_dir() or not (entry.name == STATE or entry.suffix in (".part", ".parquet")):
            raise StorageError(f"{folder} holds {entry.name}, which no sweep wrote; move it, or choose another output")
    for entry in entries:
        entry.unlink()


def _part(folder: Path, chunk: Chunk) -> Path:
    return folder / f"{chunk.index:06}.parquet"


def _write(rows: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    with atomic_file(path) as file:
        pq.write_table(rows, file)


def _merged(paths: list[Path]) -> pa.Table:
    """All rows in order, with the column `pareto`."""
    import pyarrow as pa

    rows = pa.concat_tables([_read(path) for path in paths])
    marks = pareto(rows.select([*SCENARIO, *MINIMISE]).to_pylist())
    return rows.append_column("pareto", pa.array(marks))


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read()  # read_table would take "a=b" in a folder's name for a column
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(f"{path} is damaged ({error}); remove it, and the same command makes it again") from None
