"""Server-sent events that end when the client has gone, and answers that need not be computed for nobody.

Knows nothing about what is sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from elmoe.server.middleware import Message, Receive, Send

T = TypeVar("T")
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
DONE = b"data: [DONE]\n\n"


def event(document: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends pieces as they come. A reader that takes none for `patience_seconds` is left."""

    def __init__(self, pieces: AsyncGenerator[bytes], patience_seconds: float) -> None:
        super().__init__()
        self._pieces, self._patience_seconds = pieces, patience_seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI
        """Run until all is sent or the client has gone."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        writing = asyncio.ensure_future(self._write(send))
        await _first_of(writing, receive)
        await self._pieces.aclose()

    async def _write(self, send: Send) -> None:
        async for piece in self._pieces:
            async with asyncio.timeout(self._patience_seconds):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes. Raises ClientDisconnect then."""
    working = asyncio.ensure_future(work)
    await _first_of(working, request.receive)
    if working.cancelled():
        raise ClientDisconnect
    return working.result()


async def _first_of(working: asyncio.Future[Any], receive: Receive) -> None:
    """Wait for the work, cancelling it when the client goes; its result or error is left in it."""
    watching = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
