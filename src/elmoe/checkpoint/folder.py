"""An open `.elmoe` folder: its configuration, and views of its weights that are checked at first touch.

Opening reads ``manifest.json`` and ``config.json`` and maps the three `.bin` files, so it takes the same time at
any size. Knows nothing about kernels, tiers or who reads what when.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from elmoe.checkpoint.direct import read_whole
from elmoe.checkpoint.json_file import read_json_object
from elmoe.checkpoint.layout import DENSE_FILE, Extent, Layout, Plane, expert_title, layout_of
from elmoe.checkpoint.manifest import AGAIN, MANIFEST_FILE, Crcs, check_fit, read_manifest
from elmoe.checkpoint.supported import supported_model
from elmoe.errors import CheckpointError, StorageError
from elmoe.models.program import Program
from elmoe.models.shape import ModelShape
from elmoe.quant.bitnested import Float32, UInt8

HASH_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model on disk. Make one with `Checkpoint.open`; the arrays it hands out are read-only views."""

    path: Path
    manifest: dict[str, Any]
    config: dict[str, Any]
    """``config.json`` as the source has it."""
    shape: ModelShape
    program: Program
    layout: Layout
    crcs: Crcs
    """CRC-32 of every piece, for readers that go around `linear_planes` and the like."""
    _maps: dict[str, UInt8] = field(repr=False)
    _checked: set[Extent] = field(default_factory=set, repr=False)

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open an `.elmoe` folder.

        Raises CheckpointError, with the remedy, when the folder is missing, foreign, of a newer format version,
        truncated, or when manifest and config.json disagree. Weights are not read yet: see `verify`.
        """
        _refuse_other_kinds(path)
        manifest = read_manifest(path)
        _check_files(path, manifest)
        for name in manifest["copied"]:  # small files; what they say decides what the weights mean
            _check_copied(path, manifest, name)
        config = read_json_object(path / "config.json", AGAIN)
        shape, program = supported_model(config)
        layout = layout_of(program)
        crcs = check_fit(manifest, program, layout, path)
        maps = {name: _map(path / name) for name in layout.file_bytes}
        return cls(path, manifest, config, shape, program, layout, crcs, maps)

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """``generation_config.json``, empty when the model has none."""
        if "generation_config.json" not in self.manifest["files"]:
            return {}
        return read_json_object(self.path / "generation_config.json", AGAIN)

    def linear_planes(self, name: str) -> tuple[UInt8, UInt8]:
        """(MSB plane, LSB plane) of the dense matrix `name`, flat uint8 in the layout of `quant/tiles.py`."""
        msb, lsb = self.layout.linears[name]
        return self._piece(msb, f"MSB plane of {name}"), self._piece(lsb, f"LSB plane of {name}")

    def vector(self, name: str) -> Float32:
        """The FP32 tensor `name` in its own shape."""
        piece = self._piece(self.layout.vectors[name], name)
        return piece.view("<f4").reshape(self.program.vectors[name])

    def expert_msb(self, layer: int, expert: int) -> UInt8:
        """MSB record, flat uint8: tiles of gate_up, then of down. `layer` counts MoE blocks."""
        return self._piece(self.expert_extent("msb", layer, expert), expert_title("msb", layer, expert))

    def expert_lsb(self, layer: int, expert: int) -> UInt8:
        """LSB record, flat uint8: tiles of gate_up, then of down; empty for MXFP4. `layer` counts MoE blocks."""
        return self._piece(self.expert_extent("lsb", layer, expert), expert_title("lsb", layer, expert))

    def expert_extent(self, plane: Plane, layer: int, expert: int) -> Extent:
        """(file name, offset, bytes) of a record, for direct I/O: the offset is a multiple of 4096.

        The file goes on to the next multiple of 4096, so a reader may round the bytes up. Its CRC-32 is
        ``crcs[extent]``.
        """
        return self.layout.experts.extent(plane, layer, expert)

    def mapped(self, file: str) -> UInt8:
        """A whole file, flat uint8, unchecked: for readers that check each extent against `crcs` themselves."""
        return self._maps[file]

    def load_dense(self) -> None:
        """Read everything but the experts into memory of its own, around the page cache. Raises StorageError."""
        self._maps[DENSE_FILE] = read_whole(self.path / DENSE_FILE)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Check every byte that the manifest vouches for; `progress` gets (bytes done, bytes in all).

        Raises CheckpointError naming the first damaged piece.
        """
        pieces = list(self.layout.extents())
        done, total = 0, sum(extent.size_bytes for _, extent in pieces)
        for name in self.manifest["copied"]:
            _check_copied(self.path, self.manifest, name)
        for title, extent in pieces:
            self._checked.discard(extent)
            self._piece(extent, title)
            done += extent.size_bytes
            if progress is not None:
                progress(done, total)

    def _piece(self, extent: Extent, title: str) -> UInt8:
        view = self._maps[extent.file][extent.offset : extent.offset + extent.size_bytes]
        if extent not in self._checked:
            if zlib.crc32(view.data) != self.crcs[extent]:
                raise CheckpointError(f"{self.path / extent.file}: {title} is damaged (CRC-32 mismatch); {AGAIN}")
            self._checked.add(extent)
        return view


def _refuse_other_kinds(path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give an .elmoe folder made by `elmoe convert`")
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; give an .elmoe folder made by `elmoe convert`")
    if not (path / MANIFEST_FILE).exists():
        if (path / "config.json").exists():
            raise CheckpointError(f"{path} is a Hugging Face folder; convert it first with `elmoe convert`")
        raise CheckpointError(f"{path} has no {MANIFEST_FILE}; give an .elmoe folder made by `elmoe convert`")


def _check_files(path: Path, manifest: dict[str, Any]) -> None:
    files, copied = manifest.get("files"), manifest.get("copied")
    if not isinstance(files, dict) or not isinstance(copied, dict):
        raise CheckpointError(f"{path / MANIFEST_FILE} lists no files; {AGAIN}")
    if not {"config.json"} <= copied.keys() <= files.keys():
        raise CheckpointError(f"{path / MANIFEST_FILE}: its list of files is not complete; {AGAIN}")
    for name, size_bytes in files.items():
        if Path(name).name != name:
            raise CheckpointError(f"{path / MANIFEST_FILE}: {name!r} is not a file of this folder; {AGAIN}")
        try:
            found = (path / name).stat().st_size
        except FileNotFoundError:
            raise CheckpointError(f"{path / name} is missing; {AGAIN}") from None
        if found != size_bytes:
            raise CheckpointError(f"{path / name} has {found} bytes instead of {size_bytes}; {AGAIN}")


def _check_copied(path: Path, manifest: dict[str, Any], name: str) -> None:
    if sha256_of(path / name) != manifest["copied"][name]:
        raise CheckpointError(f"{path / name} was changed after the conversion (SHA-256 mismatch); {AGAIN}")


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, read in chunks; `progress` gets the bytes of each."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()


def _map(path: Path) -> UInt8:
    try:
        if not path.stat().st_size:  # cannot be mapped: the LSB records of MXFP4 experts
            return np.empty(0, dtype=np.uint8)
        return np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise StorageError(f"{path} cannot be mapped: {os.strerror(error.errno or 0)}") from error
