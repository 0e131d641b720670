"""Grammars of structured output, by llguidance: JSON schemas and Lark grammars over the model's own tokens.

A grammar is a text in llguidance's form. It is compiled once, off the engine's thread if the caller likes, and every
request takes a copy. Knows nothing about requests.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from elmoe.backend.protocol import Bool
from elmoe.checkpoint.text import Tokenizer
from elmoe.errors import ConfigError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 64
"""Compiled grammars that are kept, the least recently used dropped first."""
MAX_GRAMMAR_BYTES = 1 << 18
COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""No blanks but those after separators: a small model would otherwise go on with blanks for ever."""


def json_grammar(schema: Mapping[str, Any] | bool) -> str:
    """The Lark expression of JSON texts that a schema allows, to be a grammar's rule or a part of one."""
    options = {"x-guidance": COMPACT}
    return f"%json {json.dumps(options if isinstance(schema, bool) else {**schema, **options})}"


def json_text_grammar(schema: Mapping[str, Any] | bool) -> str:
    """The grammar of a text that is nothing but JSON that a schema allows."""
    return f"start: value\nvalue: {json_grammar(schema)}"


class Grammars:
    """Compiles grammars for one tokenizer. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, stop_tokens: Sequence[int]) -> None:
        """vocab: number of logits; `stop_tokens` end a text that the grammar accepts as whole."""
        self._tokenizer, self._vocab, self._stops = tokenizer, vocab, sorted(stop_tokens)
        self._lock = threading.Lock()
        self._core: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    def compile(self, grammar: str) -> GrammarConstraint:
        """The constraint of a Lark grammar, at its start.

        Raises ConfigError for one that is too large, malformed or asks for what llguidance cannot do.
        """
        if len(grammar) > MAX_GRAMMAR_BYTES:
            raise ConfigError(f"a grammar or schema may have {MAX_GRAMMAR_BYTES:,} characters, not {len(grammar):,}")
        with self._lock:
            matcher = self._kept.get(grammar)
        if matcher is None:
            matcher = self._compiled(grammar)  # takes long: others go on meanwhile
        with self._lock:
            self._kept[grammar] = matcher
            self._kept.move_to_end(grammar)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return GrammarConstraint(matcher.deep_copy(), self._vocab, self._stops)

    def literal(self, text: str) -> str:
        """The Lark expression for a text that the model writes as it stands, as its own token if it is a mark."""
        token = self._tokenizer.token_id(text)
        if token is not None and self._tokens().is_special_token(token):
            return f"<[{token}]>"
        return json.dumps(text)

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text, though it be part of a character; a special token is spelled out."""
        return bytes(self._tokens().decode_bytes([token]))

    def _compiled(self, grammar: str) -> LLMatcher:
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self._tokens(), LLMatcher.grammar_from_lark(grammar), log_level=0)
        except ValueError as error:
            raise ConfigError(f"the grammar or schema cannot be used: {error}") from None
        if matcher.is_error():
            problem = matcher.get_error().split("\n")[0]
            raise ConfigError(f"the grammar or schema cannot be used: {problem}")
        return matcher

    def _tokens(self) -> LLTokenizer:
        """The tokenizer as llguidance sees it; made when it is first needed, which takes a moment."""
        if self._core is None:
            from llguidance import LLTokenizer

            self._core = LLTokenizer(self._tokenizer.to_json(), n_vocab=self._vocab, eos_token=self._stops or None)
        return self._core


class GrammarConstraint:
    """See `shaping.Constraint`."""

    def __init__(self, matcher: LLMatcher, vocab: int, stop_tokens: Sequence[int]) -> None:
        self._matcher, self._vocab, self._stops = matcher, vocab, list(stop_tokens)
        self._bits = np.zeros(-(-vocab // 32), dtype=np.int32)

    @property
    def ended(self) -> bool:
        """Whether nothing may follow but a stop token."""
        return bool(self._matcher.is_stopped())

    def mask(self, path: Sequence[int]) -> Bool | None:
        """Tokens [V] allowed after the tokens so far and `path`; None where the path has left the grammar."""
        if any(token in self._stops for token in path):
            return None
        if path and self._matcher.is_stopped():
            return None
        taken = self._matcher.try_consume_tokens(list(path)) if path else 0
        try:
            return self._allowed() if taken == len(path) else None
        finally:
            if taken:
                self._matcher.rollback(taken)

    def append(self, token: int) -> None:
        """Go on by a token that `mask` allowed."""
        if token not in self._stops and not self._matcher.is_stopped():
            self._matcher.consume_token(token)

    def _allowed(self) -> Bool | None:
        from llguidance.numpy import fill_next_token_bitmask

        if self._matcher.is_stopped():
            allowed = np.zeros(self._vocab, dtype=np.bool_)
        else:
            fill_next_token_bitmask(self._matcher, self._bits[None], 0)
            allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab].astype(np.bool_)
        if self._matcher.is_accepting():
            allowed[self._stops] = True
        return allowed if allowed.any() else None
