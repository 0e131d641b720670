"""One request from prompt to finished text: parameters, state, stops, and the text that is safe to show.

Knows nothing about batches or passes.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from elmoe.checkpoint.reasoning import CallPiece, Parts, ReasoningStream
from elmoe.checkpoint.text import Detokenizer, Tokenizer
from elmoe.engine.controller import Speculation
from elmoe.engine.kv_cache import SequenceCache
from elmoe.engine.sampler import Sampling, TokenLogprobs
from elmoe.engine.shaping import Constraint, Shaper
from elmoe.errors import ConfigError
from elmoe.trace.schema import Acceptance

MAX_LOGPROBS = 20
"""Alternatives per token whose log-probabilities can be had, as in the OpenAI API."""


@dataclass(frozen=True)
class Generation:
    """What is asked of one request."""

    max_tokens: int = 128
    """Generate at most as many; the context may allow fewer."""
    sampling: Sampling = field(default_factory=Sampling)
    """How tokens are chosen. Greedy by default."""
    stop: tuple[str, ...] = ()
    """Strings that end the text, at the first one that begins in it; they are not part of it."""
    ignore_eos: bool = False
    """Go on after a stop token."""
    speculation: Speculation | None = None
    """This request's own mode and tree, the draft quality being the engine's. None: the engine's settings."""
    logprobs: int | None = None
    """Keep log-probabilities of the generated tokens and of as many alternatives."""
    grammar: str | None = None
    """What the text must follow, as llguidance's Lark; see `grammar.py`."""
    split_reasoning: bool = False
    """The prompt is a chat: text is the answer alone, reasoning and tool calls go apart, stops are found in the answer.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if isinstance(self.stop, str):
            raise ConfigError(f"stop must be a list of strings; write [{self.stop!r}]")
        if not all(self.stop):
            raise ConfigError("an empty stop string would end every text; remove it")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ConfigError(f"logprobs must be 0 to {MAX_LOGPROBS} alternatives per token, not {self.logprobs}")


@dataclass(frozen=True)
class Output:
    """A finished request."""

    text: str
    """Without the stop token or string that ended it; empty for a model without a tokenizer."""
    token_ids: list[int]
    """Generated tokens; a stop token is the last of them, though it is not in the text."""
    finish_reason: str
    """`stop` (stop token or string), `length` (max_tokens or the context's end), `cancelled` or `error`."""
    acceptance: Acceptance
    """This request's counters."""
    prompt_tokens: int
    """Length of the prompt."""
    ttft_seconds: float
    """Time to first token, from submission."""
    seconds: float
    """From submission to the end."""
    drafted: list[bool]
    """For each generated token, whether the draft had proposed it."""
    reasoning: str = ""
    """With `Generation.split_reasoning`."""
    calls: tuple[CallPiece, ...] = ()
    """Likewise: pieces of tool calls, in order."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per generated token, where asked for."""
    error: str | None = None
    """What went wrong, where that was the end of it."""
    cached_tokens: int = 0
    """Prompt tokens whose keys and values were there already."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            **({} if self.error is None else {"error": self.error}),
            "prompt_tokens": self.prompt_tokens,
            "ttft_seconds": self.ttft_seconds,
            "seconds": self.seconds,
            "acceptance": self.acceptance.as_dict(),
        }


class _Reader(Protocol):
    """Turns token ids into texts."""

    def feed(self, ids: Sequence[int]) -> Parts: ...

    def finish(self) -> Parts: ...


class _PlainText:
    """All text is answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._detokenizer = Detokenizer(tokenizer)

    def feed(self, ids: Sequence[int]) -> Parts:
        return Parts(answer=self._detokenizer.feed(ids))

    def finish(self) -> Parts:
        return Parts(answer=self._detokenizer.finish())


class Request:
    """A live request."""

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        generation: Generation,
        tokenizer: Tokenizer | None,
        stop_tokens: frozenset[int],
        shaper: Shaper | None = None,
    ) -> None:
        """shaper: for requests whose logits are changed before a token is chosen."""
        self.number = number
        self.prompt_length = len(prompt)
        self.tokens = list(prompt)
        self.generation = generation
        self.shaper = shaper
        self.cache: SequenceCache | None = None
        self.source: tuple[Request, int] | None = None
        """A running request whose tokens begin as this prompt does, and how many, while its cells are waited for."""
        self.cached_tokens = 0
        self.acceptance = Acceptance()
        self.drafted: list[bool] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: str | None = None
        self.error: str | None = None
        """Why it failed."""
        self._limit = generation.max_tokens
        self._stop_tokens = frozenset() if generation.ignore_eos else stop_tokens
        self._reader: _Reader | None = None
        if tokenizer:
            split = generation.split_reasoning
            self._reader = ReasoningStream(tokenizer, prompt, calls=True) if split else _PlainText(tokenizer)
        self._text = ""
        self._reasoning = ""
        self._calls: list[CallPiece] = []
        self._shown = self._reasoning_shown = self._calls_shown = 0
        self._ends: list[int] = []
        """Length of the text after each generated token."""
        self._started = time.perf_counter()
        self._first_token: float | None = None
        self._ended: float | None = None

    @property
    def remaining(self) -> int:
        """Tokens that may still be generated."""
        return self._limit - (len(self.tokens) - self.prompt_length)

    def limit_tokens(self, room: int) -> None:
        """Generate at most `room` tokens: what the context has left."""
        self._limit = min(self._limit, room)

    @property
    def prefill_left(self) -> int:
        """Prompt tokens (all but the last, which is the first decode step's input) not in the cache yet."""
        committed = self.cache.committed if self.cache else 0
        return max(0, self.prompt_length - 1 - committed)

    @property
    def kv(self) -> SequenceCache:
        """Its cells, once it runs."""
        assert self.cache is not None, "a running request has a cache"
        return self.cache

    @property
    def constraint(self) -> Constraint | None:
        """The grammar of the text."""
        return self.shaper.constraint if self.shaper else None

    @property
    def takes_best(self) -> bool:
        """Whether its tokens can be chosen by the best logits of a pass, unchanged."""
        return self.shaper is None and self.generation.sampling.temperature == 0

    def emit(self, tokens: Sequence[int], drafted: int, logprobs: Sequence[TokenLogprobs] = ()) -> None:
        """Append a step's tokens, of which the first `drafted` were draft proposals; cut at a stop.

        logprobs: one per token, or none.
        """
        for index, token in enumerate(tokens):
            self._first_token = self._first_token or time.perf_counter()
            self.tokens.append(token)
            self.drafted.append(index < drafted)
            self.logprobs.extend(logprobs[index : index + 1])
            self.acceptance.emitted += 1
            self._read(token)
            self._ends.append(len(self._text))
            if self.shaper is not None:
                self._shape_on(token, self.shaper)
            if self.finish_reason is None and self.remaining == 0:
                self.finish_reason = "length"
            if self.finish_reason is not None:
                break
        if self.finish_reason is not None:
            self.finish(self.finish_reason)

    def finish(self, reason: str) -> None:
        """End the request; the text held back for a possible stop string is released."""
        self.finish_reason = reason
        self._ended = time.perf_counter()
        if self._reader is not None and reason != "stop":
            self._add(self._reader.finish())

    def fail(self, message: str) -> None:
        """End the request, with what it has, because of a fault."""
        self.error = message
        self.finish("error")

    def new_text(self) -> str:
        """Text that became certain since the last call: what might be the start of a stop string is held back."""
        end = len(self._text)
        if self.finish_reason is None:
            end -= self._held_back()
        piece = self._text[self._shown : end]
        self._shown = max(end, self._shown)
        return piece

    def new_parts(self) -> Parts:
        """Text as by `new_text`, and what was added to reasoning and tool calls since the last call."""
        reasoning, calls = self._reasoning[self._reasoning_shown :], self._calls[self._calls_shown :]
        self._reasoning_shown, self._calls_shown = len(self._reasoning), len(self._calls)
        return Parts(reasoning, self.new_text(), tuple(calls))

    def by_origin(self, text: str) -> list[tuple[str, bool]]:
        """`text`, what `new_text` gave last, in the pieces of its tokens, with whether each was drafted."""
        pieces, place = [], self._shown - len(text)
        first = bisect_right(self._ends, place)
        for end, drafted in zip(self._ends[first:], self.drafted[first:], strict=True):
            if place < min(end, self._shown):
                pieces.append((self._text[place : min(end, self._shown)], drafted))
                place = min(end, self._shown)
        if place < self._shown:
            pieces.append((self._text[place : self._shown], False))
        return pieces

    def output(self) -> Output:
        """The finished request."""
        ended = self._ended or time.perf_counter()
        return Output(
            text=self._text,
            token_ids=self.tokens[self.prompt_length :],
            finish_reason=self.finish_reason or "length",
            acceptance=self.acceptance,
            prompt_tokens=self.prompt_length,
            ttft_seconds=(self._first_token or ended) - self._started,
            seconds=ended - self._started,
            drafted=self.drafted,
            reasoning=self._reasoning,
            calls=tuple(self._calls),
            logprobs=tuple(self.logprobs),
            error=self.error,
            cached_tokens=self.cached_tokens,
        )

    def _read(self, token: int) -> None:
        """Take one token into the text; look for stops."""
        if token in self._stop_tokens:
            self.finish_reason = "stop"
            if self._reader is not None:
                self._add(self._reader.finish())
        elif self._reader is not None:
            self._add(self._reader.feed([token]))

    def _shape_on(self, token: int, shaper: Shaper) -> None:
        """Later logits depend on this token; a grammar may be at its end, where only a stop token could follow."""
        if token not in self._stop_tokens:
            shaper.append(token)
            if self.finish_reason is None and shaper.constraint is not None and shaper.constraint.ended:
                self.finish_reason = "stop"
                if self._reader is not None:
                    self._add(self._reader.finish())

    def _add(self, parts: Parts) -> None:
        """Append to the texts; cut the answer at a stop string."""
        self._reasoning += parts.reasoning
        self._calls += parts.calls
        searched = len(self._text)
        self._text += parts.answer
        places = [self._text.find(stop, max(0, searched - len(stop) + 1)) for stop in self.generation.stop]
        if found := [place for place in places if place >= 0]:
            self._text = self._text[: min(found)]
            self.finish_reason = "stop"

    def _held_back(self) -> int:
        longest = max(map(len, self.generation.stop), default=0)
        for length in range(min(longest - 1, len(self._text)), 0, -1):
            tail = self._text[-length:]
            if any(stop.startswith(tail) for stop in self.generation.stop):
                return length
        return 0
