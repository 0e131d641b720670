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
