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
        for name, least in (("width", 1), ("depth", 0), ("verify", 1), ("tau", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"speculation {name} must be at least {least}, not {getattr(self, name)}")

    def depth_for(self, batch: int) -> int:
        """Draft levels for a step over `batch` sequences; 0 is plain decoding."""
        speculate = self.mode is Mode.SD or (self.mode is Mode.AUTO and batch >= self.tau)
        return self.depth if speculate else 0
