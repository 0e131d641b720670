"""The exception tree of elmoe. Knows nothing about the rest of the package.

Exit codes are those of the command line:

    ElmoeError                    everything elmoe raises on purpose
    ├── InputError                something the caller gave is wrong (command line: exit code 2)
    │   ├── ConfigError           an option or parameter is out of range or contradicts another
    │   ├── PromptError           a prompt is empty or does not fit the context
    │   ├── CapacityError         a memory budget is too small for what was asked
    │   ├── TensorError           a tensor holds values that cannot be represented (names the tensor)
    │   ├── CheckpointError       a model folder is missing, broken, foreign or of another version
    │   │   ├── UnsupportedModelError   a healthy model that elmoe cannot run
    │   │   └── ExpertReadError   an expert that some rows of a pass need cannot be read, or is damaged
    │   └── TraceError            a trace file is missing, broken or of another version
    ├── StorageError              the disk is full or an operating system call on a file failed (exit code 2)
    │   └── BusyError             another process is writing the same thing; wait for it
    └── InternalError             a broken promise of ours (exit code 1): please report it
"""

from __future__ import annotations

from collections.abc import Sequence


class ElmoeError(Exception):
    """Base of all errors that elmoe raises on purpose. The message names the thing and the remedy."""

    exit_code = 2
    """Of the command line."""


class InputError(ElmoeError):
    """Something the caller gave is wrong."""


class ConfigError(InputError):
    """An option or parameter is out of range or contradicts another."""


class PromptError(InputError):
    """A prompt is empty or does not fit the context."""


class CapacityError(InputError):
    """A memory budget is too small for what was asked."""


class TensorError(InputError):
    """A tensor holds values that cannot be represented; the message names it."""


class CheckpointError(InputError):
    """A model folder is missing, broken, foreign or of another version."""


class UnsupportedModelError(CheckpointError):
    """A healthy model that elmoe cannot run; the message says which part of it."""


class ExpertReadError(CheckpointError):
    """Some rows of a pass need an expert whose record cannot be read or is damaged; nothing was computed."""

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        """rows: those of the pass that need it."""
        super().__init__(message)
        self.rows = rows
        self.sequences: frozenset[int] = frozenset()
        """The sequences of these rows, once known."""


class TraceError(InputError):
    """A trace file is missing, broken or of another version."""


class StorageError(ElmoeError):
    """The disk is full, or an operating system call on a file failed."""


class BusyError(StorageError):
    """Another process is writing the same thing; wait for it."""


class InternalError(ElmoeError):
    """A broken promise of ours."""

    exit_code = 1
