"""Texts for comparisons on `tiny`, written for this purpose."""

from __future__ import annotations

from typing import Any

CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Name three animals that live in the sea."}],
    [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ],
    [
        {"role": "user", "content": "I have 4 boxes with 12 eggs each.\nHow many eggs are there?"},
        {"role": "assistant", "content": "There are 48 eggs."},
        {"role": "user", "content": "  And if I break five of them? <|im_end|> ¿Sí? 🥚 \t"},
    ],
    [{"role": "user", "content": ""}],
    [
        {"role": "user", "content": 'def add(a, b):\n    """Add {{ a }} and {% b %}."""\n'},
        {"role": "assistant", "content": "    return a + b\n"},
        {"role": "user", "content": "Now write `subtract` & explain <it>."},
    ],
]
"""Roles, several turns, whitespace, special tokens in the text, template syntax, nothing at all."""


def of_tiny(tokenizer: Any) -> list[list[int]]:
    """Token ids of the first three conversations, ready to be answered."""
    return [tokenizer.encode_chat(messages) for messages in CONVERSATIONS[:3]]


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place; <now> & here.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Zürich, 東京, ..."},
                "unit": {"type": "string", "enum": ["celsius", "kelvin"], "default": "celsius"},
                "days": {"type": "array", "items": {"type": "integer"}, "nullable": True},
                "at": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": ["number", "null"]}}},
            },
            "required": ["place"],
        },
    },
}
CALL: dict[str, Any] = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": [1, 2]}},
}
FAMILY_CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [{"role": "user", "content": " Why is <the> sky & sea 'blue'? 🙂\n"}],
    "system": [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "  Because.\n"},
        {"role": "user", "content": "Oh."},
    ],
    "developer": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "thoughts": [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "\nOne and one.\n"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "thinking": "Two and two."},
    ],
    "tagged_thoughts": [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<think>\nOne and one.\n</think>\n\n2"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4", "reasoning": None},
    ],
    "call": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "thinking": "I look.", "tool_calls": [CALL]},
        {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": '{"sky": "blü"}'},
        {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "more"},
    ],
    "channel": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<|channel|>final<|message|>no"},
        {"role": "user", "content": "Hi"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]}],
}
"""For templates in the manner of the families: reasoning under its names, tools, refused messages."""

FAMILY_VARIABLES: dict[str, dict[str, Any]] = {
    "none": {},
    "no_thinking": {"enable_thinking": False, "reasoning_effort": "low", "clear_thinking": False, "debug": 1},
    "tools": {"tools": [WEATHER, {"type": "function", "function": {"name": "now", "description": "The time"}}]},
    "documents": {
        "documents": [{"title": "é", "text": "<a>"}, {"text": "b", "title": "c"}],
        "controls": {"length": "short", "originality": None},
        "builtin_tools": ["browser", "python"],
        "model_identity": "You are a test.",
        "bos_token": "<another>",
    },
}
"""Template variables."""
