"""Expert locality: which experts passes read and what a cache of them misses, as models and as measured from a trace.

The model: the popularity of a layer's experts is a power law; tokens of different requests draw experts independently,
tokens of one request repeat some of their predecessor's (`reuse`). Its functions take arrays that broadcast against
each other; an expert axis E is the last one of its array, the other arguments broadcast without it. Capacities are
experts per layer and may be fractional (a cache that all layers share).

Knows nothing about bytes or time. Axes: L MoE layers, E experts, T tokens, N capacities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.errors import ConfigError, TraceError
from elmoe.trace.parquet import Trace
from elmoe.trace.replay import Policy, Replay, Stream, miss_curve, recorded_accesses, request_streams
from elmoe.trace.schema import routing_counts

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Floats = npt.ArrayLike
"""A number, or an array of them."""

LARGEST_EXPONENT = 8.0
CERTAIN = 1.0 - 1e-12
"""Experts that every pass reads count as this likely: their rate stays finite."""
NEWTON_STEPS = 200
"""At most: a few are usual, some dozens where rates span many decades."""
TERNARY_STEPS, BISECTION_STEPS = 60, 50


def power_law(exponent: Floats, experts: int) -> Float64:
    """Popularity [..., E] proportional to ``rank**-exponent``, sum 1; 0 is uniform."""
    weights = np.arange(1, experts + 1) ** -np.asarray(exponent, dtype=np.float64)[..., None]
    return weights / weights.sum(axis=-1, keepdims=True)


def fit_exponent(counts: Floats, experts_per_tok: float | None = None) -> Float64:
    """Exponent [...] in [0, 8] of the power law under which the routing counts [..., E] are likeliest.

    With `experts_per_tok` the power law is that of the weights that a token draws without replacement from (see
    `inclusion`); without, that of the counts themselves. Experts are ranked by the same counts, so few counts give
    too large an exponent: of 128 equally popular experts 10 counts each look like 0.25, 1000 each like 0.03. Raises
    ConfigError where all counts are 0.
    """
    ranked = -np.sort(-np.asarray(counts, dtype=np.float64), axis=-1)
    if ranked.size and ranked.sum(axis=-1).min() <= 0:
        raise ConfigError("a popularity cannot be fitted to counts that are all 0; record a longer trace")
    experts = ranked.shape[-1]

    def likelihood(exponent: Float64) -> Float64:
        shares = power_law(exponent, experts)
        if experts_per_tok is not None:
            shares = inclusion(shares, experts_per_tok)
        return (ranked * np.log(np.maximum(shares, np.finfo(float).tiny))).sum(axis=-1)

    low, high = np.zeros(ranked.shape[:-1]), np.full(ranked.shape[:-1], LARGEST_EXPONENT)
    for _ in range(TERNARY_STEPS):
        third = (high - low) / 3
        rising = likelihood(low + third) < likelihood(high - third)
        low, high = np.where(rising, low + third, low), np.where(rising, high, high - third)
    return (low + high) / 2


def hot_coverage(popularity: Floats, pool: Floats) -> Float64:
    """Share [...] of routing decisions that fall on the `pool` [...] most popular experts; popularity [..., E].

    A fractional pool holds its last expert for that share of the time.
    """
    shares = -np.sort(-np.asarray(popularity, dtype=np.float64), axis=-1)
    slots = np.asarray(pool, dtype=np.float64)[..., None]
    held = np.clip(slots - np.arange(shares.shape[-1]), 0.0, 1.0)
    return (shares * held).sum(axis=-1) / shares.sum(axis=-1)


# --- which experts passes read ---


def inclusion(weights: Floats, experts_per_tok: Floats) -> Float64:
    """Probability [..., E] that a token picks each expert: `experts_per_tok` draws without replacement by weight.

    Drawing without replacement is a race of exponential clocks with the weights as rates (the Gumbel top-k trick),
    so pi = 1 - exp(-lambda w) with the lambda that makes the sum experts_per_tok: the time of the last arrival is
    taken as fixed (B. Rosen, "Asymptotic theory for order sampling", J. Stat. Plan. Inference 62, 1997). Exact for
    uniform weights.
    """
    rates = np.asarray(weights, dtype=np.float64)
    rates = rates / rates.sum(axis=-1, keepdims=True)
    time = characteristic_time(rates, experts_per_tok)[..., None]
    return -np.expm1(-_times(rates, time))


def unique_experts(inclusion: Floats, requests: Floats = 1, tokens: Floats = 1, reuse: Floats = 0.0) -> Float64:
    """Distinct experts [...] expected in a pass over `tokens` consecutive tokens of each of `requests` requests.

    inclusion: [..., E] share of tokens that pick each expert. reuse: in [0, 1), see `newcomer`.
    """
    first, later = _absence(inclusion, requests, reuse)
    return -np.expm1(first + (_expert_axis(tokens) - 1.0) * later).sum(axis=-1)


def newcomer(inclusion: Floats, reuse: Floats) -> Float64:
    """Probability r [..., E] that a token picks an expert that its predecessor did not pick.

    A token repeats each of its predecessor's experts with probability rho = `reuse`, and draws the rest anew, by
    popularity, among those that it has not got. With pi the share of tokens that pick the expert, one in two
    successive tokens with probability rho + (1 - rho) r; that pi stays what it is asks
    ``pi = pi (rho + (1 - rho) r) + (1 - pi) r``, so ``r = pi (1 - rho) / (1 - pi rho)``.
    It follows that t successive tokens all avoid the expert with probability ``(1 - pi) (1 - r)**(t - 1)``: for
    rho = 0 that of t independent tokens, for rho -> 1 that of a single one. Taken as if the number of repeated
    experts were always its mean.
    """
    share = np.asarray(inclusion, dtype=np.float64)
    rho = _expert_axis(reuse)
    return share * (1.0 - rho) / (1.0 - np.minimum(share, CERTAIN) * rho)


# --- caches ---


def characteristic_time(rates: Floats, capacity: Floats) -> Float64:
    """The time t [...] in which `capacity` distinct experts are expected: ``sum(1 - exp(-rates t)) = capacity``.

    0 for no capacity, infinite where the capacity takes all experts that are ever used. Unit: of 1 / rates.
    """
    rate = np.asarray(rates, dtype=np.float64)
    return _time_until(np.ones_like(rate), rate, rate.shape[-1] - np.asarray(capacity, dtype=np.float64))


def lru_hit_rate(popularity: Floats, capacity: Floats) -> Float64:
    """Hits per access [...] of an LRU cache under independent single accesses by popularity [..., E].

    Che's approximation: C. Fricker, P. Robert, J. Roberts, "A versatile and accurate approximation for LRU cache
    performance", ITC 24, 2012: expert i hits with 1 - exp(-p_i t_C).
    """
    shares = np.asarray(popularity, dtype=np.float64)
    time = characteristic_time(shares, capacity)[..., None]
    return (shares * -np.expm1(-_times(shares, time))).sum(axis=-1) / shares.sum(axis=-1)


def lru_miss_rate(
    inclusion: Floats, capacity: Floats, requests: Floats = 1, tokens: Floats = 1, reuse: Floats = 0.0
) -> Float64:
    """Misses per distinct read [...] of an LRU cache, each pass over `tokens` tokens of each of `requests` requests.

    Che's approximation for passes, which read a set at once: with A_i(x) the probability that x successive passes all
    avoid expert i, the cache holds what the last tau passes read, ``sum(1 - A_i(tau)) = capacity``, and a read misses
    that comes after tau passes without one: ``sum(A_i(tau) - A_i(tau + 1)) / sum(1 - A_i(1))``.
    Without reuse ``A_i(x) = (1 - q_i)**x`` and this is ``sum(q_i (1 - q_i)**tau) / sum(q_i)``, so with the defaults
    `inclusion` may be the q of any pass. A cache smaller than one pass (tau < 1) holds a random part of it.
    """
    first, later = _absence(inclusion, requests, reuse)
    per_pass = _expert_axis(tokens) * later  # what one pass more adds to log A, [..., E]
    one_pass = first - later + per_pass  # log A(1)
    one_pass, per_pass = np.broadcast_arrays(one_pass, per_pass)
    room = one_pass.shape[-1] - np.asarray(capacity, dtype=np.float64)
    beyond = _time_until(np.exp(one_pass), -per_pass, room)[..., None]  # tau - 1, where tau >= 1
    within = np.minimum(_time_until(np.ones_like(one_pass), -one_pass, room), 1.0)[..., None]  # tau below 1
    avoided = _times(one_pass, within) + _times(per_pass, beyond)  # log A(tau)
    next_too = one_pass + _times(per_pass, np.where(beyond > 0, beyond + 1.0, within))  # log A(tau + 1)
    missed = (np.exp(avoided) - np.exp(next_too)).sum(axis=-1)
    return missed / -np.expm1(one_pass).sum(axis=-1)


def fit_reuse(inclusion: Floats, unique: Floats) -> Float64:
    """Reuse [...] with which `unique_experts` gives the measured distinct experts `unique` [..., T] on average.

    unique[..., t - 1]: mean number of distinct experts in t consecutive tokens of one request. 0 where they are as
    many as, or more than, independent tokens would read.
    """
    measured = np.asarray(unique, dtype=np.float64)
    shares = np.asarray(inclusion, dtype=np.float64)[..., None, :]
    tokens = np.arange(1, measured.shape[-1] + 1)

    def excess(reuse: Float64) -> Float64:
        return (unique_experts(shares, 1, tokens, reuse[..., None]) - measured).sum(axis=-1)

    low, high = np.zeros(measured.shape[:-1]), np.full(measured.shape[:-1], CERTAIN)
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        more = excess(middle) > 0
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    return np.where(excess(np.zeros_like(low)) > 0, low, 0.0)


# --- measured ---


@dataclass(frozen=True)
class Locality:
    """What a trace shows. Tokens are decoded ones: prompts and rejected drafts are left out."""

    tokens: int
    counts: Int64
    """[L, E] tokens that chose the expert."""
    exponent: Float64
    """[L] of the weights that a token draws from (`inclusion`)."""
    unique_inside: Float64
    """[L, T] distinct experts in 1..T consecutive tokens of one request, mean over all places."""
    unique_across: Float64
    """[L, T] distinct experts of 1..T tokens from different requests, mean over all choices of requests and tokens."""
    reuse: Float64
    """[L] that explains `unique_inside`, given how often each expert was chosen in all."""
    capacities: Int64
    """[N]."""
    replays: Mapping[Policy, Replay]
    """Exact, over the recorded target passes, rejected drafts included: their experts are read, too."""

    @property
    def inclusion(self) -> Float64:
        """[L, E] share of the tokens that chose the expert."""
        return self.counts / self.tokens


def measure(
    trace: Trace,
    *,
    longest: int = 8,
    capacities: Sequence[int] | None = None,
    policies: Sequence[Policy] = tuple(Policy),
) -> Locality:
    """Measure a trace, in two passes over the file.

    longest: T, lowered to what the requests have. capacities: eighths of the experts unless given. Raises TraceError
    where the file is broken or has no decoded tokens.
    """
    streams, experts = list(request_streams(trace).values()), trace.shape.experts
    if not streams:
        raise TraceError(f"{trace.path} has no decoded tokens; record a longer trace")
    sizes = np.arange(9) * experts // 8 if capacities is None else np.asarray(capacities, dtype=np.int64)
    read = recorded_accesses(trace)
    tokens = sum(len(stream) for stream in streams)
    counts = routing_counts(np.concatenate(streams), experts)
    inside = unique_inside(streams, experts, longest)
    return Locality(
        tokens=tokens,
        counts=counts,
        exponent=fit_exponent(counts, trace.shape.experts_per_tok),
        unique_inside=inside,
        unique_across=unique_across(streams, experts, longest),
        reuse=fit_reuse(counts / tokens, inside),
        capacities=sizes,
        replays={policy: miss_curve(read, policy, sizes) for policy in policies},
    )


def unique_inside(streams: Sequence[Stream], experts: int, longest: int) -> Float64:
    """Mean number [L, T] of distinct experts in 1..T consecutive tokens of one request, T as far as a request goes."""
    seen = [_chosen(stream, experts) for stream in streams]
    windows, means = seen, []
    for _ in range(longest):
        places = sum(len(window) for window in windows)
        if not places:
            break
        means.append(sum(window.sum(axis=(0, 2)) for window in windows) / places)
        windows = [window[:-1] | own[len(own) - len(window) + 1 :] for window, own in zip(windows, seen, strict=True)]
    return np.stack(means, axis=1)


def unique_across(streams: Sequence[Stream], experts: int, longest: int) -> Float64:
    """Mean number [L, T] of distinct experts of 1..T tokens, each of another request, T up to the requests there are.

    Over all choices, not a sample: `avoided[t]` is the mean over all t of the requests so far of the probability that
    a token of each avoids the expert, the normalised elementary symmetric polynomial.
    """
    most = min(longest, len(streams))
    absence = [1.0 - _chosen(stream, experts).mean(axis=0) for stream in streams]  # [L, E] each
    avoided = np.zeros((most + 1, *absence[0].shape))
    avoided[0] = 1.0
    for number, absent in enumerate(absence, start=1):
        for t in range(min(number, most), 0, -1):
            among = t / number  # share of the choices of t requests that include this one
            avoided[t] = (1.0 - among) * avoided[t] + among * absent * avoided[t - 1]
    return (1.0 - avoided[1:]).sum(axis=2).T


def _chosen(stream: Stream, experts: int) -> npt.NDArray[np.bool_]:
    """[T, L, A] -> [T, L, E]."""
    chosen = np.zeros((*stream.shape[:2], experts), dtype=np.bool_)
    np.put_along_axis(chosen, stream.astype(np.int64), True, axis=2)
    return chosen


# --- arithmetic ---


def _expert_axis(values: Floats) -> Float64:
    return np.asarray(values, dtype=np.float64)[..., None]


def _times(rate: Float64, time: Float64) -> Float64:
    """The product; a rate of 0 stays 0 over infinite time."""
    return rate * np.where(rate == 0, 0.0, time)


def _absence(inclusion: Floats, requests: Floats, reuse: Floats) -> tuple[Float64, Float64]:
    """Logarithms [..., E] of the probability that the first token, and each later one, of all requests avoids it."""
    share = np.minimum(np.asarray(inclusion, dtype=np.float64), CERTAIN)
    count = _expert_axis(requests)
    return count * np.log1p(-share), count * np.log1p(-newcomer(share, reuse))


def _time_until(mass: Float64, rates: Float64, left: Float64) -> Float64:
    """The time t >= 0 [...] at which ``sum(mass exp(-rates t)) = left``: 0 if less is left at once, inf if always more.

    Newton's method on the logarithm of the sum, which is convex: from t = 0 the iterates only grow, towards the root.
    """
    moving = rates > 0
    floor = np.where(moving, 0.0, mass).sum(axis=-1)
    mass, rates = np.where(moving, mass, 0.0), np.where(moving, rates, 0.0)
    goal, start = np.broadcast_arrays(np.asarray(left - floor, dtype=np.float64), mass.sum(axis=-1))
    solvable = (goal > 0) & (goal < start)
    target = np.log(np.where(solvable, goal, 1.0))
    time = np.zeros(goal.shape)
    for _ in range(NEWTON_STEPS):
        surviving = mass * np.exp(-rates * time[..., None])
        total, slope = surviving.sum(axis=-1), (rates * surviving).sum(axis=-1)
        ahead = np.where(solvable, (np.log(np.where(solvable, total, 1.0)) - target) * total, 0.0)
        step = np.maximum(ahead, 0.0) / np.where(solvable, slope, 1.0)
        time = time + step
        if (step <= 1e-13 * time).all():
            break
    return np.where(solvable, time, np.where(goal <= 0, np.inf, 0.0))
