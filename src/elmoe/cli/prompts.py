"""Prompts from the command line and from JSONL files."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elmoe.checkpoint.chat import OWN_VARIABLES
from elmoe.engine.engine import Engine
from elmoe.engine.prompt import Prompt
from elmoe.errors import ConfigError, PromptError


def gather(texts: Sequence[str], file: Path | None, limit: int | None = None) -> list[str]:
    """Prompts given one by one and those of a file, at least one; the first `limit` of them."""
    prompts = list(texts) + (read_jsonl(file) if file else [])
    if not prompts:
        raise PromptError("no prompt given; use -p TEXT (repeatable) or --prompts FILE.jsonl")
    return prompts[:limit]


def read_jsonl(file: Path) -> list[str]:
    """One prompt per line: {"prompt": text} or {"turns": [text, ...]}, of which the first turn is taken.

    Raises PromptError naming file and line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise PromptError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{file}: is not UTF-8 text: {error}") from error
    prompts = [_prompt_of(line, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise PromptError(f'{file}: holds no prompt; write one JSON object per line, for example {{"prompt": "Hi"}}')
    return prompts


def _prompt_of(line: str, where: str) -> str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: not JSON: {error}") from error
    turns = value.get("turns") if isinstance(value, dict) else None
    text = turns[0] if isinstance(turns, list) and turns else value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise PromptError(f'{where}: no prompt; write {{"prompt": "text"}} or {{"turns": ["text", ...]}}')
    return text


def as_asked(
    engine: Engine, texts: Sequence[str], chat: bool | None, variables: Mapping[str, Any] | None = None
) -> list[Prompt]:
    """Raw texts, or token ids of chats with one turn of a user; by default chats where the model has a chat template.

    variables: for the chat template. Raises PromptError for an empty text and for what the template refuses,
    ConfigError for a chat with a model that has no template, and for variables that are of no use.
    """
    if any(not text.strip() for text in texts):
        raise PromptError("the prompt is empty; give at least one word")
    tokenizer = engine.tokenizer
    has_template = tokenizer is not None and tokenizer.has_chat_template
    if chat and not has_template:
        raise ConfigError("this model has no chat template; use --raw")
    if tokenizer is None or chat is False or not has_template:
        if variables:
            raise ConfigError("template variables are for chats; leave --template-var or --raw out")
        return list(texts)
    _check_variables(variables or {}, tokenizer.template_variables)
    return [tokenizer.encode_chat([{"role": "user", "content": text}], variables) for text in texts]


def parse_variables(assignments: Sequence[str]) -> dict[str, Any]:
    """`["enable_thinking=false", "effort=high"]` -> values, read as JSON where they are JSON, else as texts."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--template-var: cannot read {assignment!r}; write for example enable_thinking=false")
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError):
            values[name] = text
    return values


def _check_variables(given: Mapping[str, Any], known: frozenset[str]) -> None:
    """A name that the template does not know would do nothing, in silence."""
    for name in given:
        if name in known or name in OWN_VARIABLES:  # those are refused with a reason
            continue
        nearest = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"it knows {', '.join(sorted(known)) or 'none'}"
        raise ConfigError(f"--template-var: the model's chat template knows no variable {name!r}; {hint}")
