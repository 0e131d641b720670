"""Hugging Face model folders: ``config.json`` beside one or several safetensors files.

Opening reads headers and maps the files; a tensor's bytes are read when its rows are asked for. An MXFP4 tensor is a
pair of uint8 tensors, ``NAME_blocks`` [..., N, K/32, 16] and ``NAME_scales`` [..., N, K/32], and goes by ``NAME``
[..., N, K] here (see `quant/mxfp4.py`). Knows nothing about model families: which tensors there should be is the
caller's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from elmoe.checkpoint.chat import NAMED_TEMPLATES, named_template_file
from elmoe.checkpoint.json_file import read_json_object
from elmoe.checkpoint.manifest import COPIED_FILES
from elmoe.checkpoint.weight_source import FLOATS, FloatRows, Mxfp4Rows, Rows, select, share_bytes
from elmoe.errors import CheckpointError, StorageError, UnsupportedModelError
from elmoe.models.source_tensors import Part
from elmoe.quant.bitnested import GROUP, UInt8
from elmoe.quant.mxfp4 import BLOCK_BYTES, unpack

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
BLOCKS, SCALES = "_blocks", "_scales"
"""What the names of the two halves of an MXFP4 tensor end with."""
FETCH = "fetch the model again"


@dataclass(frozen=True, eq=False)
class _Stored:
    """A tensor in a mapped file."""

    file: Path
    dtype: str
    """As the header spells it."""
    shape: tuple[int, ...]
    content: UInt8

    def array(self) -> npt.NDArray[Any]:
        """The tensor itself, of a dtype in `FLOATS` or U8; nothing is read."""
        return self.content.view(FLOATS.get(self.dtype, np.uint8)).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class SafetensorsFolder:
    """Tensors of a Hugging Face folder by name; a `WeightSource`."""

    path: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    _stored: Mapping[str, _Stored] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> SafetensorsFolder:
        """Open a folder with ``config.json`` and ``model.safetensors`` or ``model.safetensors.index.json``.

        Raises CheckpointError for a missing or broken file, UnsupportedModelError for weights in another format.
        """
        config = read_json_object(path / "config.json", "give the folder that holds it, or " + FETCH)
        copied = [path / name for name in COPIED_FILES if (path / name).is_file()]
        copied += sorted((path / NAMED_TEMPLATES).glob("*.jinja"))
        if (path / SINGLE_FILE).exists():
            stored = _open_shard(path / SINGLE_FILE, "")
            return cls(path, config, (*copied, path / SINGLE_FILE), stored)
        if not (path / INDEX_FILE).exists():
            raise _no_weights(path)
        shard_of = _read_index(path / INDEX_FILE)
        shards = {
            name: _open_shard(path / name, f", which {INDEX_FILE} lists") for name in sorted(set(shard_of.values()))
        }
        for tensor, name in shard_of.items():
            if tensor not in shards[name]:
                raise CheckpointError(f"{path / name}: tensor {tensor}, which {INDEX_FILE} lists, is missing; {FETCH}")
        files = (*copied, path / INDEX_FILE, *(path / name for name in shards))
        return cls(path, config, files, {tensor: shards[name][tensor] for tensor, name in shard_of.items()})

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(set(self._names())))

    def unused(self, parts: Iterable[Part]) -> tuple[str, ...]:
        """Those of `tensors` that none of the parts is of, sorted."""
        used = {part.tensor for part in parts}
        return tuple(name for name in self.tensors if name not in used)

    def check(self, part: Part) -> int:
        """Bytes of a part, from the header alone, once its tensor is known to be usable.

        Raises CheckpointError when it is missing or has another shape, UnsupportedModelError for a dtype other than
        BF16, F16 and F32 (U8 in MXFP4 pairs).
        """
        if part.tensor in self._stored:
            return share_bytes(part, self._check(part.tensor, part.shape, tuple(FLOATS)))
        if part.tensor + BLOCKS not in self._stored:
            raise self._missing(part.tensor)
        if not self.config.get("quantization_config"):
            raise CheckpointError(
                f"{self.path}: {part.tensor} is MXFP4, but config.json has no quantization_config that says so; {FETCH}"
            )
        groups = (*part.shape[:-1], part.shape[-1] // GROUP)
        size_bytes = self._check(part.tensor + BLOCKS, (*groups, BLOCK_BYTES), ("U8",))
        return share_bytes(part, size_bytes + self._check(part.tensor + SCALES, groups, ("U8",)))

    def read(self, part: Part, first: int, last: int) -> Rows:
        """Rows `first` to `last` (exclusive) of a part, floats in the dtype of the file."""
        slabs, height, width = part.view
        if part.tensor in self._stored:
            floats = self._stored[part.tensor].array().reshape(part.view)[part.slab]
            return select(part, first, last, lambda rows: FloatRows(floats[rows]))
        groups = slabs, height, width // GROUP
        blocks = self._stored[part.tensor + BLOCKS].array().reshape(*groups, BLOCK_BYTES)[part.slab]
        scales = self._stored[part.tensor + SCALES].array().reshape(groups)[part.slab]
        return select(part, first, last, lambda rows: Mxfp4Rows(unpack(blocks[rows]), scales[rows]))

    def small_files(self) -> dict[str, bytes]:
        """Those of `COPIED_FILES` that the folder has, and named chat templates.

        Raises StorageError for one that cannot be read.
        """
        texts = {file.name: file for file in self.files if file.parent == self.path and file.name in COPIED_FILES}
        texts |= {named_template_file(file.stem): file for file in self.files if file.parent.name == NAMED_TEMPLATES}
        try:
            return {name: file.read_bytes() for name, file in texts.items()}
        except OSError as error:
            raise StorageError(f"{error.filename} cannot be read: {error.strerror}") from error

    @property
    def notes(self) -> tuple[str, ...]:
        """None: the files are copied as they are."""
        return ()

    def _names(self) -> Iterator[str]:
        """Names of all tensors; a pair's name comes twice."""
        for name in self._stored:
            pair = name.removesuffix(BLOCKS).removesuffix(SCALES)
            yield pair if {pair + BLOCKS, pair + SCALES} <= self._stored.keys() else name

    def _check(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> int:
        """Bytes of a tensor that is as it should be."""
        if name not in self._stored:
            raise self._missing(name)
        stored = self._stored[name]
        if stored.dtype not in dtypes:
            raise UnsupportedModelError(
                f"{stored.file}: {name} has dtype {stored.dtype}; elmoe converts BF16, F16 and F32 checkpoints, "
                "and MXFP4 experts as pairs of U8 tensors"
            )
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.file}: {name} has shape {list(stored.shape)}, config.json calls for {list(shape)}; "
                "the two are not of the same model, " + FETCH
            )
        return stored.content.size

    def _missing(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: tensor {name} is missing, though config.json calls for it; {FETCH}")


def _open_shard(path: Path, listed: str) -> dict[str, _Stored]:
    """All tensors of a file."""
    try:
        with safe_open(path, framework="np"):  # checks the header against itself and the file's size
            content = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    except FileNotFoundError:
        raise CheckpointError(f"{path}{listed}, is missing; {FETCH}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({error}); {FETCH}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    stored = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            stored[name] = _Stored(path, entry["dtype"], tuple(entry["shape"]), content[start + begin : start + end])
    return stored


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard file name, both checked to be plain names."""
    shard_of = read_json_object(path, FETCH).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{path} has no weight_map; {FETCH}")
    for tensor, name in shard_of.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path}: {tensor} is said to be in {name!r}, which is not a file name; {FETCH}")
    return shard_of


def _no_weights(path: Path) -> CheckpointError:
    pickles = sorted(entry.name for entry in path.iterdir() if entry.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        return UnsupportedModelError(
            f"{path} holds pickled weights ({pickles[0]}); elmoe reads safetensors: save the model as safetensors"
        )
    return CheckpointError(f"{path} has neither {SINGLE_FILE} nor {INDEX_FILE}; {FETCH}")
