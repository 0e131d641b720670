"""GGUF model files: one, or the numbered parts of one.

Opening reads the headers and maps the files; weights are read when rows are asked for. ``Q8_0`` is our own INT8 in
groups of 32, so its codes and scales are taken as they are; MXFP4 likewise. Knows nothing about model families: the
config and the names of tensors in Hugging Face terms come from `gguf_config.py` and `gguf_names.py`.

Blocks, from ggml's ``ggml-common.h``: ``Q8_0`` is an FP16 scale and 32 int8 codes; MXFP4 is an E8M0 scale and 16
bytes of which byte i holds element i in its low nibble and element i + 16 in its high nibble.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from elmoe.checkpoint.gguf_config import Described, block_of, config_of
from elmoe.checkpoint.gguf_header import BLOCKS, FETCH, Header, TensorInfo, read_header, starts_as_gguf
from elmoe.checkpoint.gguf_names import GgufNames
from elmoe.checkpoint.gguf_tokenizer import TokenizerFiles, tokenizer_files
from elmoe.checkpoint.weight_source import (
    FLOATS,
    FloatRows,
    Int8Rows,
    Mxfp4Rows,
    Rows,
    floats,
    select,
    share_bytes,
)
from elmoe.errors import CheckpointError, StorageError, UnsupportedModelError
from elmoe.models.source_tensors import Part
from elmoe.quant.bitnested import GROUP, UInt8

SUFFIX = ".gguf"
SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class GgufFile:
    """Tensors of a model by the names of its Hugging Face checkpoint; a `WeightSource`."""

    path: Path
    files: tuple[Path, ...]
    config: dict[str, Any]
    _model: Described = field(repr=False)
    _names: GgufNames = field(repr=False)
    _content: Mapping[str, UInt8] = field(repr=False)
    """Bytes of every tensor of a type that elmoe reads, mapped."""

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Open a file, or by any of its parts a model in several.

        Raises CheckpointError for a missing or broken file, UnsupportedModelError for a model that elmoe cannot run.
        """
        headers = _read_headers(path)
        model = _described(path, headers)
        config = config_of(model)
        names = GgufNames(
            model.arch,
            model.integer("block_count"),
            model.integer("expert_count"),
            model.head_dim,
            model.tensors.keys(),
        )
        content: dict[str, UInt8] = {}
        for header in headers:
            content |= _map(header)
        return cls(path, tuple(header.path for header in headers), config, model, names, content)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors in the file, sorted, but for those of layers that predict several tokens at once."""
        layers = self._model.layers
        return tuple(sorted(name for name in self._model.tensors if block_of(name) < layers))

    def unused(self, parts: Iterable[Part]) -> tuple[str, ...]:
        """Names of tensors that none of the parts is of, sorted."""
        used = {self._names.place(part).tensor for part in parts}
        return tuple(name for name in self.tensors if name not in used)

    def check(self, part: Part) -> int:
        """Bytes of a part, from the header alone, once its tensor is known to be usable.

        Raises CheckpointError when it is missing or has another shape, UnsupportedModelError for a type that elmoe
        does not read.
        """
        placed = self._names.place(part)
        name = placed.tensor
        if name not in self._model.tensors:
            raise CheckpointError(
                f"{self.path}: tensor {name} ({part.tensor}) is missing, though the metadata call for it; {FETCH}"
            )
        info = self._model.tensors[name]
        if _without_ones(info.shape) != _without_ones(placed.shape):
            raise CheckpointError(
                f"{self.path}: {name} has shape {list(info.shape)}, the metadata call for {list(placed.shape)}; {FETCH}"
            )
        if info.kind not in BLOCKS:
            raise self._unread(name, info)
        return share_bytes(placed, self._content[name].size)

    def read(self, part: Part, first: int, last: int) -> Rows:
        """Rows `first` to `last` (exclusive) of a part that `check` has passed."""
        placed = self._names.place(part)
        name, (_, height, width) = placed.tensor, placed.view
        kind, weights, block_bytes = BLOCKS[self._model.tensors[name].kind]
        if width % weights:  # a vector, one element to a row
            values = floats(_decode(kind, self._content[name].reshape(1, -1, block_bytes)), name)
            elements = values.reshape(placed.view)[placed.slab]
            return select(placed, first, last, lambda rows: FloatRows(elements[rows]))
        blocks = self._content[name].reshape(placed.slabs, height, width // weights, block_bytes)[placed.slab]
        return select(placed, first, last, lambda rows: _decode(kind, blocks[rows]))

    def small_files(self) -> dict[str, bytes]:
        """``config.json`` and what the metadata say of tokenizer, chat template and stop tokens."""
        return {"config.json": _json(self.config), **self._text.files}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the tokenizer, one line each."""
        return self._text.notes

    @cached_property
    def _text(self) -> TokenizerFiles:
        return tokenizer_files(self.path, self._model.metadata, int(self.config["vocab_size"]))

    def _unread(self, name: str, info: TensorInfo) -> UnsupportedModelError:
        supported = ", ".join(kind for kind, _, _ in BLOCKS.values())
        return UnsupportedModelError(
            f"{self.path}: {name} is of type {_kind_name(info.kind)}; elmoe reads {supported}. Best made from the "
            "original: `convert_hf_to_gguf.py FOLDER --outtype q8_0`; from this file, at its quality: "
            f"`llama-quantize --allow-requantize {self.path.name} {name_of(self.path)}-q8_0.gguf q8_0`"
        )


def read_gguf_config(path: Path) -> dict[str, Any]:
    """The ``config.json`` that the headers of a model's files describe; the weights need not be there.

    Raises like `GgufFile.open`.
    """
    return config_of(_described(path, _read_headers(path)))


def gguf_model(path: Path) -> Path | None:
    """The GGUF file that `path` means: itself, or the only model in a folder without ``config.json``; else None.

    A file is one by its first bytes, whatever its name, or by its name. Of a model in several files it is the first.
    Raises CheckpointError for a folder with several models in it, StorageError for a file that cannot be read.
    """
    if not path.is_dir():
        named = path.suffix.lower() == SUFFIX
        return split_files(path)[0] if named or (path.is_file() and starts_as_gguf(path)) else None
    if (path / "config.json").exists():
        return None
    found = {split_files(file)[0] for file in path.iterdir() if file.suffix.lower() == SUFFIX}
    if len(found) > 1:
        names = ", ".join(sorted(file.name for file in found))
        raise CheckpointError(f"{path} holds several models ({names}); give one of these files")
    return found.pop() if found else None


def name_of(path: Path) -> str:
    """What a GGUF file is called, without the ending."""
    return path.stem if path.suffix.lower() == SUFFIX else path.name


def split_files(path: Path) -> tuple[Path, ...]:
    """All files of the model that `path` is of, in order: itself, or the parts by its numbered name."""
    found = SPLIT_NAME.fullmatch(path.name)
    if not found:
        return (path,)
    name, count, ending = found[1], int(found[3]), found[4]
    return tuple(path.with_name(f"{name}-{number:05}-of-{count:05}{ending}") for number in range(1, count + 1))


def _read_headers(path: Path) -> list[Header]:
    """Of all files; CheckpointError names one that is missing."""
    files = split_files(path)
    for file in files:
        if not file.is_file():
            listed = f", part of {path.name}," if len(files) > 1 else ""
            raise CheckpointError(f"{file}{listed} is missing; {FETCH}")
    headers = [read_header(file) for file in files]
    count = headers[0].metadata.get("split.count", 1) or 1
    if count != len(files):
        raise CheckpointError(
            f"{files[0]} says that it is one of {count} files, its name that of {len(files)}; "
            "give the files their names back (NAME-00001-of-00003.gguf)"
        )
    return headers


def _described(path: Path, headers: list[Header]) -> Described:
    """All headers as one: the first has the metadata."""
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise CheckpointError(f"{header.path}: tensor {min(twice)} is in two of the files; {FETCH}")
        tensors |= header.tensors
    return Described(path, headers[0].metadata, tensors)


def _map(header: Header) -> dict[str, UInt8]:
    """Bytes of the tensors of a file; CheckpointError when the file ends before they do."""
    try:
        content = np.memmap(header.path, dtype=np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise StorageError(f"{header.path} cannot be read: {error.strerror or error}") from error
    found: dict[str, UInt8] = {}
    for name, info in header.tensors.items():
        size_bytes = info.size_bytes or 0
        if info.offset + size_bytes > content.size:
            raise CheckpointError(
                f"{header.path} is truncated: it has {content.size} bytes, {name} ends at "
                f"{info.offset + size_bytes}; {FETCH}"
            )
        found[name] = content[info.offset : info.offset + size_bytes]
    return found


def _decode(kind: str, blocks: UInt8) -> Rows:
    """Rows of blocks, uint8 [n, blocks per row, block bytes]."""
    count, width = len(blocks), blocks.shape[1] * GROUP
    if kind in FLOATS:
        return FloatRows(np.ascontiguousarray(blocks).view(FLOATS[kind]).reshape(count, -1))
    if kind == "Q8_0":
        scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").reshape(count, -1)
        return Int8Rows(np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(count, width), scales)
    nibbles = blocks[..., 1:]
    codes = np.concatenate([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=-1)
    return Mxfp4Rows(codes.reshape(count, width), np.ascontiguousarray(blocks[..., 0]))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size > 1)


def _kind_name(kind: int) -> str:
    import gguf

    try:
        return gguf.GGMLQuantizationType(kind).name
    except ValueError:
        return f"{kind}, which is newer than the gguf package here"


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
