"""Two backends that are asked the same and must answer the same, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np
import pytest

from backend.passes import same_bits
from elmoe.backend.cpu.backend import CpuBackend
from elmoe.backend.protocol import Backend, Bool, DraftQuality, ForwardResult, Rows
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.folder import Checkpoint

Tell = Callable[[Backend], object]
"""Asks a backend for some passes, always the same ones."""


@dataclass
class Recorded:
    """A backend whose answers are kept."""

    backend: Backend
    answers: list[ForwardResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shape, self.footprint = self.backend.shape, self.backend.footprint
        self.allocate, self.release, self.move = self.backend.allocate, self.backend.release, self.backend.move

    def forward(self, rows: Rows, pool: Bool | None = None, draft: DraftQuality | None = None) -> ForwardResult:
        self.answers.append(self.backend.forward(rows, pool, draft))
        return self.answers[-1]


@dataclass
class Checked:
    """A backend whose answers must be those of another one, in this order."""

    backend: Backend
    answers: list[ForwardResult]
    passes: int = 0

    def __post_init__(self) -> None:
        self.shape, self.footprint = self.backend.shape, self.backend.footprint
        self.allocate, self.release, self.move = self.backend.allocate, self.backend.release, self.backend.move

    def forward(self, rows: Rows, pool: Bool | None = None, draft: DraftQuality | None = None) -> ForwardResult:
        answer = self.backend.forward(rows, pool, draft)
        assert_same(answer, self.answers[self.passes])
        self.passes += 1
        return answer


@dataclass
class Oracle:
    """What the reference backend answered: asked once, however many instruction-set paths are compared with it."""

    _references: dict[int, ReferenceBackend] = field(default_factory=dict)
    _answers: dict[Hashable, list[ForwardResult]] = field(default_factory=dict)

    def answers(self, key: Hashable, checkpoint: Checkpoint, tell: Tell) -> list[ForwardResult]:
        """Of `tell` on a model; `key` names both."""
        if key not in self._answers:
            # kept for their decoded weights; a reference keeps its checkpoint, so the id stays its own
            reference = Recorded(self._references.setdefault(id(checkpoint), ReferenceBackend(checkpoint)))
            tell(reference)
            self._answers[key] = reference.answers
        return self._answers[key]


def assert_same(got: ForwardResult, want: ForwardResult) -> None:
    """Everything in equal bits; the normaliser, whose order of adding is a backend's own, closely."""
    for name in ("experts", "read", "logits"):
        assert same_bits(getattr(got, name), getattr(want, name)), name
    assert got.traffic == want.traffic
    assert (got.best is None) == (want.best is None)
    if got.best is not None and want.best is not None:
        assert got.best.tokens.tolist() == want.best.tokens.tolist()
        assert same_bits(got.best.logits, want.best.logits)
        assert got.best.log_total.shape == want.best.log_total.shape
        np.testing.assert_allclose(got.best.log_total, want.best.log_total, rtol=1e-6, atol=1e-5)


def open_on(isa: str, checkpoint: Checkpoint) -> CpuBackend:
    """A CPU backend on one instruction-set path, which it keeps."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ELMOE_ISA", isa)
        backend = CpuBackend(checkpoint)
    assert backend.isa == isa
    return backend
