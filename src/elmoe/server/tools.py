"""Tool calls in what a model writes, as the API tells them. Knows nothing about grammars or requests."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from elmoe.checkpoint.reasoning import CallPiece
from elmoe.server.structured import CALL_CLOSE, CALL_OPEN

RECIPIENT = "functions."


@dataclass(frozen=True)
class CallDelta:
    """What is new of one call."""

    index: int
    name: str | None
    """With the call's first piece."""
    arguments: str

    def as_dict(self, identity: str) -> dict[str, Any]:
        """An entry of ``delta.tool_calls``."""
        function: dict[str, Any] = {"arguments": self.arguments}
        if self.name is None:
            return {"index": self.index, "function": function}
        return {"index": self.index, "id": identity, "type": "function", "function": {"name": self.name, **function}}


class HermesCalls:
    """Takes ``<tool_call>{...}</tool_call>`` out of a text that comes in pieces.

    A call is given out when it is whole; what is no call of JSON stays text.
    """

    def __init__(self) -> None:
        self._held, self._inside, self._count = "", False, 0

    def feed(self, piece: str) -> tuple[str, list[CallDelta]]:
        """(text, calls) that are certain now."""
        self._held += piece
        text, calls = "", []
        while True:
            mark = CALL_CLOSE if self._inside else CALL_OPEN
            place = self._held.find(mark)
            if place < 0:
                break
            before, self._held = self._held[:place], self._held[place + len(mark) :]
            if self._inside:
                call = self._call(before)
                text += f"{CALL_OPEN}{before}{CALL_CLOSE}" if call is None else ""
                calls += [] if call is None else [call]
            else:
                text += before
            self._inside = not self._inside
        if not self._inside:
            certain = len(self._held) - _started(self._held, CALL_OPEN)
            text, self._held = text + self._held[:certain], self._held[certain:]
        if self._count:
            text = text.strip("\n")  # between calls
        return text, calls

    def finish(self) -> tuple[str, list[CallDelta]]:
        """What was held back: a call that is not closed is one if its JSON is whole."""
        held, self._held = self._held, ""
        if not self._inside:
            return held, []
        call = self._call(held)
        return ("", [call]) if call else (CALL_OPEN + held, [])

    def _call(self, body: str) -> CallDelta | None:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        self._count += 1
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return CallDelta(self._count - 1, value["name"], text)


class HarmonyCalls:
    """Pieces of messages to ``functions.NAME``."""

    def __init__(self) -> None:
        self._begun = -1

    def feed(self, pieces: Iterable[CallPiece]) -> list[CallDelta]:
        """As the API tells them."""
        deltas = []
        for piece in pieces:
            name = piece.recipient.removeprefix(RECIPIENT) if piece.index > self._begun else None
            self._begun = max(self._begun, piece.index)
            deltas.append(CallDelta(piece.index, name, piece.text))
        return deltas


def new_call_id() -> str:
    """As the API makes them."""
    return f"call_{secrets.token_hex(12)}"


def _started(text: str, mark: str) -> int:
    """Length of the end of a text with which a mark may begin."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)
