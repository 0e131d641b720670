"""The header of a GGUF file: metadata, and where which tensor lies. No weights are read.

The format, all little-endian: magic ``GGUF``, version (uint32), number of tensors and of metadata entries (uint64);
entries of key (string), type (uint32), value; tensors of name (string), number of dimensions (uint32), dimensions
(uint64, the fastest one first), type (uint32), offset (uint64, from the end of the header, which is padded to
``general.alignment``). A string is its length (uint64) and UTF-8 bytes; an array is a type (uint32), a length
(uint64) and values. Source: ``docs/gguf.md`` of ggml, version 3.

Parsed here rather than by the `gguf` package's reader, which wants the whole file to be there, trusts every length
in it, and takes seconds for a vocabulary of 150,000 tokens. Knows nothing about models.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from elmoe.errors import CheckpointError, StorageError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Version 1 had 32-bit lengths; files of it are of 2023."""
FETCH = "fetch the file again"
DEFAULT_ALIGNMENT = 32
LARGEST_RANK = 4

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Metadata types with values of fixed size, as `struct` spells them."""
FLOAT32, STRING, ARRAY = 6, 8, 9

BLOCKS = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 8: ("Q8_0", 32, 34), 30: ("BF16", 1, 2), 39: ("MXFP4", 32, 17)}
"""Tensor types that elmoe reads: name, weights per block, bytes per block."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is."""

    shape: tuple[int, ...]
    """Slowest dimension first, as in PyTorch."""
    kind: int
    """GGML's number of the tensor type."""
    offset: int
    """From the start of the file."""

    @property
    def size_bytes(self) -> int | None:
        """None for a type that elmoe does not read."""
        if self.kind not in BLOCKS:
            return None
        _, weights, block_bytes = BLOCKS[self.kind]
        return prod(self.shape) // weights * block_bytes


@dataclass(frozen=True)
class Header:
    """What the header of a file says."""

    path: Path
    metadata: Mapping[str, Any]
    """FP32 numbers are the shortest decimal that means them: 1e-06, not 9.99999997e-07."""
    tensors: Mapping[str, TensorInfo]


def starts_as_gguf(path: Path) -> bool:
    """Whether an existing file has GGUF's first bytes; StorageError when the operating system will not read it."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error


def read_header(path: Path) -> Header:
    """The header of a GGUF file, of which the weights may be missing.

    Raises CheckpointError for a file that is no GGUF file, of another version or byte order, truncated within the
    header, or damaged; StorageError when the operating system will not read it.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise CheckpointError(f"{path} is not a GGUF file (it does not start with GGUF); give a model file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data).header()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error


class _Parser:
    """Reads one file from front to back."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, len(MAGIC)

    def header(self) -> Header:
        self._check_version()
        tensors, entries = self._count("tensors"), self._count("metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"the metadata key {key} is there twice")
            metadata[key] = self._value(self._scalar("<I"))
        infos: dict[str, TensorInfo] = {}
        for _ in range(tensors):
            name = self._string()
            if name in infos:
                raise self._damaged(f"the tensor {name} is there twice")
            infos[name] = self._tensor(name)
        start = self._padded(metadata)
        placed = {name: TensorInfo(info.shape, info.kind, start + info.offset) for name, info in infos.items()}
        return Header(self._path, metadata, placed)

    def _check_version(self) -> None:
        version = self._scalar("<I")
        if version & 0xFFFF == 0:
            raise CheckpointError(
                f"{self._path} is a big-endian GGUF file; `gguf-convert-endian {self._path.name} little` converts it"
            )
        if version not in VERSIONS:
            raise CheckpointError(
                f"{self._path}: GGUF version {version} is not readable (elmoe reads 2 and 3); "
                "convert the model again with a current llama.cpp"
            )

    def _tensor(self, name: str) -> TensorInfo:
        """A tensor's entry, its offset still from the end of the header."""
        rank = self._scalar("<I")
        if not 1 <= rank <= LARGEST_RANK:
            raise self._damaged(f"the tensor {name} has {rank} dimensions")
        dims = [self._scalar("<Q") for _ in range(rank)]
        kind, offset = self._scalar("<I"), self._scalar("<Q")
        if 0 in dims or prod(dims) >= 1 << 48 or offset >= 1 << 62:
            raise self._damaged(f"the tensor {name} has dimensions {dims} at offset {offset}")
        if kind in BLOCKS and dims[0] % BLOCKS[kind][1]:
            raise self._damaged(f"the tensor {name} of type {BLOCKS[kind][0]} has rows of {dims[0]} weights")
        return TensorInfo(tuple(reversed(dims)), kind, offset)

    def _padded(self, metadata: Mapping[str, Any]) -> int:
        """Where the weights start."""
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment = {alignment!r}")
        return -(-self._at // alignment) * alignment

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array()
        if kind not in SCALARS:
            raise self._damaged(f"a metadata value has the type {kind}")
        value = self._scalar(SCALARS[kind])
        return float(str(np.float32(value))) if kind == FLOAT32 else value

    def _array(self) -> list[Any]:
        kind, length = self._scalar("<I"), self._count("values of an array")
        if kind in SCALARS:
            code = SCALARS[kind]
            raw = self._take(length * struct.calcsize(code))
            values: list[Any] = np.frombuffer(raw, np.dtype(code)).tolist()
            return values
        if kind != STRING:
            raise self._damaged(f"a metadata array has values of type {kind}")
        return [self._string() for _ in range(length)]

    def _string(self) -> str:
        raw = self._take(self._scalar("<Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._damaged(f"the string {raw[:40]!r} is not UTF-8") from None

    def _count(self, what: str) -> int:
        """A number of things that take at least a byte each."""
        count = int(self._scalar("<Q"))
        if count > len(self._data):
            raise self._damaged(f"it says that it has {count} {what}")
        return count

    def _scalar(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _take(self, size_bytes: int) -> bytes:
        end = self._at + size_bytes
        if end > len(self._data):
            raise CheckpointError(f"{self._path} is truncated within its header; {FETCH}")
        raw = self._data[self._at : end]
        self._at = end
        return raw

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is damaged ({what}); {FETCH}")
