"""Choosing tokens: temperature, top-k, top-p, min-p, and noise that draft and target share.

A token is chosen as ``argmax(score + noise)``: the score is the filtered log-probability and the noise is Gumbel,
drawn from the request's seed and the token's position alone (the Gumbel-max trick: an exact sample of the filtered
distribution). Because the noise does not depend on how a token was arrived at, the text of a seed is the same in AR,
in any draft tree and in any batch; and because the draft adds the *same* noise to its own scores, it proposes the
tokens that the target is going to sample. Greedy decoding is the case without noise.

Acceptance of such a coupled pair is at least (1-TV)/(1+TV) for a draft and a target at total variation TV (Daliri,
Musco, Suresh: "Coupling without communication and drafter-invariant speculative decoding"). Classic rejection
sampling reaches 1-TV per candidate but changes the text of a seed with the draft. `docs/lossless.md` has both,
measured.

A greedy choice needs the best logits only, so a pass over greedy requests asks the backend for no more
(`best_needed`); `Choices` reads either kind of result. Knows nothing about models or trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from elmoe.backend.protocol import ForwardResult
from elmoe.errors import ConfigError
from elmoe.quant.bitnested import Float32

Float64 = npt.NDArray[np.float64]
Proposal = tuple[list[int], list[float]]
"""Tokens, best first, and their log-probabilities."""
Tokens = npt.NDArray[np.intp]
Shape = Callable[[Float32], Float32]
"""What a request does to the logits [V] of a row before a token is chosen; see `shaping.py`. None where nothing."""
MAX_SEED = 2**64 - 1
NUCLEUS_LOOKS = (256, 2048)
"""Best tokens that are sorted to find a nucleus, one number after the other; then all."""


@dataclass(frozen=True)
class Sampling:
    """How a request's tokens are chosen; filters apply in the order top-k, top-p, min-p, after the temperature."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probabilities reach this sum; 1 keeps all."""
    top_k: int = 0
    """Keep this many most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one; 0 keeps all."""
    seed: int = 0
    """Same seed, same text, in every mode and batch."""
    presence_penalty: float = 0.0
    """Taken once from the logit of every token that was generated already."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token for each time that it was generated already."""
    repetition_penalty: float = 1.0
    """Logits of tokens in the prompt or generated already are divided by it where positive, else multiplied."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], not {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p must be in [0, 1], not {self.min_p}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed must be in [0, 2**64), not {self.seed}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ConfigError(f"{name} must be in [-2, 2], not {getattr(self, name)}")
        if not 0 < self.repetition_penalty <= 10:
            raise ConfigError(f"repetition_penalty must be in (0, 10], not {self.repetition_penalty}")
        for token, bias in self.logit_bias:
            if not -100 <= bias <= 100:
                raise ConfigError(f"logit_bias of token {token} must be in [-100, 100], not {bias}")

    @property
    def penalises(self) -> bool:
        """Whether logits depend on the tokens before them."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


class TokenLogprobs(NamedTuple):
    """Of one generated token."""

    chosen: float
    """Its own log-probability."""
    best: list[tuple[int, float]]
    """The likeliest tokens at its position, best first, ties to the lower number."""


def best_needed(samplings: Iterable[Sampling], count: int) -> int:
    """`Rows.best` of a pass that picks `count` tokens per row for these requests: 0, all logits, if one samples."""
    return count if all(sampling.temperature == 0 for sampling in samplings) else 0


class Choices:
    """Chooses and proposes tokens after the wanted rows of a pass, from all logits or from the best ones."""

    def __init__(self, result: ForwardResult) -> None:
        self._logits, self._best = result.logits, result.best
        self._tokens = result.best.tokens.tolist() if result.best is not None else []

    def choose(self, row: int, sampling: Sampling, position: int, shape: Shape | None = None) -> int:
        """The token that will stand at `position`, after wanted row `row`."""
        if self._best is not None:
            return self._tokens[row][0]
        return int(np.argmax(selection_scores(self._shaped(row, shape), sampling, position)))

    def propose(self, row: int, sampling: Sampling, position: int, count: int, shape: Shape | None = None) -> Proposal:
        """The `count` tokens likeliest to be chosen for `position`, or fewer; see `candidates`."""
        if self._best is not None:
            return self._tokens[row][:count], self._log_probabilities[row][:count]
        scores = selection_scores(self._shaped(row, shape), sampling, position)
        tokens, log_probabilities = candidates(scores, count)
        return tokens.tolist(), log_probabilities.tolist()

    def logprobs(self, row: int, token: int, count: int) -> TokenLogprobs:
        """Log-probabilities after wanted row `row`, by the logits as the model wrote them; needs all of them."""
        logits = self._logits[row]
        highest = float(logits.max())
        total = highest + float(np.log(np.exp(logits.astype(np.float64) - highest).sum()))
        best = [(int(other), float(logits[other]) - total) for other in (_best_first(logits, count) if count else ())]
        return TokenLogprobs(float(logits[token]) - total, best)

    def _shaped(self, row: int, shape: Shape | None) -> Float32:
        return self._logits[row] if shape is None else shape(self._logits[row])

    @cached_property
    def _log_probabilities(self) -> list[list[float]]:
        assert self._best is not None
        return (self._best.logits - self._best.log_total[:, None]).tolist()


def selection_scores(logits: Float32, sampling: Sampling, position: int) -> Float32 | Float64:
    """Scores [V] whose argmax is the chosen token, for the token that will stand at `position`.

    logits [V] float32 of the row before it. Dropped tokens get -inf.
    """
    if sampling.temperature == 0:
        return logits
    with np.errstate(over="ignore"):  # a temperature near 0 sends all but the best to -inf
        scores = (logits.astype(np.float64) - logits.max()) / sampling.temperature
    kept = _kept(scores, sampling)
    if len(kept) == len(scores):
        return scores + gumbel(sampling.seed, position, len(scores))
    chosen = np.full_like(scores, -np.inf)
    chosen[kept] = scores[kept] + gumbel(sampling.seed, position, int(kept[-1]) + 1, kept)
    return chosen


def gumbel(seed: int, position: int, count: int, only: Tokens | None = None) -> Float64:
    """Gumbel noise [count] of a position, or of the tokens `only` below `count`.

    Counter-based (Philox), so any position's noise can be had directly.
    """
    bits = np.random.Philox(key=seed, counter=[0, 0, 0, position]).random_raw(count)
    drawn = bits if only is None else bits[only]
    uniform = ((drawn >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1)
    return -np.log(-np.log(uniform))


def candidates(scores: Float32 | Float64, count: int) -> tuple[npt.NDArray[np.intp], Float64]:
    """The `count` best tokens of selection scores [V], best first, and their log-probabilities under those scores.

    Fewer where the filters left fewer. The log-probabilities are a draft's confidence in each candidate.
    """
    best = _best_first(scores, count)
    best = best[np.isfinite(scores[best])]
    top = float(scores[best[0]])
    total = np.log(np.exp(scores - top).sum(dtype=np.float64))
    return best, scores[best].astype(np.float64) - top - total


def _best_first(scores: Float32 | Float64, count: int) -> Tokens:
    """The `count` best tokens of scores [V], ties to the lower number, as in the target's argmax."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, -count)[-count]
    best = np.flatnonzero(scores >= least)
    return best[np.lexsort((best, -scores[best]))][:count]


def _kept(scores: Float64, sampling: Sampling) -> Tokens:
    """Tokens that the filters leave, ascending."""
    count, filtered = len(scores), 0 < sampling.top_k < len(scores)
    if sampling.top_p == 1 and sampling.min_p == 0 and not filtered:
        return np.arange(count)
    best = _best_first(scores, sampling.top_k) if filtered else None
    if sampling.top_p < 1:
        best = _nucleus(scores, sampling.top_p, best)
    if best is None:
        best = np.arange(count)
    if sampling.min_p > 0:
        best = best[scores[best] >= scores.max() + np.log(sampling.min_p)]
    return np.sort(best)


def _nucleus(scores: Float64, top_p: float, among: Tokens | None) -> Tokens:
    """The smallest set of best tokens whose share reaches `top_p`; `among`: those to choose from, best first."""
    top = scores.max()
    total = np.exp((scores if among is None else scores[among]) - top).sum()
    for count in (*NUCLEUS_LOOKS, len(scores)):
        best = _best_first(scores, count) if among is None else among
        probabilities = np.exp(scores[best] - top)
        before = np.cumsum(probabilities) - probabilities
        nucleus = best[before < top_p * total]
        if len(nucleus) < len(best):  # it ends among the tokens looked at
            break
    return nucleus
