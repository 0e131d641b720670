"""A recorded run of the engine on a host: caches replayed over its routing, its passes timed one by one.

The trace says what was decoded: which experts every row chose, how large trees were, what was accepted. All of that is
the model's and does not depend on the machine, so any host, budget and cache policy can be asked about. Draft passes
are taken as recorded, too: the experts that their pool had then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError, TraceError
from elmoe.quant.bitnested import STORED_DRAFT_BITS
from elmoe.sim.host.cache import Budget, Slots, misses, slots
from elmoe.sim.host.decode import DECODE, DRAFT, VERIFY, Decoded, StepLoad, decode
from elmoe.sim.host.passes import PassClock, PassLoad
from elmoe.sim.host.spec import Host
from elmoe.sim.model import SimModel
from elmoe.trace.parquet import Trace
from elmoe.trace.replay import Accesses, recorded_accesses, regrouped, request_streams
from elmoe.trace.schema import PassKind, PassRecord, routing_counts

Bool = npt.NDArray[np.bool_]
READING = (PassKind.PREFILL, PassKind.AR, PassKind.VERIFY)
"""Passes that go through the cache."""
TARGET = {PassKind.AR: DECODE, PassKind.VERIFY: VERIFY}


@dataclass(frozen=True)
class TraceRun:
    """A prediction from a trace."""

    decoded: Decoded
    mode: str
    batch: int
    """Sequences decoded together at most."""
    context: int
    """Mean position of a decoded token."""
    held: Slots
    msb_miss_rate: float
    """Of the distinct experts of target passes, those without their MSB record; likewise LSB."""
    lsb_miss_rate: float


def trace_mode(trace: Trace) -> str:
    """Sd where the trace has verify passes, else ar."""
    return "sd" if any(record.kind is PassKind.VERIFY for record in trace.passes()) else "ar"


def run_trace(
    host: Host, model: SimModel, trace: Trace, budget: Budget, mode: str | None = None, rounds_before: int = 0
) -> TraceRun:
    """Predict the recorded run on `host` with `budget`.

    mode: as recorded unless given; ``ar`` of a run that drafted decodes the same tokens plainly, at the same batch.
    rounds_before: how often the caches have seen the same run already; 0 begins with empty ones.
    Raises ConfigError for ``sd`` without drafts in the trace and for drafts of other than the stored width,
    CapacityError where the budget is too small, TraceError where the file is broken or has no decode passes.
    """
    recorded = trace_mode(trace)
    mode = mode or recorded
    if mode == "sd" and recorded != "sd":
        raise ConfigError(f"{trace.path} was recorded without drafts; record one with elmoe trace --mode sd")
    if mode == "sd":
        _check_drafts(trace)
    batch, context = _sizes(trace)
    clock = PassClock(host, model)
    if mode == recorded:
        accesses = recorded_accesses(trace, READING)
        held = slots(host, model, budget, np.tile(_cells(trace), rounds_before + 1), _largest_pass(trace))
        missing = _Counted(_last_round(accesses, held, budget, rounds_before))
        steps = _recorded_steps(trace, missing)
    else:
        accesses = regrouped(request_streams(trace).values(), trace.shape.experts, batch)
        cells = np.full((rounds_before + 1) * len(accesses.reads), batch * context)
        held = slots(host, model, budget, cells, _largest_pass(trace))
        missing = _Counted(_last_round(accesses, held, budget, rounds_before))
        steps = _plain_steps(trace, accesses, missing, batch, context)
    decoded = decode(clock, steps)
    if not decoded.steps:
        raise TraceError(f"{trace.path} has no decode passes; record a longer trace")
    return TraceRun(decoded, mode, batch, context, held, missing.msb_rate, missing.lsb_rate)


def _last_round(accesses: Accesses, held: Slots, budget: Budget, rounds_before: int) -> Iterator[tuple[Bool, Bool]]:
    """Misses of the passes of the last of several equal rounds."""
    count = len(accesses.reads)
    if not count or not rounds_before:
        return misses(accesses, held, budget)
    rounds = rounds_before + 1
    span = int(accesses.steps[-1] - accesses.steps[0]) + 1
    repeated = Accesses(
        reads=np.concatenate([accesses.reads] * rounds),
        hints=np.concatenate([accesses.hints] * rounds),
        seen=np.concatenate([accesses.seen] * rounds),
        steps=np.concatenate([accesses.steps + number * span for number in range(rounds)]),
    )
    return islice(misses(repeated, held, budget), rounds_before * count, None)


class _Counted:
    """Passes the misses on, and keeps count of those of decode passes."""

    def __init__(self, found: Iterator[tuple[Bool, Bool]]) -> None:
        self._found = found
        self._reads = self._msb = self._lsb = 0

    def take(self, reads: int | None) -> tuple[Bool, Bool]:
        """The misses of the next pass, which reads that many experts; None: it is not counted."""
        msb, lsb = next(self._found)
        if reads is not None:
            self._reads += reads
            self._msb += int(np.count_nonzero(msb))
            self._lsb += int(np.count_nonzero(lsb))
        return msb, lsb

    @property
    def msb_rate(self) -> float:
        return self._msb / max(self._reads, 1)

    @property
    def lsb_rate(self) -> float:
        return self._lsb / max(self._reads, 1)


def _recorded_steps(trace: Trace, missing: _Counted) -> Iterator[StepLoad]:
    for _, records in groupby(trace.passes(), key=lambda record: record.step):
        passes, tokens = list[tuple[str, PassLoad]](), 0
        for record in records:
            if record.kind is PassKind.PREFILL:
                missing.take(None)
            elif record.kind is PassKind.DRAFT:
                passes.append((DRAFT, _draft_load(trace, record)))
            else:
                passes.append((TARGET[record.kind], _target_load(trace, record, missing)))
                tokens += int(np.count_nonzero(record.kept))
        if passes:
            yield StepLoad(tuple(passes), tokens)


def _target_load(trace: Trace, record: PassRecord, missing: _Counted) -> PassLoad:
    expert_rows = routing_counts(record.experts, trace.shape.experts).astype(np.float64)
    msb, lsb = missing.take(int(np.count_nonzero(expert_rows)))
    return PassLoad(*_attended(record), expert_rows, msb, lsb)


def _draft_load(trace: Trace, record: PassRecord) -> PassLoad:
    """Its record names the experts that it would have liked; of those that it used only how many there were."""
    speculation = trace.settings.get("speculation") or {}
    chosen = (speculation.get("quality") or {}).get("experts_per_tok") or trace.shape.experts_per_tok
    used = record.distinct_experts.astype(np.float64)[:, None]
    mean_rows = len(record.tokens) * chosen / np.maximum(used, 1.0)
    expert_rows = np.where(np.arange(trace.shape.experts) < used, mean_rows, 0.0)
    return PassLoad(*_attended(record), expert_rows, is_draft=True)


def _plain_steps(trace: Trace, accesses: Accesses, missing: _Counted, batch: int, context: int) -> Iterator[StepLoad]:
    """One pass per step over one token of each of `batch` sequences, rows spread evenly over its experts."""
    for read in accesses.reads:
        distinct = read.sum(axis=1, keepdims=True)
        expert_rows = np.where(read, batch * trace.shape.experts_per_tok / np.maximum(distinct, 1), 0.0)
        msb, lsb = missing.take(int(distinct.sum()))
        cells = float(batch * context)
        yield StepLoad(((DECODE, PassLoad(batch, cells, cells, expert_rows, msb, lsb)),), batch)


def _attended(record: PassRecord) -> tuple[int, float, float]:
    """Rows; cells that they see, together and without those that they share."""
    _, first, count = np.unique(record.sequences, return_index=True, return_counts=True)
    lowest = np.minimum.reduceat(record.positions, np.sort(first))
    shared = lowest.sum() + count.sum()
    return len(record.tokens), float(record.positions.sum() + len(record.positions)), float(shared)


def _sizes(trace: Trace) -> tuple[int, int]:
    """(largest batch, mean position) of the decode passes."""
    batch, positions, rows = 0, 0, 0
    for record in trace.passes():
        if record.kind in TARGET:
            batch = max(batch, len(np.unique(record.sequences)))
            positions += int(record.positions.sum())
            rows += len(record.positions)
    if not rows:
        raise TraceError(f"{trace.path} has no decode passes; record a longer trace")
    return batch, max(1, round(positions / rows))


def _cells(trace: Trace) -> npt.NDArray[np.int64]:
    """KV cells in use [P] in each pass that goes through the cache; while prompts are read, what follows it needs."""
    found: list[int] = []
    pending = 0
    for record in trace.passes():
        if record.kind is PassKind.PREFILL:
            pending += 1
        elif record.kind in TARGET:
            _, first = np.unique(record.sequences, return_index=True)
            cells = int((np.maximum.reduceat(record.positions, np.sort(first)) + 1).sum())
            found += [cells] * (pending + 1)
            pending = 0
    return np.array(found + found[-1:] * pending, dtype=np.int64)


def _largest_pass(trace: Trace) -> tuple[int, int]:
    """Rows, and rows of logits, that the recorded engine allowed for; by its passes where its settings do not say."""
    settings = trace.settings
    verify = (settings.get("speculation") or {}).get("verify")
    batch, chunk = settings.get("max_batch"), settings.get("prefill_chunk")
    if isinstance(verify, int) and isinstance(batch, int) and isinstance(chunk, int):
        decoded = batch * (1 + verify)
        return max(chunk, decoded), decoded
    most = max((len(record.tokens) for record in trace.passes()), default=0)
    return most, most


def _check_drafts(trace: Trace) -> None:
    quality = (trace.settings.get("speculation") or {}).get("quality") or {}
    bits = quality.get("bits", STORED_DRAFT_BITS)
    if bits != STORED_DRAFT_BITS:
        raise ConfigError(
            f"{trace.path} was recorded with drafts of {bits} bits; hosts are modelled with the stored "
            f"{STORED_DRAFT_BITS}: record it with --draft-bits {STORED_DRAFT_BITS}"
        )
