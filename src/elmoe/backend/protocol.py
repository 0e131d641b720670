"""The seam between the engine and what computes: one forward pass over rows, a KV cache, no policy.

The engine decides which tokens form the rows of a pass, where their keys and values go, and which experts are in
the pool; a backend computes logits and routing and says what it read. Every backend equals `backend/reference.py`
exactly in integers and within a stated tolerance in floats, and its result for a row is bit-identical whatever the
other rows of the pass are (design, decision 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from elmoe.backend.tiers import Keep, Tiers
from elmoe.errors import ConfigError
from elmoe.models.footprint import Footprint
from elmoe.models.shape import ModelShape
from elmoe.quant.bitnested import MAX_DRAFT_BITS, MIN_DRAFT_BITS, STORED_DRAFT_BITS, Float32, Treatment

Int32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DraftQuality:
    """How a draft pass degrades the target along the bit axis, and how many experts a token uses.

    The expert axis (which experts) is the pool given to `Backend.forward`.
    """

    bits: int = STORED_DRAFT_BITS
    """Of every weight that the draft reads: 2 to 7, or 8 for the expert axis alone."""
    treatment: Treatment = Treatment.AUGMENT
    """How a value is made of these bits; others than augmentation on the reference backend only."""
    experts_per_tok: int | None = None
    """At most the model's own; None means the model's own."""

    def __post_init__(self) -> None:
        if self.bits != 8 and not MIN_DRAFT_BITS <= self.bits <= MAX_DRAFT_BITS:
            raise ConfigError(
                f"draft bits must be {MIN_DRAFT_BITS} to {MAX_DRAFT_BITS}, or 8 for undegraded weights, not {self.bits}"
            )
        if self.experts_per_tok is not None and self.experts_per_tok < 1:
            raise ConfigError(f"draft experts per token must be at least 1, not {self.experts_per_tok}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"bits": self.bits, "treatment": self.treatment.value, "experts_per_tok": self.experts_per_tok}


@dataclass(frozen=True)
class Rows:
    """The R rows of one forward pass. Rows of one sequence are adjacent.

    A row writes its key and value to `cell` of its sequence's cache and then attends to cells ``0..prefix-1``,
    which hold positions ``0..prefix-1``, followed by the cells of its `path`, which hold positions ``prefix``,
    ``prefix+1``, ...: its tree ancestors and itself. A plain decode row is ``cell = prefix - 1 = position`` with
    an empty path; so is every row of a prefill chunk.
    """

    tokens: Int32
    """[R] token ids."""
    sequences: Int32
    """[R] which KV cache each row belongs to."""
    positions: Int32
    """[R] rotary position."""
    cells: Int32
    """[R] KV cell that the row writes."""
    prefix: Int32
    """[R] committed cells that the row sees."""
    path: Int32
    """[R, P] further cells in position order, padded with -1 at the end."""
    logits: Int32
    """[Q] rows whose logits are wanted."""
    best: int = 0
    """0: full logits of the wanted rows; K > 0: only their K best and the log of their normaliser."""

    @property
    def count(self) -> int:
        """R."""
        return len(self.tokens)


@dataclass
class Traffic:
    """Bytes that a pass read, by tier. Weights and KV apart."""

    fast_bytes: int = 0
    """Weights read from the fast tier: dense weights, MSB planes of pool experts."""
    slow_bytes: int = 0
    """Weights read from the slow tier: LSB planes of pool experts, both planes of the others."""
    kv_bytes: int = 0
    """Keys and values read."""


@dataclass(frozen=True)
class BestLogits:
    """The K best logits of the Q wanted rows, and what makes probabilities of them."""

    tokens: Int32
    """[Q, K] best first, ties to the lower token; K is `Rows.best`, at most the vocabulary."""
    logits: Float32
    """[Q, K]."""
    log_total: Float32
    """[Q] log(sum(exp(logits))) over the vocabulary, in an order that depends on the vocabulary alone."""


@dataclass(frozen=True)
class ForwardResult:
    """What a pass computed. L counts MoE blocks, E experts per block, A experts per token."""

    logits: Float32
    """[Q, V] of the rows in `Rows.logits`; [0, V] where only the best were wanted."""
    experts: npt.NDArray[np.int16]
    """[R, L, A] the model's own choice for every row, best first, before any restriction to the pool."""
    read: Bool
    """[L, E] distinct experts whose weights the pass read (after the restriction)."""
    traffic: Traffic = field(default_factory=Traffic)
    best: BestLogits | None = None
    """Where `Rows.best` is above 0."""


class Backend(Protocol):
    """What the engine calls."""

    shape: ModelShape
    footprint: Footprint

    @property
    def tiers(self) -> Tiers | None:
        """None: all weights are in memory, and tiers are an account only."""

    def allocate(self, sequence: int, cells: int) -> None:
        """Give `sequence` a KV cache of `cells` cells; replaces one that it had."""

    def release(self, sequence: int) -> None:
        """Drop the KV cache of `sequence`."""

    def move(self, sequence: int, source: Int32, destination: Int32) -> None:
        """Copy KV cells ``source[i] -> destination[i]`` inside one sequence, as if all at once."""

    def copy(self, source: int, destination: int, cells: int) -> None:
        """Copy the first `cells` KV cells of one sequence to those of another."""

    def forward(
        self, rows: Rows, pool: Bool | None = None, draft: DraftQuality | None = None, keep: Keep | None = None
    ) -> ForwardResult:
        """Run the model over `rows`.

        pool: bool [L, E], the experts whose MSB planes are in the fast tier; None means all. With `draft`, routing
        is restricted to it; without, it only decides which tier the bytes are counted on. draft: None computes
        the target. keep: what the pass should leave in the fast tier, for a backend with tiers. Raises ExpertReadError.
        """
