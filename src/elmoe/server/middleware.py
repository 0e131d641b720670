"""What every HTTP request passes: host, key and size checks, a number for the log, and the log line itself.

Plain ASGI, so that streams are not buffered. Knows nothing about models.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from elmoe.server.errors import ApiError
from elmoe.server.options import LOOPBACK, ServerOptions

log = logging.getLogger("elmoe.server.access")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")
"""What can be had without a key: nothing about models or users."""
OPEN_FOLDER = "/page/"


class Gate:
    """Lets a request through to the application, or answers it."""

    def __init__(self, app: App, options: ServerOptions) -> None:
        self._app, self._options = app, options

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, number, status = time.perf_counter(), uuid.uuid4().hex[:16], 0
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", number.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        state = scope.setdefault("state", {})
        state["number"], state["arrived"] = number, started
        try:
            self._check_host(headers)
            state["client"] = self._client(scope, headers)
            await self._app(scope, self._measured(headers, receive), numbered)
        except ApiError as error:
            if not status:
                await answer_error(error, numbered)
        finally:
            log.info(
                "request",
                extra={
                    "request": number,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "client": state.get("client", ""),
                    "seconds": round(time.perf_counter() - started, 4),
                },
            )

    def _check_host(self, headers: dict[str, str]) -> None:
        """A page from elsewhere must not reach a local server under a name that it made point here."""
        if not self._options.local_only:
            return
        host = headers.get("host", "")
        name = host[: host.index("]") + 1].strip("[]") if host.startswith("[") and "]" in host else host.split(":")[0]
        if name not in (*LOOPBACK, "testserver", ""):
            raise ApiError(421, f"this server answers to localhost only, not to {name!r}; start it with --host", "host")

    def _client(self, scope: Message, headers: dict[str, str]) -> str:
        """Whose request it is: the name of its key, or where it comes from. Raises ApiError 401."""
        keys = self._options.keys
        if keys is None or scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER):
            return str((scope.get("client") or ("",))[0])
        scheme, _, key = headers.get("authorization", "").partition(" ")
        name = keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise ApiError(401, "give a valid API key as 'Authorization: Bearer KEY'", "invalid_api_key")
        return name

    def _measured(self, headers: dict[str, str], receive: Receive) -> Receive:
        """`receive` that refuses a body beyond the limit, by what it says and by what comes."""
        most, total = self._options.max_body_bytes, 0
        text = f"the body is larger than the {most:,} bytes that this server reads; shorten the request"
        error = ApiError(413, text, "body_too_large")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise error

        async def limited() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > most:
                raise error
            return message

        return limited


async def answer_error(error: ApiError, send: Send) -> None:
    """The error as a whole response."""
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_headers(error: ApiError) -> dict[str, str]:
    """Headers that go with an error."""
    if error.retry_after_seconds is not None:
        return {"retry-after": str(error.retry_after_seconds)}
    if error.status == 401:
        return {"www-authenticate": "Bearer"}
    return {"connection": "close"} if error.status == 413 else {}
