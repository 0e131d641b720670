"""Rows of figures on disk, and whether they are still those of their inputs. Nothing unchanged is computed again.

``data/fig14.parquet`` carries in its metadata the hash of everything that its rows follow from; ``data/fig14.csv`` is
the same for other tools. Knows nothing about figures but their names.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from elmoe.sim.write_rows import write_rows

Rows = list[dict[str, Any]]
CODE = (".py", ".toml", ".json", ".csv")
FIGURES = tuple(f"report/{name}_figures.py" for name in ("paper", "measured", "beyond"))
SIMULATOR = ("errors.py", "quant", "models", "trace", "sim", "report/simulated.py", *FIGURES)
"""Code that decides what rows figures have."""
DRAWING = ("report/images.py", "report/labels.py", "report/texts.toml", *FIGURES)
"""Code that decides what images look like."""
HASH_DIGITS = 16


@dataclass(frozen=True)
class Stored:
    """Rows and where they came from."""

    rows: Rows
    input_hash: str
    kept: bool
    """Read from disk: the inputs are as they were."""


class Store:
    """A folder of tables."""

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        """fresh: believe nothing that is there."""
        self.folder, self.fresh = folder, fresh

    def rows(self, name: str, input_hash: str, build: Callable[[], Rows], about: dict[str, Any]) -> Stored:
        """Those of `name`, built only where the folder has none with this hash. about: metadata to write with them."""
        path = self.folder / f"{name}.parquet"
        if not self.fresh:
            found = _kept(path, input_hash)
            if found is not None:
                return Stored(found, input_hash, kept=True)
        made = build()
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"input_hash": input_hash, "elmoe_version": version()} | about
        for suffix in (".csv", ".parquet"):  # the one with the hash last
            write_rows(path.with_suffix(suffix), made, about)
        return Stored(made, input_hash, kept=False)


def hash_of(*inputs: object) -> str:
    """Of anything that JSON can write."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def version() -> str:
    """Of elmoe."""
    return importlib.metadata.version("elmoe")


@cache
def code_hash(rooms: tuple[str, ...]) -> str:
    """Of the code and data tables of some rooms (or modules), as ``sim`` or ``cli/measurements.py``."""
    digest = sha256()
    for room in rooms:
        for name, data in _files(room):
            digest.update(name.encode() + b"\0" + data)
    return digest.hexdigest()[:HASH_DIGITS]


def file_hash(path: Path) -> str:
    """Of a file's bytes."""
    return sha256(path.read_bytes()).hexdigest()[:HASH_DIGITS]


def _files(room: str) -> Iterable[tuple[str, bytes]]:
    top = files("elmoe")
    for part in room.split("/"):
        top = top / part
    folders = [(room, top)]
    while folders:
        name, entry = folders.pop()
        if entry.is_dir():
            inside = sorted(entry.iterdir(), key=lambda one: one.name)
            folders += [(f"{name}/{one.name}", one) for one in inside if one.name != "__pycache__"]
        elif name.endswith(CODE):
            yield name, entry.read_bytes()


def _kept(path: Path, input_hash: str) -> Rows | None:
    """The rows on disk, if they are whole and of these inputs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[b"elmoe"])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
    return table.to_pylist() if about.get("input_hash") == input_hash else None
