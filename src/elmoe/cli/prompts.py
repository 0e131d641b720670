"""Prompts from the command line and from JSONL files."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from elmoe.checkpoint.chat import OWN_VARIABLES
from elmoe.cli.console import parse_integers
from elmoe.engine.engine import Engine
from elmoe.engine.prompt import NO_TOKENIZER, Prompt
from elmoe.errors import ConfigError, PromptError

PROMPT_SETS = {"chat": "mt-bench", "math": "gsm8k", "instructions": "alpaca", "code": "humaneval"}
"""Prompts that come with elmoe, and the workload of the paper that each stands in for (`data/prompts/README.md`)."""

Given = str | list[int]
"""A prompt as the command line takes it: a text, or token ids, which go to the model as they are."""


def gather(
    texts: Sequence[str] | None, tokens: Sequence[str] | None, file: Path | None, limit: int | None = None
) -> list[Given]:
    """Prompts given one by one (texts, then token ids "1,2,3") and those of a file, at least one; the first `limit`."""
    prompts: list[Given] = [*(texts or []), *(parse_integers(item, "--tokens") for item in tokens or [])]
    prompts += read_jsonl(prompt_file(file)) if file else []
    if not prompts:
        raise PromptError("no prompt given; use -p TEXT or --tokens 1,2,3 (repeatable), or --prompts FILE.jsonl")
    return prompts[:limit]


def prompt_file(given: Path) -> Path:
    """The file itself, or that of a set which comes with elmoe, by its name; a file of that name goes first."""
    if str(given) in PROMPT_SETS and not given.exists():
        return Path(str(files("elmoe") / "data" / "prompts" / f"{given}.jsonl"))
    return given


def read_jsonl(file: Path) -> list[Given]:
    """One prompt per line: {"prompt": text}, {"token_ids": [id, ...]} or {"turns": [text, ...]}, the first turn taken.

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


def _prompt_of(line: str, where: str) -> Given:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: not JSON: {error}") from error
    fields = value if isinstance(value, dict) else {}
    turns, ids = fields.get("turns"), fields.get("token_ids")
    text = turns[0] if isinstance(turns, list) and turns else fields.get("prompt")
    if isinstance(text, str) and ids is not None:
        raise PromptError(f"{where}: a text and token_ids; leave one of them out")
    if isinstance(text, str):
        return text
    if isinstance(ids, list) and ids and all(type(item) is int for item in ids):
        return ids
    raise PromptError(
        f'{where}: no prompt; write {{"prompt": "text"}}, {{"turns": ["text", ...]}} or {{"token_ids": [1, 2, 3]}}'
    )


def as_asked(
    engine: Engine, given: Sequence[Given], chat: bool | None, variables: Mapping[str, Any] | None = None
) -> list[Prompt]:
    """Raw texts, or token ids of chats with one turn of a user; by default chats where the model has a chat template.

    Token ids stay as they are. variables: for the chat template. Raises PromptError for an empty text and for what the
    template refuses, CheckpointError for a broken template, ConfigError for a text with a model that has no tokenizer,
    a chat with one that has no template, and for variables that are of no use.
    """
    texts = [item for item in given if isinstance(item, str)]
    if any(not text.strip() for text in texts):
        raise PromptError("the prompt is empty; give at least one word")
    tokenizer = engine.tokenizer
    if texts and tokenizer is None:
        raise ConfigError(f"a text needs a tokenizer: {NO_TOKENIZER}")
    if chat and not texts:
        raise ConfigError("--chat is for texts; token ids go to the model as they are")
    has_template = tokenizer is not None and tokenizer.has_chat_template
    if chat and not has_template:
        raise ConfigError("this model has no chat template; use --raw")
    if tokenizer is None or chat is False or not has_template or not texts:
        if variables:
            raise ConfigError("template variables are for chats; leave --template-var or --raw out")
        return list(given)
    _check_variables(variables or {}, tokenizer.template_variables)
    return [
        tokenizer.encode_chat([{"role": "user", "content": item}], variables) if isinstance(item, str) else item
        for item in given
    ]


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
