"""Hugging Face model folders: ``config.json`` beside one or several safetensors files.

Opening reads headers only; a tensor's bytes are read when its rows are asked for. Knows nothing about model
families: which tensors there should be is the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  safetensors can name bfloat16 in NumPy only after this import
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from elmoe.checkpoint.json_file import read_json_object
from elmoe.errors import CheckpointError, StorageError, UnsupportedModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOAT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
"""Bytes per element of the dtypes that are read."""
FETCH = "fetch the model again"


@dataclass(frozen=True, eq=False)
class SafetensorsFolder:
    """Tensors of a Hugging Face folder by name."""

    path: Path
    config: dict[str, Any]
    files: tuple[str, ...]
    """Names of the weight files, the index included."""
    _shard_of: Mapping[str, str] = field(repr=False)
    _shards: Mapping[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> SafetensorsFolder:
        """Open a folder with ``config.json`` and ``model.safetensors`` or ``model.safetensors.index.json``.

        Raises CheckpointError for a missing or broken file, UnsupportedModelError for weights in another format.
        """
        config = read_json_object(path / "config.json", "give the folder that holds it, or " + FETCH)
        if (path / SINGLE_FILE).exists():
            shard = _open_shard(path / SINGLE_FILE, "")
            shard_of = dict.fromkeys(shard.keys(), SINGLE_FILE)
            return cls(path, config, (SINGLE_FILE,), shard_of, {SINGLE_FILE: shard})
        if not (path / INDEX_FILE).exists():
            raise _no_weights(path)
        shard_of = _read_index(path / INDEX_FILE)
        names = sorted(set(shard_of.values()))
        shards = {name: _open_shard(path / name, f", which {INDEX_FILE} lists") for name in names}
        held = {name: set(shard.keys()) for name, shard in shards.items()}
        for tensor, name in shard_of.items():
            if tensor not in held[name]:
                raise CheckpointError(f"{path / name}: tensor {tensor}, which {INDEX_FILE} lists, is missing; {FETCH}")
        return cls(path, config, (INDEX_FILE, *names), shard_of, shards)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._shard_of))

    def check(self, name: str, shape: tuple[int, ...]) -> int:
        """Bytes of the tensor `name`, from the header alone, once it is known to be usable.

        Raises CheckpointError when it is missing or has another shape, UnsupportedModelError for a dtype other
        than BF16, F16 and F32.
        """
        if name not in self._shard_of:
            raise CheckpointError(f"{self.path}: tensor {name} is missing, though config.json calls for it; {FETCH}")
        header = self._slice(name)
        file, dtype, found = self.path / self._shard_of[name], header.get_dtype(), tuple(header.get_shape())
        if dtype not in FLOAT_BYTES:
            raise UnsupportedModelError(
                f"{file}: {name} has dtype {dtype}; elmoe converts BF16, F16 and F32 checkpoints"
            )
        if found != shape:
            raise CheckpointError(
                f"{file}: {name} has shape {list(found)}, config.json calls for {list(shape)}; "
                "the two are not of the same model, " + FETCH
            )
        return FLOAT_BYTES[dtype] * int(np.prod(shape))

    def rows(self, name: str, first: int, last: int) -> npt.NDArray[Any]:
        """Rows `first` to `last` (exclusive) of a tensor, in the dtype of the file."""
        try:
            return self._slice(name)[first:last]
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{self.path / self._shard_of[name]}: {name} cannot be read: {error}") from error

    def _slice(self, name: str) -> Any:
        return self._shards[self._shard_of[name]].get_slice(name)


def _open_shard(path: Path, listed: str) -> Any:
    try:
        return safe_open(path, framework="np")
    except FileNotFoundError:
        raise CheckpointError(f"{path}{listed}, is missing; {FETCH}") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({error}); {FETCH}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error


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
