"""What elmoe counts and records: the definitions, once, for results, traces, the server and the simulator.

Knows nothing about files (`trace/parquet.py`) or how passes come about (`engine/`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1


class PassKind(Enum):
    """Kinds of forward passes."""

    PREFILL = "prefill"
    """Target over prompt tokens."""
    AR = "ar"
    """Target over the last token of each sequence."""
    DRAFT = "draft"
    """Draft over the frontier of each sequence's tree."""
    VERIFY = "verify"
    """Target over the last token and the draft tree of each sequence."""


@dataclass
class Acceptance:
    """Token counters of one request, or summed over requests.

    Every emitted token comes from an AR step or a verify step of its sequence:
    ``emitted = ar_steps + verify_steps + accepted - cut``.
    """

    ar_steps: int = 0
    """Plain steps of a sequence (one token each)."""
    verify_steps: int = 0
    """Verify passes that a sequence took part in."""
    drafted: int = 0
    """Draft tokens sent to verification (tree nodes but the root)."""
    levels: int = 0
    """Depth of the verified trees, summed: the most that could have been accepted."""
    tested: int = 0
    """Draft positions that the target ruled on: accepted ones, and the one at which a path ended."""
    accepted: int = 0
    """Draft tokens accepted. The bonus token of each verify step is not among them."""
    emitted: int = 0
    """Tokens given to the user: accepted and bonus tokens and AR tokens, less what a stop cut off."""

    @property
    def acceptance_rate(self) -> float:
        """Accepted / tested: the chance that a draft position holds, given that all before it held."""
        return self.accepted / self.tested if self.tested else 0.0

    @property
    def level_acceptance(self) -> float:
        """Accepted / levels: the paper's alpha, with ``mean_accepted_length = alpha * depth``."""
        return self.accepted / self.levels if self.levels else 0.0

    @property
    def mean_accepted_length(self) -> float:
        """Accepted / verify_steps, without the bonus token."""
        return self.accepted / self.verify_steps if self.verify_steps else 0.0

    @property
    def coverage(self) -> float:
        """Share of decode steps that drafted."""
        steps = self.ar_steps + self.verify_steps
        return self.verify_steps / steps if steps else 0.0

    def add(self, other: Acceptance) -> None:
        """Accumulate."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, Any]:
        """Counters and ratios, for JSON."""
        return asdict(self) | {
            "acceptance_rate": self.acceptance_rate,
            "level_acceptance": self.level_acceptance,
            "mean_accepted_length": self.mean_accepted_length,
            "coverage": self.coverage,
        }


@dataclass
class PassTotals:
    """Sums over the forward passes of one kind."""

    passes: int = 0
    rows: int = 0
    distinct_experts: int = 0
    """Experts whose weights were read, summed over passes and MoE layers; each once per pass."""
    fast_bytes_read: int = 0
    slow_bytes_read: int = 0
    kv_bytes_read: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class PassRecord:
    """One forward pass as it is recorded in a trace. R rows, L MoE layers, E experts, A experts per token."""

    step: int
    """Engine step, from 0; a draft and the verify pass that follows it share a step."""
    kind: PassKind
    depth: int
    """Tree level of a draft pass, from 0; 0 otherwise."""
    sequences: npt.NDArray[np.int32]
    """[R] request number."""
    positions: npt.NDArray[np.int32]
    """[R]."""
    tokens: npt.NDArray[np.int32]
    """[R] input token of each row."""
    kept: npt.NDArray[np.bool_]
    """[R] the row became part of its sequence: prefill and AR rows, roots and accepted nodes of a verify pass."""
    experts: npt.NDArray[np.int16]
    """[R, L, A] the model's own routing, before any restriction to the pool."""
    pool: npt.NDArray[np.bool_]
    """[L, E] experts whose MSB planes were in the fast tier during the pass."""
    distinct_experts: npt.NDArray[np.int32]
    """[L] experts read."""
    fast_bytes: int
    slow_bytes: int
    kv_bytes: int
    seconds: float


def routing_counts(experts: npt.NDArray[np.int16], num_experts: int) -> npt.NDArray[np.int64]:
    """How often each expert was chosen: routing decisions [R, L, A] -> [L, E]."""
    layers = experts.shape[1]
    numbered = experts + np.arange(layers, dtype=np.int64)[:, None] * num_experts  # [R, L, A]
    return np.bincount(numbered.ravel(), minlength=layers * num_experts).reshape(layers, num_experts)


class Recorder(Protocol):
    """Takes pass records while the engine runs."""

    def record(self, record: PassRecord) -> None:
        """Keep one pass."""


@dataclass
class RunStats:
    """Everything counted in one engine's life, or between two marks."""

    acceptance: Acceptance = field(default_factory=Acceptance)
    passes: dict[PassKind, PassTotals] = field(default_factory=lambda: {kind: PassTotals() for kind in PassKind})
    prompt_tokens: int = 0
    prefill_seconds: float = 0.0
    """Wall time of prefill, the engine's own work included; likewise decode."""
    decode_seconds: float = 0.0
    steps_by_depth: dict[int, int] = field(default_factory=dict)
    """Decode steps by the depth of their deepest draft tree; 0 is plain decoding."""

    def count_step(self, depth: int) -> None:
        """Add one decode step."""
        self.steps_by_depth[depth] = self.steps_by_depth.get(depth, 0) + 1

    def count(self, record: PassRecord) -> None:
        """Add one pass."""
        totals = self.passes[record.kind]
        totals.passes += 1
        totals.rows += len(record.tokens)
        totals.distinct_experts += int(record.distinct_experts.sum())
        totals.fast_bytes_read += record.fast_bytes
        totals.slow_bytes_read += record.slow_bytes
        totals.kv_bytes_read += record.kv_bytes
        totals.seconds += record.seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Top-level expert and byte counts cover decoding (AR, draft, verify), not prefill;
        `distinct_experts` counts those of target passes (AR and verify).
        """
        decode = [self.passes[kind] for kind in (PassKind.AR, PassKind.DRAFT, PassKind.VERIFY)]
        target = [self.passes[kind] for kind in (PassKind.AR, PassKind.VERIFY)]
        prefilled = self.passes[PassKind.PREFILL].rows
        return self.acceptance.as_dict() | {
            "prefill_tok_s": prefilled / self.prefill_seconds if prefilled else 0.0,
            "decode_tok_s": self.acceptance.emitted / self.decode_seconds if self.decode_seconds else 0.0,
            "prompt_tokens": self.prompt_tokens,
            "distinct_experts": sum(totals.distinct_experts for totals in target),
            "target_passes": sum(totals.passes for totals in target),
            "fast_bytes_read": sum(totals.fast_bytes_read for totals in decode),
            "slow_bytes_read": sum(totals.slow_bytes_read for totals in decode),
            "kv_bytes_read": sum(totals.kv_bytes_read for totals in decode),
            "steps_by_depth": {str(depth): count for depth, count in sorted(self.steps_by_depth.items())},
            "passes": {kind.value: asdict(totals) for kind, totals in self.passes.items()},
        }
