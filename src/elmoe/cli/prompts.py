"""Prompts from the command line and from JSONL files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def as_asked(engine: Engine, texts: Sequence[str], chat: bool | None) -> list[Prompt]:
    """Texts as chat turns of a user, or raw; by default chat where the model has a chat template."""
    if any(not text.strip() for text in texts):
        raise PromptError("the prompt is empty; give at least one word")
    has_template = engine.tokenizer is not None and engine.tokenizer.has_chat_template
    if chat and not has_template:
        raise ConfigError("this model has no chat template; use --raw")
    if chat is False or not has_template:
        return list(texts)
    return [[{"role": "user", "content": text}] for text in texts]
