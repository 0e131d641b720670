"""Opens a backend by name; the one place that lists them."""

from __future__ import annotations

from collections.abc import Callable

from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import Backend
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import ConfigError

BACKENDS: dict[str, Callable[[Checkpoint], Backend]] = {"cpu": CpuBackend, "reference": ReferenceBackend}
TIERED = ("cpu",)
"""Backends that can leave experts in the slow tier."""


def open_backend(name: str, checkpoint: Checkpoint, expert_bytes: int | None = None) -> Backend:
    """expert_bytes: the most memory that experts may take, of a backend in `TIERED`; None: all weights are mapped.

    Raises ConfigError listing the backends of this version.
    """
    if name not in BACKENDS:
        raise ConfigError(f"backend {name!r} is not in this version of elmoe; choose one of: {', '.join(BACKENDS)}")
    if expert_bytes is not None and name in TIERED:
        return CpuBackend(checkpoint, expert_bytes)
    return BACKENDS[name](checkpoint)
