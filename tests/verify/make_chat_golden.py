"""Makes tests/golden/chat*.json: conversations as transformers renders them, which `make test` compares ours with.

    cd tests && python -m verify.make_chat_golden

``chat.json`` holds those of tiny, with their tokens; ``chat_families.json`` those of ``chat_templates/``, templates of
our own in the manner of the model families. Needs transformers.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import chat_template_utils

from elmoe.checkpoint.resolve import resolve
from verify import prompts

GOLDEN = Path(__file__).parents[1] / "golden"
TEMPLATES = GOLDEN / "chat_templates"
NOW = datetime.datetime(2026, 2, 3, 4, 5, 6)
"""The time that templates are told."""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


class _Clock(datetime.datetime):
    """Stands still."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Clock:
        return cls(*NOW.timetuple()[:6], tzinfo=tz)


def rendered_by_transformers(
    template: str, messages: list[dict[str, Any]], variables: dict[str, Any], prompted: bool
) -> str | None:
    """The text, at the time `NOW`; None where the template refuses the messages."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(resolve("tiny"), chat_template=template, **TOKENS)
    clock, chat_template_utils.datetime = chat_template_utils.datetime, _Clock
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted, **variables)
    except Exception:
        return None
    finally:
        chat_template_utils.datetime = clock


def chats_of_tiny() -> list[dict[str, Any]]:
    """Texts and tokens of tiny's conversations."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(resolve("tiny"))
    return [
        {
            "messages": messages,
            "text": tokenizer.apply_chat_template(messages, tokenize=False),
            "prompt": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
            "ids": tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False),
        }
        for messages in prompts.CONVERSATIONS
    ]


def chats_of_families() -> dict[str, Any]:
    """Every template with every conversation and variables: as a chat to be answered, then as one that has ended."""
    texts = {
        f"{path.stem} {conversation} {variables}": [
            rendered_by_transformers(path.read_text(encoding="utf-8"), messages, given, prompted)
            for prompted in ((True, False) if variables == "none" else (True,))
        ]
        for path in sorted(TEMPLATES.glob("*.jinja"))
        for conversation, messages in prompts.FAMILY_CONVERSATIONS.items()
        for variables, given in prompts.FAMILY_VARIABLES.items()
    }
    return {
        "now": NOW.isoformat(),
        "special_tokens": TOKENS,
        "conversations": prompts.FAMILY_CONVERSATIONS,
        "variables": prompts.FAMILY_VARIABLES,
        "texts": texts,
    }


def write_chats() -> None:
    """Write both files."""
    for name, values in (("chat", chats_of_tiny()), ("chat_families", chats_of_families())):
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        (GOLDEN / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_chats()
