"""What is timed: contexts of random token ids, then decode steps of random ids; the same ones for every arm.

Random ids make no arm's work depend on what another one generated. Knows nothing about who is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from elmoe.errors import ConfigError
from elmoe.models.shape import ModelShape

MAX_BATCH = 256


@dataclass(frozen=True)
class Decoding:
    """B sequences of C tokens each, and N steps that add one token to each."""

    contexts: list[list[int]]
    """[B][C]."""
    steps: list[list[int]]
    """[N][B]."""

    @property
    def batch(self) -> int:
        """B."""
        return len(self.contexts)

    @property
    def cells(self) -> int:
        """Tokens of a sequence at the end."""
        return len(self.contexts[0]) + len(self.steps)


@dataclass(frozen=True)
class RacePlan:
    """The settings of a benchmark."""

    batches: tuple[int, ...] = (1, 4, 8, 16)
    prefill: int = 128
    """Tokens of the prompt whose prefill is timed."""
    steps: int = 32
    """Decode steps timed per arm, batch and round; their median counts."""
    rounds: int = 5
    """Turns of all arms; the median over them counts."""
    context: int = 32
    """Tokens of a sequence before the first timed step."""
    seed: int = 0

    def __post_init__(self) -> None:
        for batch in self.batches:
            if not 1 <= batch <= MAX_BATCH:
                raise ConfigError(f"batch must be 1 to {MAX_BATCH}, not {batch}")
        if not self.batches or len(set(self.batches)) < len(self.batches):
            raise ConfigError("give each batch once, for example --batch 1,4,8,16")
        for name in ("prefill", "steps", "rounds", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {self.seed}")

    def check_fit(self, shape: ModelShape) -> None:
        """ConfigError when a sequence would outgrow the model's context."""
        if self.context + self.steps > shape.max_context:
            room = shape.max_context - self.context
            raise ConfigError(
                f"{self.steps} steps after {self.context} tokens exceed the model's context; at most {room}"
            )
        if self.prefill > shape.max_context - 2:  # an engine adds the first decode step's input and a token
            raise ConfigError(
                f"a prefill of {self.prefill} exceeds the model's context; at most {shape.max_context - 2}"
            )

    def decoding(self, shape: ModelShape, batch: int, turn: int) -> Decoding:
        """The tokens of one round at one batch."""
        rng = np.random.default_rng([self.seed, turn, batch])
        contexts = rng.integers(shape.vocab, size=(batch, self.context)).tolist()
        return Decoding(contexts, rng.integers(shape.vocab, size=(self.steps, batch)).tolist())

    def prompt(self, shape: ModelShape, turn: int) -> list[int]:
        """The prompt of one round's prefill."""
        rng = np.random.default_rng([self.seed, turn, 0])
        return [int(token) for token in rng.integers(shape.vocab, size=self.prefill)]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: getattr(self, name) for name in ("prefill", "steps", "rounds", "context", "seed")} | {
            "batches": list(self.batches)
        }
