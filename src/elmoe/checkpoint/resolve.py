"""From what a person types as MODEL to an `.elmoe` folder, converting into a cache folder where needed.

MODEL is a built-in name, an `.elmoe` folder, a Hugging Face folder or a GGUF file (of a model in several files, any
one of them, or the folder that they are in). A built-in name wins over a folder of the same name; ``./tiny`` is the
folder. Knows nothing about what is in the files.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import time
from pathlib import Path
from typing import Any

from elmoe.checkpoint.chat import NAMED_TEMPLATES
from elmoe.checkpoint.convert import Progress, check_source, convert
from elmoe.checkpoint.gguf_file import gguf_model, name_of, read_gguf_config, split_files
from elmoe.checkpoint.json_file import read_json_object
from elmoe.checkpoint.manifest import MANIFEST_FILE, VERSION
from elmoe.errors import BusyError, CheckpointError, ConfigError, ElmoeError, StorageError

BUILT_IN = ("tiny",)
CONFIG_FILE = "config.json"
READ_FILES = ("*.json", "*.jinja", "*.safetensors", f"{NAMED_TEMPLATES}/*.jinja")
WHAT_A_MODEL_IS = (
    "MODEL is an .elmoe folder, a Hugging Face folder (config.json and safetensors), a .gguf file, "
    f"or a built-in name: {', '.join(BUILT_IN)}"
)


POLL_SECONDS = 0.2
"""Between looks at a conversion that another process is making."""


def resolve(model: str, progress: Progress | None = None) -> Path:
    """The `.elmoe` folder of a MODEL.

    A Hugging Face folder or GGUF file is converted once, into the cache folder, and again when one of its files has
    changed. Raises CheckpointError for something that is no model, and what `convert` raises.
    """
    path = _path_of(model)
    if (path / MANIFEST_FILE).exists():
        return path
    source = gguf_model(path)
    if source is None:
        if not path.is_dir() or not (path / CONFIG_FILE).exists():
            raise _no_model(model, path)
        source, files = path, _files_of(path)
    else:
        files = [file for file in split_files(source) if file.is_file()]
    cached = cache_folder() / f"{name_of(source.resolve())}-{_fingerprint(source, files)}.elmoe"
    if not cached.exists():
        _convert_into_cache(source, cached, progress)
    return cached


def read_config(model: str) -> dict[str, Any]:
    """``config.json`` of a MODEL, or of a path to that file itself; nothing is converted, no weights are read."""
    path = Path(model)
    if model not in BUILT_IN and path.is_file() and path.suffix == ".json":
        return read_json_object(path, "give a config.json of a model")
    path = _path_of(model)
    source = None if (path / MANIFEST_FILE).exists() else gguf_model(path)
    if source is not None:
        return read_gguf_config(source)
    if not path.is_dir():
        raise _no_model(model, path)
    return read_json_object(path / CONFIG_FILE, WHAT_A_MODEL_IS)


def why_not_convertible(model: str) -> tuple[bool | None, str | None]:
    """Whether a GGUF file can be converted, and where it cannot be, why; no weights are read.

    (None, None) for any other MODEL: its ``config.json`` may be all that is there.
    """
    path = _path_of(model)
    if (path / MANIFEST_FILE).exists() or gguf_model(path) is None:
        return None, None
    try:
        check_source(path)
    except ElmoeError as error:
        return False, " ".join(str(error).split())
    return True, None


def cache_folder() -> Path:
    """Where converted models are kept: $ELMOE_CACHE, $XDG_CACHE_HOME/elmoe or ~/.cache/elmoe."""
    if own := os.environ.get("ELMOE_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "elmoe"
    return Path.home() / ".cache" / "elmoe"


def _path_of(model: str) -> Path:
    """The existing path that a MODEL means."""
    if model in BUILT_IN:
        return Path(str(importlib.resources.files("elmoe").joinpath("data", f"{model}.elmoe")))
    path = Path(model)
    if not model or not path.exists():
        raise CheckpointError(f"there is no model {model!r}; {WHAT_A_MODEL_IS}")
    return path


def _no_model(model: str, path: Path) -> CheckpointError:
    of_no_kind = path.is_file() and path.suffix != ".json"
    what = "is no GGUF file (it does not start with GGUF)" if of_no_kind else "holds no model"
    return CheckpointError(f"{model!r} {what}; {WHAT_A_MODEL_IS}")


def _files_of(folder: Path) -> list[Path]:
    """Files of a Hugging Face folder that a conversion reads, if it reads any of their kind; not its README."""
    found = [entry for pattern in READ_FILES for entry in folder.glob(pattern)]
    return [entry for entry in found if entry.is_file()]


def _fingerprint(source: Path, files: list[Path]) -> str:
    """Changes with the source's path and with the name, size or modification time of any of these files of it."""
    folder = source if source.is_dir() else source.parent
    lines = [str(source.resolve()), f"format {VERSION}"]
    for file in sorted(files):
        status = file.stat()
        lines.append(f"{file.relative_to(folder)} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def _convert_into_cache(source: Path, cached: Path, progress: Progress | None) -> None:
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{cached.parent} cannot be created ({error.strerror}); set ELMOE_CACHE to a folder that can be written"
        ) from error
    while True:
        try:
            convert(source, cached, progress)
            return
        except ConfigError:
            if not cached.exists():  # else: another process converted the same model in the meantime
                raise
            return
        except BusyError:
            time.sleep(POLL_SECONDS)
