"""One request from prompt to finished text: parameters, state, stops, and the text that is safe to show.

Knows nothing about batches or passes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from elmoe.checkpoint.text import Detokenizer, Tokenizer
from elmoe.engine.kv_cache import SequenceCache
from elmoe.engine.sampler import Sampling
from elmoe.errors import ConfigError
from elmoe.trace.schema import Acceptance


@dataclass(frozen=True)
class Generation:
    """What is asked of one request."""

    max_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    """Strings that end the text, at the first one that begins in it; they are not part of it."""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if isinstance(self.stop, str):
            raise ConfigError(f"stop must be a list of strings; write [{self.stop!r}]")
        if not all(self.stop):
            raise ConfigError("an empty stop string would end every text; remove it")


@dataclass(frozen=True)
class Output:
    """A finished request."""

    text: str
    token_ids: list[int]
    """Generated tokens; a stop token is the last of them, though it is not in the text."""
    finish_reason: str
    """`stop` (stop token or string), `length` (max_tokens or the context's end) or `cancelled`."""
    acceptance: Acceptance
    prompt_tokens: int
    ttft_seconds: float
    """Time to first token, from submission."""
    seconds: float
    drafted: list[bool]
    """For each generated token, whether the draft had proposed it."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "ttft_seconds": self.ttft_seconds,
            "seconds": self.seconds,
            "acceptance": self.acceptance.as_dict(),
        }


class Request:
    """A live request."""

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        generation: Generation,
        tokenizer: Tokenizer | None,
        stop_tokens: frozenset[int],
    ) -> None:
        self.number = number
        self.prompt_length = len(prompt)
        self.tokens = list(prompt)
        self.generation = generation
        self.cache: SequenceCache | None = None
        self.acceptance = Acceptance()
        self.drafted: list[bool] = []
        self.finish_reason: str | None = None
        self._limit = generation.max_tokens
        self._stop_tokens = frozenset() if generation.ignore_eos else stop_tokens
        self._detokenizer = Detokenizer(tokenizer) if tokenizer else None
        self._text = ""
        self._shown = 0
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

    def emit(self, tokens: Sequence[int], drafted: int) -> None:
        """Append a step's tokens, of which the first `drafted` were draft proposals; cut at a stop."""
        for index, token in enumerate(tokens):
            self._first_token = self._first_token or time.perf_counter()
            self.tokens.append(token)
            self.drafted.append(index < drafted)
            self.acceptance.emitted += 1
            self._read(token)
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
        if self._detokenizer is not None and reason != "stop":
            self._add_text(self._detokenizer.finish())

    def new_text(self) -> str:
        """Text that became certain since the last call: what might be the start of a stop string is held back."""
        end = len(self._text)
        if self.finish_reason is None:
            end -= self._held_back()
        piece = self._text[self._shown : end]
        self._shown = max(end, self._shown)
        return piece

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
        )

    def _read(self, token: int) -> None:
        """Take one token into the text; look for stops."""
        if token in self._stop_tokens:
            self.finish_reason = "stop"
            if self._detokenizer is not None:
                self._add_text(self._detokenizer.finish())
        elif self._detokenizer is not None:
            self._add_text(self._detokenizer.feed([token]))

    def _add_text(self, piece: str) -> None:
        """Append text; cut it at a stop string."""
        searched = len(self._text)
        self._text += piece
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
