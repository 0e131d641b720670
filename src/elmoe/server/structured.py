"""Grammars of answers: JSON by a schema, tool calls that must be made, each in the marks that the model writes.

A model's reasoning comes before its answer; a grammar lets it, where the model's format has a place for it. Knows
nothing about requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from elmoe.checkpoint.reasoning import (
    CHANNEL,
    CLOSE,
    CONSTRAIN,
    MESSAGE,
    OPEN,
    PROMPT_TAIL,
    START,
    ReasoningFormat,
    reasoning_format,
)
from elmoe.checkpoint.text import Tokenizer
from elmoe.engine.grammar import Grammars, json_grammar

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
ARG_KEY = "<arg_key>"
CALL_HEAD = '{{"name": {}, "arguments": '
END = "<|end|>"
ANY_OBJECT: dict[str, Any] = {"type": "object"}
ANY_TEXT = "/(?s:.*)/"


class CallFormat(Enum):
    """How a model writes tool calls."""

    NONE = "none"
    HERMES = "hermes"
    """``<tool_call>`` around a JSON object of name and arguments: Qwen and most others."""
    HARMONY = "harmony"
    """A message to ``functions.NAME`` in the commentary channel: GPT-OSS."""


def call_format(tokenizer: Tokenizer) -> CallFormat:
    """How the model of this tokenizer writes tool calls, by its chat template."""
    if "tools" not in tokenizer.template_variables:
        return CallFormat.NONE
    if reasoning_format(tokenizer) is ReasoningFormat.HARMONY:
        return CallFormat.HARMONY
    token = tokenizer.token_id(CALL_OPEN)
    written = token is None or bool(tokenizer.decode([token]))
    known = tokenizer.template_mentions(CALL_OPEN) and not tokenizer.template_mentions(ARG_KEY)
    return CallFormat.HERMES if known and written else CallFormat.NONE


@dataclass(frozen=True)
class CallableFunction:
    """A function that may be called."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of its arguments."""


class AnswerGrammars:
    """Writes grammars for one model."""

    def __init__(self, tokenizer: Tokenizer, grammars: Grammars) -> None:
        self._tokenizer, self._grammars = tokenizer, grammars
        self._reasoning = reasoning_format(tokenizer)
        self._calls = call_format(tokenizer)

    def json_answer(self, schema: Mapping[str, Any], prompt: Sequence[int]) -> str:
        """The answer to a chat's `prompt`: JSON by the schema, perhaps after reasoning."""
        rules = [f"value: {json_grammar(schema)}"]
        if self._reasoning is ReasoningFormat.HARMONY:
            constrained = f'(" "? {self._mark(CONSTRAIN)} "json")?'
            final = f'{self._mark(CHANNEL)} "final" {constrained} {self._mark(MESSAGE)} value'
            return self._harmony(final, rules)
        return self._thinking("value", rules, prompt)

    def calls(
        self, functions: Sequence[CallableFunction], prompt: Sequence[int], parallel: bool, required: bool
    ) -> str:
        """Calls of these functions with arguments by their schemas; without `required`, any text instead."""
        rules = [f"args{i}: {json_grammar(function.parameters)}" for i, function in enumerate(functions)]
        if self._calls is CallFormat.HARMONY:
            bodies = [
                f"{json.dumps(f'commentary to=functions.{function.name}')} "
                f'(" "? {self._mark(CONSTRAIN)} "json")? {self._mark(MESSAGE)} args{i}'
                for i, function in enumerate(functions)
            ]
            call = f"{self._mark(CHANNEL)} ({' | '.join(bodies)})"
            other = f'{self._mark(CHANNEL)} "final" {self._mark(MESSAGE)} TEXT'
            return self._harmony(call if required else f"{other} | {call}", rules)
        bodies = [
            f"{json.dumps(CALL_HEAD.format(json.dumps(function.name)))} args{i}" for i, function in enumerate(functions)
        ]
        rules.append(f'call: {self._mark(CALL_OPEN)} "\\n" ({" | ".join(bodies)}) "}}\\n" {self._mark(CALL_CLOSE)}')
        rules.append('calls: call ("\\n" call)*' if parallel else "calls: call")
        return self._thinking("calls" if required else "TEXT calls?", rules, prompt)

    def _mark(self, text: str) -> str:
        return self._grammars.literal(text)

    def _thinking(self, answer: str, rules: list[str], prompt: Sequence[int]) -> str:
        """An answer, perhaps after thoughts: those that the prompt has opened, or that the model opens itself."""
        rules = [*rules, f"TEXT: {ANY_TEXT}", r"BLANKS: /\n{0,2}/"]
        if self._reasoning is not ReasoningFormat.THINK:
            return "\n".join([f"start: {answer}", *rules])
        tail = self._tokenizer.decode(prompt[-PROMPT_TAIL:], skip_special_tokens=False).rstrip()
        opened, spelled = tail.endswith(OPEN), self._mark(CLOSE).startswith('"')
        if spelled:
            lead = "" if opened else OPEN
            rules.append(f"thoughts[suffix={json.dumps(CLOSE)}]: /(?s:{lead}.*)/")
        else:
            rules.append(f"thoughts: {'' if opened else self._mark(OPEN)} TEXT {self._mark(CLOSE)}")
        return "\n".join([f"start: {'thoughts' if opened else 'thoughts?'} BLANKS answer", f"answer: {answer}", *rules])

    def _harmony(self, last: str, rules: list[str]) -> str:
        """Messages of analysis, then the last message."""
        analysis = f'{self._mark(CHANNEL)} "analysis" {self._mark(MESSAGE)} TEXT {self._mark(END)} {self._mark(START)}'
        head = ["start: analysis* last", f'analysis: {analysis} "assistant"', f"last: {last}", f"TEXT: {ANY_TEXT}"]
        return "\n".join([*head, *rules])
