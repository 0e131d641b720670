"""Decides, step by step, between plain decoding and Elastic-SD, and the shape of the tree.

This first controller has fixed thresholds (the paper's: speculate from a batch of tau on). Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from elmoe.backend.protocol import DraftQuality
from elmoe.errors import ConfigError


class Mode(Enum):
    """How to decode."""

    AR = "ar"
    """One token per sequence and pass."""
    SD = "sd"
    """Elastic-SD at every step."""
    AUTO = "auto"
    """The controller decides."""


LIMITS = {"width": (1, 64), "depth": (0, 64), "verify": (1, 1024), "tau": (1, 1024)}
"""Beyond these a tree costs more than any acceptance gives back; they also bound the scratch cells of a sequence."""


@dataclass(frozen=True)
class Speculation:
    """Settings of Elastic-SD."""

    mode: Mode = Mode.AUTO
    width: int = 2
    """Nodes expanded per level, and candidates per node."""
    depth: int = 4
    """Draft passes per step."""
    verify: int = 8
    """Draft tokens verified per sequence and step."""
    quality: DraftQuality = field(default_factory=DraftQuality)
    tau: int = 4
    """With Mode.AUTO: the smallest batch that speculates."""

    def __post_init__(self) -> None:
        if not isinstance(self.mode, Mode):
            raise ConfigError(f"speculation mode must be Mode.AR, Mode.SD or Mode.AUTO, not {self.mode!r}")
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise ConfigError(f"speculation {name} must be a whole number from {least} to {most}, not {value}")

    def depth_for(self, batch: int) -> int:
        """Draft levels for a step over `batch` sequences; 0 is plain decoding."""
        speculate = self.mode is Mode.SD or (self.mode is Mode.AUTO and batch >= self.tau)
        return self.depth if speculate else 0
