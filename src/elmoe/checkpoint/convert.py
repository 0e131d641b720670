"""Conversion of a Hugging Face folder or a GGUF file into an `.elmoe` folder.

Matrices are read, quantised and written in blocks of rows, so memory stays at a few blocks whatever the model's
size. Blocks are quantised by a few threads and written in order: the same source gives the same bytes. Knows
nothing about model families (`sources.py`), file formats (`weight_source.py`) or how the folder is laid out
(`layout.py`).
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from elmoe.checkpoint.folder import sha256_of
from elmoe.checkpoint.gguf_file import GgufFile, gguf_model
from elmoe.checkpoint.layout import Extent, Layout, layout_of
from elmoe.checkpoint.manifest import FORMAT, MANIFEST_FILE, VERSION, Crcs, describe, to_bytes
from elmoe.checkpoint.partial_folder import partial_folder, refuse_existing, sync
from elmoe.checkpoint.safetensors_folder import SafetensorsFolder
from elmoe.checkpoint.sources import MatrixSource, ModelSources, check_sources, model_sources
from elmoe.checkpoint.supported import supported_model
from elmoe.checkpoint.text import check_text_files
from elmoe.checkpoint.weight_source import WeightSource
from elmoe.checkpoint.writer import PieceWriter
from elmoe.errors import CheckpointError, ConfigError, StorageError
from elmoe.models.program import Program
from elmoe.models.registry import family_of
from elmoe.quant.bitnested import UInt8

LOG = logging.getLogger("elmoe")
"""Warnings go to standard error unless the program that uses elmoe says otherwise."""
MAX_THREADS = 8
MANIFEST_ALLOWANCE_BYTES = 1 << 20
"""Room for the manifest in the check of free space; that of 48 layers of 128 experts takes half of it."""

Progress = Callable[[int, int], None]
"""Called with (source bytes done, source bytes in all); every byte counts twice: hashed, then converted."""


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did."""

    tensors: int
    """Source tensors read."""
    bytes: int
    """Size of the new folder."""
    seconds: float
    source_sha256: str
    notes: tuple[str, ...]
    """What a person should know about the model's text files; logged as warnings too."""


@dataclass(frozen=True)
class CheckedSource:
    """A source that can be converted, as far as headers and small files tell."""

    weights: WeightSource
    program: Program
    sources: ModelSources
    tensors: int
    tensor_bytes: int
    """Of the tensors that will be read."""
    texts: dict[str, bytes]


@dataclass(frozen=True)
class _Block:
    """Some rows of a stored matrix and the pieces that their tiles continue."""

    matrix: MatrixSource
    first: int
    last: int
    msb: Extent
    lsb: Extent


def convert(source: Path, destination: Path, progress: Progress | None = None) -> ConversionReport:
    """Quantise the model `source`, a Hugging Face folder or a GGUF file, into a new `.elmoe` folder `destination`.

    `destination` appears whole or not at all. Raises CheckpointError or UnsupportedModelError for a source that
    is broken or cannot be run, TensorError for NaN or Inf, ConfigError for a destination that exists or lies in
    the source, StorageError for a full disk or a second conversion to the same destination.
    """
    started = time.perf_counter()
    _check_paths(source, destination)
    checked = check_source(source)
    weights, program, sources, texts = checked.weights, checked.program, checked.sources, checked.texts
    for note in weights.notes:
        LOG.warning(note)
    layout = layout_of(program)
    with _storage_errors(destination, layout, texts), partial_folder(destination) as made:
        meter = _Meter(progress, checked.tensor_bytes + sum(file.stat().st_size for file in weights.files))
        origin = _source_fields(source, weights.files, meter)
        for name, text in texts.items():
            (made / name).write_bytes(text)
            sync(made / name)
        with PieceWriter(made, layout) as writer:
            write_dense(writer, sources, weights, layout, meter.add)
            write_experts(writer, sources, weights, layout, meter.add)
        write_manifest(made, origin, program, texts, writer.crcs)
    size_bytes = sum(entry.stat().st_size for entry in destination.iterdir())
    return ConversionReport(checked.tensors, size_bytes, time.perf_counter() - started, origin["sha256"], weights.notes)


def check_source(source: Path) -> CheckedSource:
    """Open a source and check it; no weights are read.

    Raises CheckpointError or UnsupportedModelError for a source that `convert` would refuse before it writes anything.
    """
    weights = _open(source)
    shape, program = supported_model(weights.config)
    family = family_of(weights.config)
    sources = model_sources(family, weights.config, shape, program)
    tensors, tensor_bytes = check_sources(sources, weights, shape, partial(family.ignored, weights.config))
    texts = weights.small_files()
    check_text_files(texts, weights.config, shape.vocab, source)
    return CheckedSource(weights, program, sources, tensors, tensor_bytes, texts)


def _open(source: Path) -> WeightSource:
    """The reader for what `source` is."""
    file = gguf_model(source)
    return SafetensorsFolder.open(source) if file is None else GgufFile.open(file)


def _check_paths(source: Path, destination: Path) -> None:
    if not source.exists():
        raise CheckpointError(f"{source} does not exist; give a Hugging Face folder or a GGUF file")
    if not source.is_dir() and gguf_model(source) is None:
        raise CheckpointError(f"{source} is not a folder; give a Hugging Face folder or a GGUF file")
    if (source / MANIFEST_FILE).exists():
        raise ConfigError(f"{source} is an .elmoe folder already; use it as it is")
    refuse_existing(destination)
    if source.resolve() in destination.resolve().parents:
        raise ConfigError(f"{destination} lies inside the source {source}; choose a destination outside of it")
    if not destination.parent.is_dir():
        raise ConfigError(f"{destination.parent} is not a folder; create it or choose another destination")


@contextmanager
def _storage_errors(destination: Path, layout: Layout, texts: dict[str, bytes]) -> Iterator[None]:
    """Refuse to start on a disk that is too full, and name what a failing system call was about."""
    needed = sum(layout.file_bytes.values()) + sum(map(len, texts.values())) + MANIFEST_ALLOWANCE_BYTES
    _check_free(destination, needed)
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(destination, needed) from error
        where = error.filename or destination
        raise StorageError(f"{where}: {os.strerror(error.errno or 0)}, while {destination} was written") from error


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to the file system of `folder`."""
    return shutil.disk_usage(folder).free


def _check_free(destination: Path, needed: int) -> None:
    if free_bytes(destination.parent) < needed:
        raise _disk_full(destination, needed)


def _disk_full(destination: Path, needed: int) -> StorageError:
    free = free_bytes(destination.parent)
    return StorageError(
        f"{destination}: the disk is full: {needed} bytes are needed, {free} are free; "
        "free some space or choose another destination"
    )


class _Meter:
    """Counts source bytes for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def add(self, size_bytes: int) -> None:
        self._done += size_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _source_fields(source: Path, paths: tuple[Path, ...], meter: _Meter) -> dict[str, Any]:
    """The manifest's ``source`` field: base name, and size and SHA-256 of every file that is read."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(paths):
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path, meter.add)}
    lines = "".join(f"{entry['sha256']}  {name}\n" for name, entry in files.items())
    return {
        "name": Path(os.path.abspath(source)).name,  # noqa: PTH100  resolve() would name the target of a link
        "files": files,
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }


def write_dense(
    writer: PieceWriter, sources: ModelSources, weights: WeightSource, layout: Layout, add: Callable[[int], None]
) -> None:
    """All vectors and dense matrices; `add` gets the source bytes of each piece."""
    for vector in sources.vectors:
        writer.append(layout.vectors[vector.name], vector.read(weights).astype("<f4"))
        add(vector.source_bytes(weights))
    _write_blocks(writer, weights, _dense_blocks(sources, layout), add)


def write_experts(
    writer: PieceWriter, sources: ModelSources, weights: WeightSource, layout: Layout, add: Callable[[int], None]
) -> None:
    """The records of all experts; `add` gets the source bytes of each piece."""
    _write_blocks(writer, weights, _expert_blocks(sources, layout), add)


def write_manifest(folder: Path, origin: dict[str, Any], program: Program, texts: dict[str, bytes], crcs: Crcs) -> None:
    """``manifest.json`` of a folder that holds everything else; `origin` is its ``source`` field."""
    layout = layout_of(program)
    values = {
        "format": FORMAT,
        "version": VERSION,
        "elmoe_version": version("elmoe"),
        "source": origin,
        "files": layout.file_bytes | {name: len(text) for name, text in texts.items()},
        "copied": {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()},
        **describe(program, layout, crcs),
    }
    (folder / MANIFEST_FILE).write_bytes(to_bytes(values))
    sync(folder / MANIFEST_FILE)


def _write_blocks(
    writer: PieceWriter, weights: WeightSource, blocks: Iterator[_Block], add: Callable[[int], None]
) -> None:
    def tiles(block: _Block) -> tuple[UInt8, UInt8]:
        return block.matrix.planes(weights, block.first, block.last)

    for block, (msb, lsb) in _in_order(tiles, blocks):
        writer.append(block.msb, msb)
        writer.append(block.lsb, lsb)
        add(block.matrix.source_bytes(weights, block.first, block.last))


def _dense_blocks(sources: ModelSources, layout: Layout) -> Iterator[_Block]:
    """Blocks of rows of dense matrices in the order in which they are written."""
    for matrix in sources.linears:
        for first, last in matrix.blocks():
            yield _Block(matrix, first, last, *layout.linears[matrix.linear.name])


def _expert_blocks(sources: ModelSources, layout: Layout) -> Iterator[_Block]:
    for layer, expert in layout.experts:
        msb, lsb = layout.experts.extent("msb", layer, expert), layout.experts.extent("lsb", layer, expert)
        for matrix in sources.experts[layer][expert]:
            for first, last in matrix.blocks():
                yield _Block(matrix, first, last, msb, lsb)


def _in_order(
    work: Callable[[_Block], tuple[UInt8, UInt8]], blocks: Iterator[_Block]
) -> Iterator[tuple[_Block, tuple[UInt8, UInt8]]]:
    """Results of `work` in the order of `blocks`, a few of them under way at a time (NumPy releases the GIL)."""
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    window: deque[tuple[_Block, Future[tuple[UInt8, UInt8]]]] = deque()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="elmoe-convert")
    try:
        for block in blocks:
            window.append((block, executor.submit(work, block)))
            if len(window) > threads:
                first, result = window.popleft()
                yield first, result.result()
        while window:
            first, result = window.popleft()
            yield first, result.result()
    finally:
        executor.shutdown(cancel_futures=True)
