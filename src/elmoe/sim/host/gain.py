"""What caching and Elastic-SD are worth on a host for a model whose routing is like a profile: no trace needed.

Tokens draw experts by the profile's popularity without replacement, and repeat each of their predecessor's with its
`inside_reuse` (`sim/locality.py`); caches see passes over such tokens, exactly as if an engine had made them. The same
seed gives the same tokens to all arms. Axes: T tokens, B sequences, L MoE layers, E experts, A experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError
from elmoe.sim.host.cache import Budget, Slots, misses, slots
from elmoe.sim.host.decode import DECODE, DRAFT, VERIFY, Decoded, StepLoad, decode
from elmoe.sim.host.passes import PassClock, PassLoad
from elmoe.sim.host.spec import Host
from elmoe.sim.locality import inclusion, unique_experts
from elmoe.sim.model import SimModel
from elmoe.sim.profile import Profile
from elmoe.trace.replay import Accesses
from elmoe.trace.schema import routing_counts

Floats = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int16]
"""[T, B, L, A]."""

LSB_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Splits of the budget that are tried where none is given."""


@dataclass(frozen=True)
class Shape:
    """How a batch is decoded."""

    batch: int
    context: int
    width: int = 0
    depth: int = 0
    """0: plain decoding."""
    verify: int = 0
    """Drafted tokens per sequence in a verify pass."""
    accepted_length: float = 0.0
    """Mean accepted draft tokens per sequence and step."""
    draft_experts: int | None = None
    """Experts per token in drafts; None: the model's."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.context < 1:
            raise ConfigError(f"batch and context must be at least 1, not {self.batch} and {self.context}")
        if self.depth and (self.width < 1 or self.verify < 1):
            raise ConfigError(f"a tree needs width and verify of at least 1, not {self.width} and {self.verify}")
        if not 0 <= self.accepted_length <= min(self.depth, self.verify):
            raise ConfigError(
                f"{self.accepted_length:g} accepted tokens of a tree of depth {self.depth} and {self.verify} verified "
                "nodes are impossible"
            )


@dataclass(frozen=True)
class Span:
    """How many steps are played: those that warm the caches up, and those that count."""

    warm_up: int = 48
    steps: int = 48
    seed: int = 0


@dataclass(frozen=True)
class Gain:
    """Three ways to decode the same tokens on the same budget."""

    streaming: Decoded
    """Plain decoding, nothing cached."""
    cached: Decoded
    """Plain decoding with whole experts cached."""
    elastic: Decoded
    """Elastic-SD, at the split of the budget that is fastest."""
    lsb_share: float
    """That split: LSB records held / MSB records held."""

    @property
    def cache_gain(self) -> float:
        """Tokens per second with the cache / without."""
        return self.cached.tokens_per_s / self.streaming.tokens_per_s

    @property
    def elastic_gain(self) -> float:
        """Tokens per second of Elastic-SD / of plain decoding with the cache."""
        return self.elastic.tokens_per_s / self.cached.tokens_per_s


def accepted_length(chance: float, depth: int, verify: int) -> float:
    """Mean accepted tokens of a chain in which each token holds with `chance`, given that all before it held."""
    return sum(chance**level for level in range(1, min(depth, verify) + 1))


def gain(host: Host, model: SimModel, profile: Profile, budget: Budget, shape: Shape, span: Span | None = None) -> Gain:
    """Predict all three arms. budget: its lsb_share is not used, all of LSB_SHARES are tried."""
    span = span or Span()
    plain = replace(shape, width=0, depth=0, verify=0, accepted_length=0.0)
    streaming = run_profile(host, model, profile, replace(budget, policy=None), plain, span)
    cached = run_profile(host, model, profile, replace(budget, lsb_share=1.0), plain, span)
    splits = {
        share: run_profile(host, model, profile, replace(budget, lsb_share=share), shape, span) for share in LSB_SHARES
    }
    best = max(splits, key=lambda share: splits[share].tokens_per_s)
    return Gain(streaming, cached, splits[best], best)


def run_profile(
    host: Host, model: SimModel, profile: Profile, budget: Budget, shape: Shape, span: Span | None = None
) -> Decoded:
    """Predict decoding as `shape` says, after the caches have warmed up."""
    span = span or Span()
    clock = PassClock(host, model)
    count = span.warm_up + span.steps
    rng = np.random.default_rng(span.seed)
    starts, emitted = _starts(shape, count, rng)
    longest = int(starts.max()) + shape.verify + 1
    tokens = draw_tokens(model, profile, shape.batch, longest, rng)
    counts = np.stack([_step_counts(tokens, starts[:, step], shape.verify + 1, model.experts) for step in range(count)])
    none = np.zeros_like(counts)
    hints, seen = (counts, none) if shape.depth else (none, counts)
    accesses = Accesses(counts > 0, hints.astype(np.uint16), seen.astype(np.uint16), np.arange(count))
    cells = shape.batch * (shape.context + max(shape.width * (shape.depth - 1), shape.verify) + 1)
    decoded = shape.batch * (shape.verify + 1)
    held = slots(host, model, budget, np.full(count, cells), (decoded, decoded))
    steps = _steps(model, profile, shape, held, counts, misses(accesses, held, budget), emitted)
    played = (load for number, load in enumerate(steps) if number >= span.warm_up)
    return decode(clock, played)


def draw_tokens(model: SimModel, profile: Profile, batch: int, tokens: int, rng: np.random.Generator) -> Tokens:
    """Routing of `tokens` consecutive tokens of each of `batch` sequences.

    Drawing without replacement by weight is taking the largest of log weight + Gumbel noise.
    """
    layers, experts, chosen = model.moe_layers, model.experts, model.experts_per_tok
    weights = np.log(np.maximum(profile.popularity, np.finfo(float).tiny))
    found = np.empty((tokens, batch, layers, chosen), dtype=np.int16)
    for token in range(tokens):
        scores = weights + rng.gumbel(size=(batch, layers, experts))
        if token:
            kept = rng.random((batch, layers, chosen)) < profile.inside_reuse
            before = found[token - 1].astype(np.int64)
            own = np.take_along_axis(scores, before, axis=2)
            np.put_along_axis(scores, before, np.where(kept, np.inf, own), axis=2)
        found[token] = np.argpartition(-scores, chosen - 1, axis=2)[..., :chosen]
    return found


def _starts(shape: Shape, count: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], Floats]:
    """Where each sequence stands at each step [B, count], and the tokens that each step emits [count]."""
    whole = int(shape.accepted_length)
    more = rng.random((shape.batch, count)) < shape.accepted_length - whole
    advance = 1 + whole + more
    starts = np.concatenate([np.zeros((shape.batch, 1), dtype=np.int64), advance.cumsum(axis=1)[:, :-1]], axis=1)
    return starts, advance.sum(axis=0).astype(np.float64)


def _step_counts(tokens: Tokens, starts: npt.NDArray[np.int64], rows: int, experts: int) -> npt.NDArray[np.int64]:
    """Routing decisions [L, E] of `rows` consecutive tokens of every sequence."""
    chosen = tokens[starts[:, None] + np.arange(rows), np.arange(len(starts))[:, None]]  # [B, rows, L, A]
    return routing_counts(chosen.reshape(-1, *chosen.shape[2:]), experts)


def _steps(
    model: SimModel,
    profile: Profile,
    shape: Shape,
    held: Slots,
    counts: npt.NDArray[np.int64],
    missing: Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]],
    emitted: Floats,
) -> Iterator[StepLoad]:
    rows = shape.verify + 1
    name = VERIFY if shape.depth else DECODE
    cells = float(shape.batch * shape.context)
    pool = int(np.clip(held.msb[0], model.experts_per_tok, model.experts))
    drafts = tuple(
        (DRAFT, _draft_load(model, profile, shape, pool, 1 if level == 0 else shape.width))
        for level in range(shape.depth)
    )
    for read, (msb, lsb), tokens in zip(counts, missing, emitted, strict=True):
        load = PassLoad(shape.batch * rows, cells * rows, cells, read.astype(np.float64), msb, lsb)
        yield StepLoad((*drafts, (name, load)), float(tokens))


def _draft_load(model: SimModel, profile: Profile, shape: Shape, pool: int, width: int) -> PassLoad:
    """A draft pass of `width` rows per sequence over the `pool` hottest experts."""
    chosen = shape.draft_experts or model.experts_per_tok
    hottest = np.sort(profile.popularity)[::-1][:pool]
    shares = inclusion(hottest, min(chosen, pool - 1)) if pool > chosen else np.ones(pool)
    distinct = round(float(unique_experts(shares, shape.batch, width, profile.inside_reuse)))
    distinct = min(max(distinct, chosen), pool)
    rows = shape.batch * width
    expert_rows = np.zeros((model.moe_layers, model.experts))
    expert_rows[:, :distinct] = rows * chosen / distinct
    cells = float(shape.batch * shape.context)
    return PassLoad(rows, cells * width, cells, expert_rows, is_draft=True)
