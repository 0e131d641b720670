"""JSON objects in model folders: read with one clear error per way in which the file can be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elmoe.errors import CheckpointError, StorageError


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    `remedy` ends the message (what the reader should do about a broken file). Raises CheckpointError when the
    file is missing, not JSON or not an object, StorageError when the operating system will not read it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {remedy}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    return json_object(content, str(path), remedy)


def json_object(content: bytes, origin: str, remedy: str) -> dict[str, Any]:
    """The object in the content of a JSON file, which `origin` names. Raises CheckpointError as `read_json_object`."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{origin} is not valid JSON ({error}); {remedy}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{origin} holds a JSON {type(values).__name__}, not an object; {remedy}")
    return values
