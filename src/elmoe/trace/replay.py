"""Exact replay of expert caches over recorded routing: LRU, LFU, Belady's optimum, and the engine's hotness rule.

Every MoE layer has a cache of C experts of its own, each of unit size, empty at first. A pass reads its distinct
experts at once: hits are counted against what the cache held *before* the pass. Afterwards it keeps C at most of what
it held and what was just read (anything else would cost traffic of its own): those that the policy ranks highest. Where
order matters inside a pass, experts were read in ascending number, so the highest number is the latest. A pass may read
more experts than the cache holds.

Knows nothing about bytes or time, nor how a pass came about. Axes: P passes, L MoE layers, E experts, A experts per
token, N capacities.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError
from elmoe.trace.parquet import Trace
from elmoe.trace.schema import PassKind, PassRecord, routing_counts

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Counts = npt.NDArray[np.uint16]
Stream = npt.NDArray[np.int16]
"""[T, L, A] routing of one request's tokens, in order."""

TARGET = (PassKind.AR, PassKind.VERIFY)
DECAY = 0.8
"""Share of the hotness that survives an engine step: the engine's default."""
AVERAGED = (0.8, 0.98)
"""Shares of the two averages of `Policy.BENEFIT` that survive a pass: the engine's."""


class Policy(Enum):
    """Which experts a cache keeps."""

    LRU = "lru"
    """The most recently read."""
    LFU = "lfu"
    """Those read in most passes since the start (counts outlive eviction), of equals the most recently read; an expert
    colder than all that are cached does not enter."""
    BELADY = "belady"
    """Those needed again soonest: no policy misses less (L. A. Belady, IBM Systems Journal 5(2), 1966)."""
    HOT = "hot"
    """The engine's pool (paper, Algorithm 1): the C hottest are chosen before a pass from decayed counts of routing
    decisions; of these, what the pass reads enters, and the coldest leave. Ties go to the lower number. Unlike the
    engine's, this pool starts empty."""
    BENEFIT = "benefit"
    """Those that passes will most probably read, by two averages of how often they did, one quick and one slow: what
    the engine keeps of a model that is larger than its fast memory. An expert enters in place of one of less chance."""


@dataclass(frozen=True)
class Accesses:
    """What passes read, and what the hotness rule saw."""

    reads: Bool
    """[P, L, E] the pass reads the expert."""
    hints: Counts
    """[P, L, E] routing decisions that became known between the last pass and this one: drafts and prompts."""
    seen: Counts
    """[P, L, E] routing decisions of the pass itself that nothing announced: tokens that were not drafted."""
    steps: Int64
    """[P] engine step; the hotness fades once per step."""

    @staticmethod
    def of(reads: Bool) -> Accesses:
        """Plain decoding, one step per pass; each read [P, L, E] counts as one routing decision."""
        return Accesses(
            reads, np.broadcast_to(np.uint16(0), reads.shape), reads.astype(np.uint16), np.arange(len(reads))
        )


@dataclass(frozen=True)
class Replay:
    """Hits and misses per layer, at one capacity ([L]) or several ([N, L])."""

    hits: Int64
    misses: Int64

    @property
    def miss_rate(self) -> Float64:
        """Misses per read over all layers, [] or [N]; 0 where nothing was read."""
        return _rate(self.hits.sum(axis=-1), self.misses.sum(axis=-1))

    @property
    def layer_miss_rate(self) -> Float64:
        """Misses per read, [L] or [N, L]; 0 where nothing was read."""
        return _rate(self.hits, self.misses)


def replay(accesses: Accesses, capacity: int, policy: Policy, *, decay: float = DECAY, warm_up: int = 0) -> Replay:
    """One cache of `capacity` experts per layer; see `miss_curve`."""
    curve = miss_curve(accesses, policy, [capacity], decay=decay, warm_up=warm_up)
    return Replay(curve.hits[0], curve.misses[0])


def miss_curve(
    accesses: Accesses,
    policy: Policy,
    capacities: Sequence[int] | Int64,
    *,
    decay: float = DECAY,
    warm_up: int = 0,
) -> Replay:
    """Hits and misses [N, L] by capacity. LRU costs the same for one capacity and for all of them.

    decay: share of the hotness that survives a step (`Policy.HOT` only). warm_up: passes that fill the caches and are
    not counted. Raises ConfigError for a negative capacity.
    """
    sizes = np.asarray(capacities, dtype=np.int64)
    if sizes.min(initial=0) < 0:
        raise ConfigError(f"an expert cache of {sizes.min()} per layer is impossible; give 0 or more")
    if policy is Policy.LRU:
        hits = _lru_hits(accesses.reads, sizes, warm_up)
    else:
        each = np.broadcast_to(sizes, (len(accesses.reads), len(sizes)))
        held = _held(accesses.reads, _states(accesses, policy, each, decay), each)
        hits = _hits(accesses.reads, held, len(sizes), warm_up)
    reads = accesses.reads[warm_up:].sum(axis=(0, 2))  # [L]
    return Replay(hits, reads - hits)


def residents(accesses: Accesses, capacities: int | Int64, policy: Policy, *, decay: float = DECAY) -> Iterator[Bool]:
    """What the caches hold before each pass: masks [L, E], at `capacities` experts per layer, one for all or [P].

    Where the capacity shrinks (the KV cache grows), the lowest ranked leave before the pass. Raises ConfigError for a
    negative capacity.
    """
    passes, *_ = accesses.reads.shape
    sizes = np.broadcast_to(np.asarray(capacities, dtype=np.int64), (passes,))
    if sizes.min(initial=0) < 0:
        raise ConfigError(f"an expert cache of {sizes.min()} per layer is impossible; give 0 or more")
    held = _held(accesses.reads, _states(accesses, policy, sizes[:, None], decay), sizes[:, None])
    return (resident[0] for resident in held)


# --- what was read ---


def recorded_accesses(trace: Trace, kinds: Iterable[PassKind] = TARGET) -> Accesses:
    """The distinct experts of each recorded pass of `kinds`, batch as recorded; target passes unless told otherwise.

    With prefill among the kinds `Policy.HOT` fades exactly as the engine does; without it, decisions over prompts
    count as fresh when decoding begins. Raises TraceError where the file is broken.
    """
    wanted, experts = frozenset(kinds), trace.shape.experts
    pending = np.zeros((len(trace.shape.moe_layers), experts), dtype=np.int64)
    reads, hints, seen, steps = list[Bool](), list[Counts](), list[Counts](), list[int]()
    for record in trace.passes():
        counts = routing_counts(record.experts, experts)
        own = routing_counts(record.experts[_unannounced(record)], experts)
        if record.kind in (PassKind.DRAFT, PassKind.PREFILL):
            pending += counts
        if record.kind in wanted:
            reads.append(counts > 0)
            hints.append(_counts(pending))
            seen.append(_counts(own))
            steps.append(record.step)
            pending[:] = 0
    if not reads:
        return Accesses.of(np.zeros((0, *pending.shape), dtype=np.bool_))
    return Accesses(np.stack(reads), np.stack(hints), np.stack(seen), np.array(steps, dtype=np.int64))


def request_streams(trace: Trace, *, prompts: bool = False) -> dict[int, Stream]:
    """Routing [T, L, A] of the decoded tokens of each request, in order of position; with `prompts` of those, too.

    Rejected draft tokens are left out. Raises TraceError where the file is broken.
    """
    wanted = (*TARGET, PassKind.PREFILL) if prompts else TARGET
    rows: dict[int, list[tuple[int, Stream]]] = {}
    for record in trace.passes():
        if record.kind in wanted:
            for row in np.flatnonzero(record.kept):
                stream = rows.setdefault(int(record.sequences[row]), [])
                stream.append((int(record.positions[row]), record.experts[row]))
    return {
        request: np.stack([experts for _, experts in sorted(stream, key=lambda item: item[0])])
        for request, stream in sorted(rows.items())
    }


def regrouped(streams: Iterable[Stream], experts: int, batch: int, tokens: int = 1) -> Accesses:
    """Passes over `tokens` consecutive tokens of each of `batch` requests, a finished one replaced by the next.

    Ends when fewer than `batch` requests are left, so every pass has the full batch: the same trace at any batch.
    """
    waiting, active, reads = iter(streams), list[Stream](), list[Bool]()
    while True:
        while len(active) < batch and (stream := next(waiting, None)) is not None:
            active.append(stream)
        if len(active) < batch:
            break
        rows = np.concatenate([stream[:tokens] for stream in active])
        reads.append(routing_counts(rows, experts) > 0)
        active = [stream[tokens:] for stream in active if len(stream) > tokens]
    if not reads:
        raise ConfigError(f"a batch of {batch} needs as many requests; the trace has {len(active)}")
    return Accesses.of(np.stack(reads))


def _counts(decisions: Int64) -> Counts:
    return np.minimum(decisions, np.iinfo(np.uint16).max).astype(np.uint16)  # prompts have no end


def _unannounced(record: PassRecord) -> Bool:
    """Rows [R] of a target pass whose sequence was not drafted for: they are alone in their sequence."""
    if record.kind not in TARGET:
        return np.zeros(len(record.sequences), dtype=np.bool_)
    _, of_row, rows = np.unique(record.sequences, return_inverse=True, return_counts=True)
    return rows[of_row] == 1


# --- policies: after each pass, a rank per expert and the experts that may enter ---

State = tuple[npt.NDArray[np.int64] | Float64, Bool]


def _states(accesses: Accesses, policy: Policy, capacities: Int64, decay: float) -> Iterator[State]:
    """capacities: [P, N]."""
    if policy is Policy.HOT:
        return _by_hotness(accesses, capacities, decay)
    ranks = {
        Policy.LRU: _by_recency,
        Policy.LFU: _by_frequency,
        Policy.BELADY: _by_next_read,
        Policy.BENEFIT: _by_chance,
    }
    return ranks[policy](accesses.reads)


def _by_chance(reads: Bool) -> Iterator[State]:
    """What a pass read counts as read from then on, while what it did not read still counts as before it."""
    _, layers, experts = reads.shape
    averages = np.zeros((len(AVERAGED), layers, experts))
    fading = np.array(AVERAGED)[:, None, None]
    for read in reads:
        after = averages + (1.0 - fading) * (read - averages)
        yield np.where(read, after, averages).mean(axis=0), read
        averages = after


def _by_recency(reads: Bool) -> Iterator[State]:
    _, layers, experts = reads.shape
    latest = np.zeros((layers, experts), dtype=np.int64)
    number = np.arange(experts)
    for index, read in enumerate(reads, start=1):
        latest[read] = index
        yield latest * experts + number, read


def _by_frequency(reads: Bool) -> Iterator[State]:
    passes, layers, experts = reads.shape
    count = np.zeros((layers, experts), dtype=np.int64)
    latest = np.zeros((layers, experts), dtype=np.int64)
    number = np.arange(experts)
    for index, read in enumerate(reads):
        count += read
        latest[read] = index
        yield (count * passes + latest) * experts + number, read


def _by_next_read(reads: Bool) -> Iterator[State]:
    passes, layers, experts = reads.shape
    pass_of, cell = np.nonzero(reads.reshape(passes, layers * experts))  # cell: (layer, expert)
    upcoming = np.full(len(cell), passes)
    by_cell = np.argsort(cell, kind="stable")
    again = cell[by_cell[:-1]] == cell[by_cell[1:]]
    upcoming[by_cell[:-1][again]] = pass_of[by_cell[1:][again]]
    first = np.searchsorted(pass_of, np.arange(passes + 1))
    rank = np.full(layers * experts, -passes)
    for index, read in enumerate(reads):
        now = slice(first[index], first[index + 1])
        rank[cell[now]] = -upcoming[now]
        yield rank.reshape(layers, experts).copy(), read


def _by_hotness(accesses: Accesses, capacities: Int64, decay: float) -> Iterator[State]:
    _, layers, experts = accesses.reads.shape
    hotness = np.zeros((layers, experts))
    faded = np.diff(accesses.steps, prepend=accesses.steps[:1])
    passes = zip(accesses.reads, accesses.hints, accesses.seen, faded, capacities, strict=True)
    for read, hints, seen, steps, sizes in passes:
        hotness *= decay**steps
        hotness += hints
        place = np.argsort(np.argsort(-hotness, axis=1, kind="stable"), axis=1)
        chosen = place < sizes[:, None, None]  # [N, L, E]
        hotness += seen
        yield np.where(chosen, hotness + hotness.max() + 1.0, hotness), chosen & read


def _held(reads: Bool, states: Iterator[State], capacities: Int64) -> Iterator[Bool]:
    """What caches of `capacities` [P, N] hold before each pass, [N, L, E]."""
    _, layers, experts = reads.shape
    resident = np.zeros((capacities.shape[1], layers, experts), dtype=np.bool_)
    before = capacities[:1]
    rank: npt.NDArray[np.int64] | Float64 = np.zeros((layers, experts))
    for sizes, (following, entering) in zip(capacities, states, strict=True):
        if (sizes < before).any():
            resident = _highest(resident, rank, sizes)
        yield resident
        rank, before = following, sizes
        resident = _highest(resident | entering, rank, sizes)


def _hits(reads: Bool, held: Iterator[Bool], capacities: int, warm_up: int) -> Int64:
    """Hits [N, L] of the passes after the first `warm_up`."""
    hits = np.zeros((capacities, reads.shape[1]), dtype=np.int64)
    for read, resident in zip(reads[warm_up:], islice(held, warm_up, None), strict=True):
        hits += np.count_nonzero(resident & read, axis=2)
    return hits


def _highest(among: Bool, rank: npt.NDArray[np.int64] | Float64, capacities: Int64) -> Bool:
    """Of `among` [N, L, E] the C of highest rank ([L, E] or [N, L, E]) per capacity and layer, ties to the lower."""
    order = np.argsort(-rank, axis=-1, kind="stable").reshape(-1, *rank.shape[-2:])
    ranked = np.take_along_axis(among, order, axis=2)
    ranked &= ranked.cumsum(axis=2) <= capacities[:, None, None]
    kept = np.empty_like(among)
    np.put_along_axis(kept, order, ranked, axis=2)
    return kept


def _lru_hits(reads: Bool, capacities: Int64, warm_up: int) -> Int64:
    """All capacities at once: a read hits where its depth in the stack of recency is below the capacity (Mattson,
    Gecsei, Slutz, Traiger, "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2), 1970).
    """
    _, layers, experts = reads.shape
    base = np.arange(layers)[:, None] * experts
    latest_first = -1 - np.arange(experts, dtype=np.int16)
    depths = np.arange(experts, dtype=np.int16)
    depth = np.tile(depths, (layers, 1))
    stack = base + depths  # flat (layer, expert), most recent first
    known = np.zeros((layers, experts), dtype=np.bool_)
    found = np.zeros((layers, experts), dtype=np.int64)  # hits by depth
    for index, read in enumerate(reads):
        if index >= warm_up:
            found += (read & known).ravel()[stack]
        known |= read
        stack = base + np.argsort(np.where(read, latest_first, depth), axis=1, kind="stable")
        depth.ravel()[stack] = depths
    within = np.concatenate([np.zeros((layers, 1), dtype=np.int64), found.cumsum(axis=1)], axis=1)
    return within[:, np.minimum(capacities, experts)].T


def _rate(hits: Int64, misses: Int64) -> Float64:
    return misses / np.maximum(hits + misses, 1)
