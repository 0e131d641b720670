"""A small HTTP client on asyncio streams, light enough not to be what is measured: documents, server-sent events.

It can do what proper clients do not: send broken bodies, read slowly, and go away in the middle.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass
class Connection:
    """One request on a connection of its own; an async context manager."""

    url: str
    timeout_seconds: float = 300.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        parts = urlsplit(self.url)
        self._streams = await asyncio.open_connection(parts.hostname, parts.port)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        assert self._streams is not None
        self._streams[1].close()

    async def post(self, path: str, body: Any) -> None:
        """Send a document, or bytes as they are, and read the head of the answer."""
        assert self._streams is not None
        reader, writer = self._streams
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(self.url).netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        async with asyncio.timeout(self.timeout_seconds):
            await writer.drain()
            raw = await reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines if line)}

    async def document(self) -> Any:
        """The whole answer as JSON."""
        return json.loads(b"".join([piece async for piece in self._pieces()]))

    async def events(self, pause_seconds: float = 0.0) -> AsyncIterator[Any]:
        """Server-sent events as they come, until ``[DONE]``; a slow reader pauses before each read."""
        held = b""
        async for piece in self._pieces(pause_seconds):
            *whole, held = (held + piece).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in whole:
                data = event.removeprefix(b"data: ")
                if data == b"[DONE]":
                    return
                if data:
                    yield json.loads(data)
        raise ConnectionError("the stream ended before [DONE]")

    async def _pieces(self, pause_seconds: float = 0.0) -> AsyncIterator[bytes]:
        assert self._streams is not None
        reader = self._streams[0]
        async with asyncio.timeout(self.timeout_seconds):
            if self.headers.get("transfer-encoding") != "chunked":
                yield await reader.readexactly(int(self.headers["content-length"]))
                return
            while True:
                if pause_seconds:
                    await asyncio.sleep(pause_seconds)
                size = int(await reader.readline(), 16)
                piece = await reader.readexactly(size + 2)
                if not size:
                    return
                yield piece[:-2]
