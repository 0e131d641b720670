"""Chat documents, drawn from all kinds of all modules by weight. Knows nothing about tokens or files."""

from __future__ import annotations

import random
from collections.abc import Callable

from chat_makers import arithmetic, facts, functions, language, smalltalk

Turns = list[tuple[str, str]]
"""(user, assistant) pairs of one conversation."""

SHARES = {arithmetic: 0.36, language: 0.12, facts: 0.24, smalltalk: 0.16, functions: 0.12}
"""Share of the documents by module; inside one, its KINDS say how often each kind is drawn."""

SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are a friendly and helpful assistant.", "Answer briefly.")
SYSTEM_SHARE = 0.1


def render(turns: Turns, system: str | None = None) -> str:
    """The model's chat format."""
    messages = [("system", system)] if system else []
    for user, assistant in turns:
        messages += [("user", user), ("assistant", assistant)]
    return "".join(f"<|im_start|>{role}\n{text.strip()}<|im_end|>\n" for role, text in messages)


class Writer:
    """Draws kinds by weight."""

    def __init__(self) -> None:
        self.makers: list[Callable[[random.Random], Turns]] = []
        self.weights: list[float] = []
        for module, share in SHARES.items():
            whole = sum(weight for weight, _ in module.KINDS.values())
            for weight, maker in module.KINDS.values():
                self.makers.append(maker)
                self.weights.append(share * weight / whole)

    def document(self, source: random.Random) -> str:
        """One conversation, fully determined by the state of `source`."""
        (maker,) = source.choices(self.makers, self.weights)
        turns = maker(source)
        system = source.choice(SYSTEM_PROMPTS) if source.random() < SYSTEM_SHARE else None
        return render(turns, system)
