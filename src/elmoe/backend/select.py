"""Opens a backend by name; the one place that lists them."""

from __future__ import annotations

from collections.abc import Callable

from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import Backend
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import ConfigError

BACKENDS: dict[str, Callable[[Checkpoint], Backend]] = {"cpu": CpuBackend, "reference": ReferenceBackend}


def open_backend(name: str, checkpoint: Checkpoint) -> Backend:
    """Raises ConfigError listing the backends of this version."""
    if name not in BACKENDS:
        raise ConfigError(f"backend {name!r} is not in this version of elmoe; choose one of: {', '.join(BACKENDS)}")
    return BACKENDS[name](checkpoint)
