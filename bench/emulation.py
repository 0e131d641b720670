"""A backend inside another one, which changes what passes say: for benchmarks that emulate acceptance."""

from __future__ import annotations

from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import Int32


class BackendInside:
    """Everything but `forward` as the backend inside."""

    def __init__(self, backend: CpuBackend, chance: float) -> None:
        """chance: that draft and target agree on the next token."""
        self.backend, self.chance = backend, chance
        self.shape, self.footprint, self.tiers = backend.shape, backend.footprint, backend.tiers

    def allocate(self, sequence: int, cells: int) -> None:
        """As the backend."""
        self.backend.allocate(sequence, cells)

    def copy(self, source: int, destination: int, cells: int) -> None:
        """As the backend."""
        self.backend.copy(source, destination, cells)

    def release(self, sequence: int) -> None:
        """As the backend."""
        self.backend.release(sequence)

    def move(self, sequence: int, source: Int32, destination: Int32) -> None:
        """As the backend."""
        self.backend.move(sequence, source, destination)
