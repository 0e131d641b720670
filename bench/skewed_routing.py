"""Routing with a given popularity and reuse, from nothing but an embedding and router weights.

Tokens lie on a cycle, and the model's greedy successor of a token is the next one (`skewed_checkpoint.py`). What a
token looks like, its *content*, is a Gaussian vector that changes along the cycle as an autoregressive process of first
order: neighbours correlate with c, tokens k apart with c**k. A router is a random matrix over the content, so that its
scores follow the same process, plus a bias per expert. So:

* how often an expert is chosen follows from its bias, which is calibrated on all tokens;
* how often successive tokens of a request choose the same expert follows from c alone, and fades with the distance, as
  `newcomer` of `sim/locality.py` has it; requests that start at far places of the cycle are independent.

The targets are a named profile's (`sim/profile.py`), mapped to the shape at hand: its power law gives the weights that
a token draws its experts from (`inclusion`); c is such that an LRU cache of a quarter of the experts misses, at batch
1, what the profile says. Axes: V tokens, D content, L layers, E experts, A experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from elmoe.sim.locality import inclusion, lru_miss_rate
from elmoe.sim.profile import Profile
from elmoe.trace.replay import Policy, Stream, miss_curve, regrouped

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

BIAS_STEPS, BIAS_RATE = 60, 0.7
SEARCH_STEPS = 10
SEARCH_TOKENS, SEARCH_CONTENT, SEARCH_LAYERS = 8192, 128, 4
"""The search for c looks at a smaller model: only scores matter, and they have the same distribution."""
REQUESTS, REQUEST_TOKENS = 96, 64
WARM_UP = 64
QUARTER = 4

_probit = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])


@dataclass(frozen=True)
class Target:
    """What routing shall be like; E experts."""

    shares: Float64
    """[E] share of tokens that choose each expert, most popular first."""
    experts_per_tok: int
    reuse: float
    """Of `sim/locality.py`, with which its model has `quarter_miss`."""
    quarter_miss: float
    """Misses per read of an LRU cache of a quarter of the experts at batch 1, by the profile."""

    @property
    def experts(self) -> int:
        """E."""
        return len(self.shares)


def target_of(profile: Profile, experts_per_tok: int) -> Target:
    """The target of a profile for its number of experts."""
    shares = inclusion(profile.popularity, experts_per_tok)
    capacity = np.array(len(shares) / QUARTER)
    miss = float(profile.miss_rate(capacity, np.array(1.0), np.array(1.0), profile.decode_hits))
    low, high = 0.0, 0.99
    for _ in range(50):  # misses fall with the reuse
        middle = (low + high) / 2
        low, high = (middle, high) if lru_miss_rate(shares, capacity, 1, 1, middle) > miss else (low, middle)
    return Target(shares, experts_per_tok, low, miss)


def content_cycle(tokens: int, content: int, correlation: float, rng: np.random.Generator) -> Float32:
    """[V, D] standard normal, an autoregressive process around the cycle."""
    spectrum = np.fft.rfft(rng.standard_normal((tokens, content), dtype=np.float32), axis=0)
    angle = 2 * np.pi * np.arange(len(spectrum)) / tokens
    spectrum /= (1 - correlation * np.exp(-1j * angle)).astype(np.complex64)[:, None]
    values = np.fft.irfft(spectrum, n=tokens, axis=0) * np.sqrt(1 - correlation**2)
    return values.astype(np.float32)


def chosen(scores: Float32, experts_per_tok: int) -> npt.NDArray[np.int16]:
    """[V, E] -> the A highest of each row, in any order."""
    return np.argpartition(-scores, experts_per_tok - 1, axis=1)[:, :experts_per_tok].astype(np.int16)


def shares_of(choice: npt.NDArray[np.int16], experts: int) -> Float64:
    """[V, A] -> [E] share of tokens that choose each expert."""
    return np.bincount(choice.ravel(), minlength=experts) / len(choice)


def calibrated_biases(scores: Float32, shares: Float64, experts_per_tok: int) -> Float32:
    """[E] what to add to the scores [V, E], of standard deviation 1, so that experts are chosen by `shares` [E]."""
    smallest = 0.5 / len(scores)
    wanted = _probit(np.clip(shares, smallest, 1 - smallest))
    biases = wanted.copy()
    for _ in range(BIAS_STEPS):
        found = shares_of(chosen(scores + biases.astype(np.float32), experts_per_tok), len(shares))
        biases += BIAS_RATE * (wanted - _probit(np.clip(found, smallest, 1 - smallest)))
    return biases.astype(np.float32)


def popularity_order(seed: int, layer: int, experts: int) -> npt.NDArray[np.intp]:
    """[E] rank of each expert of a layer: popular ones are elsewhere in every layer."""
    return np.random.default_rng([seed, layer, 1]).permutation(experts)


def router_content(seed: int, layer: int, content: int, experts: int) -> Float32:
    """[E, D] random weights that give scores of standard deviation 1 on standard normal content."""
    rng = np.random.default_rng([seed, layer, 2])
    return rng.standard_normal((experts, content), dtype=np.float32) / np.float32(np.sqrt(content))


def routing(target: Target, correlation: float, seed: int) -> npt.NDArray[np.int16]:
    """[V, L, A] of the small model that the search looks at."""
    content = content_cycle(SEARCH_TOKENS, SEARCH_CONTENT, correlation, np.random.default_rng([seed, 0]))
    layers = []
    for layer in range(SEARCH_LAYERS):
        scores = content @ router_content(seed, layer, SEARCH_CONTENT, target.experts).T
        shares = target.shares[popularity_order(seed, layer, target.experts)]
        layers.append(
            chosen(scores + calibrated_biases(scores, shares, target.experts_per_tok), target.experts_per_tok)
        )
    return np.stack(layers, axis=1)


def walks(routes: npt.NDArray[np.int16], requests: int, tokens: int, seed: int) -> list[Stream]:
    """Streams [T, L, A] of requests that start anywhere on the cycle."""
    starts = np.random.default_rng([seed, 3]).integers(len(routes), size=requests)
    return [routes[(start + np.arange(tokens)) % len(routes)] for start in starts]


def replayed_miss(streams: Sequence[Stream], experts: int, batch: int, capacity: int, policy: Policy) -> float:
    """Misses per read once the caches are full."""
    accesses = regrouped(streams, experts, batch)
    warm_up = min(WARM_UP, len(accesses.reads) // 4)
    return float(miss_curve(accesses, policy, [capacity], warm_up=warm_up).miss_rate[0])


def correlation_for(target: Target, seed: int) -> float:
    """The c of neighbours at which a quarter of the experts misses `target.quarter_miss` at batch 1."""
    low, high = 0.0, 0.98
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        streams = walks(routing(target, middle, seed), REQUESTS, REQUEST_TOKENS, seed)
        miss = replayed_miss(streams, target.experts, 1, target.experts // QUARTER, Policy.LRU)
        low, high = (middle, high) if miss > target.quarter_miss else (low, middle)
    return (low + high) / 2
