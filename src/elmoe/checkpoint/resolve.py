"""From what a person types as MODEL to an `.elmoe` folder, converting into a cache folder where needed.

MODEL is a built-in name, an `.elmoe` folder or a Hugging Face folder. A built-in name wins over a folder of the
same name; ``./tiny`` is the folder. Knows nothing about what is in the folders.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import time
from pathlib import Path
from typing import Any

from elmoe.checkpoint.convert import Progress, convert
from elmoe.checkpoint.json_file import read_json_object
from elmoe.checkpoint.manifest import MANIFEST_FILE, VERSION
from elmoe.checkpoint.supported import refuse_gguf
from elmoe.errors import BusyError, CheckpointError, ConfigError, StorageError

BUILT_IN = ("tiny",)
CONFIG_FILE = "config.json"
WHAT_A_MODEL_IS = (
    "MODEL is an .elmoe folder, a Hugging Face folder (config.json and safetensors), "
    f"or a built-in name: {', '.join(BUILT_IN)}"
)


POLL_SECONDS = 0.2
"""Between looks at a conversion that another process is making."""


def resolve(model: str, progress: Progress | None = None) -> Path:
    """The `.elmoe` folder of a MODEL.

    A Hugging Face folder is converted once, into the cache folder, and again when one of its files has changed.
    Raises CheckpointError for something that is no model, UnsupportedModelError for a GGUF file, and what
    `convert` raises.
    """
    folder = _folder_of(model)
    if (folder / MANIFEST_FILE).exists():
        return folder
    if not folder.is_dir() or not (folder / CONFIG_FILE).exists():
        raise CheckpointError(f"{model!r} holds no model; {WHAT_A_MODEL_IS}")
    cached = cache_folder() / f"{folder.resolve().name}-{_fingerprint(folder)}.elmoe"
    if not cached.exists():
        _convert_into_cache(folder, cached, progress)
    return cached


def read_config(model: str) -> dict[str, Any]:
    """``config.json`` of a MODEL, or of a path to that file itself; nothing is converted."""
    path = Path(model)
    if model not in BUILT_IN and path.is_file() and path.suffix == ".json":
        return read_json_object(path, "give a config.json of a model")
    folder = _folder_of(model)
    return read_json_object(folder / CONFIG_FILE, WHAT_A_MODEL_IS)


def cache_folder() -> Path:
    """Where converted models are kept: $ELMOE_CACHE, $XDG_CACHE_HOME/elmoe or ~/.cache/elmoe."""
    if own := os.environ.get("ELMOE_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "elmoe"
    return Path.home() / ".cache" / "elmoe"


def _folder_of(model: str) -> Path:
    """The existing path that a MODEL means."""
    if model in BUILT_IN:
        return Path(str(importlib.resources.files("elmoe").joinpath("data", f"{model}.elmoe")))
    path = Path(model)
    refuse_gguf(path)
    if not model or not path.exists():
        raise CheckpointError(f"there is no model {model!r}; {WHAT_A_MODEL_IS}")
    return path


def _fingerprint(folder: Path) -> str:
    """Changes with the folder's path and with the name, size or modification time of any of its files."""
    lines = [str(folder.resolve()), f"format {VERSION}"]
    for entry in sorted(folder.iterdir()):
        if entry.is_file():
            status = entry.stat()
            lines.append(f"{entry.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def _convert_into_cache(folder: Path, cached: Path, progress: Progress | None) -> None:
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{cached.parent} cannot be created ({error.strerror}); set ELMOE_CACHE to a folder that can be written"
        ) from error
    while True:
        try:
            convert(folder, cached, progress)
            return
        except ConfigError:
            if not cached.exists():  # else: another process converted the same model in the meantime
                raise
            return
        except BusyError:
            time.sleep(POLL_SECONDS)
