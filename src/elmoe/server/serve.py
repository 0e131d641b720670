"""Runs the application under uvicorn: one process, drained on SIGTERM and Ctrl-C."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from elmoe.engine.engine import Engine
from elmoe.errors import ConfigError, StorageError
from elmoe.server.app import make_app
from elmoe.server.options import ServerOptions
from elmoe.server.service import Service

log = logging.getLogger("elmoe.server")
CLOSING_SECONDS = 2.0
"""What connections are given to take the last bytes once nothing runs any more."""


class DrainingServer(uvicorn.Server):
    """Stops listening on the first signal; what was accepted is finished, within limits. A second signal ends it."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for running requests, then close as uvicorn does."""
        service, seconds = self._service, self._service.options.drain_seconds
        service.draining = True
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        log.info("draining", extra={"requests": service.loop.live, "seconds_at_most": seconds})
        deadline = asyncio.get_running_loop().time() + seconds
        while service.loop.live and not self.force_exit and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if service.loop.live:
            log.warning("ended requests that were not done", extra={"requests": service.loop.live})
            await service.loop.stop()
        await super().shutdown(sockets)


def serve(engine: Engine, options: ServerOptions, announce: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ConfigError for an address that cannot be had.

    announce: told the server's URL and model once it listens.
    """
    listening = listen(options)
    app = make_app(engine, options)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(CLOSING_SECONDS),
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 << 10,
        server_header=False,
    )
    server = DrainingServer(config, app.state.service)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    address = {"url": f"http://{shown}:{port}", "model": options.model_name, "keys": bool(options.keys)}
    log.info("listening", extra=address)
    if announce is not None:
        announce(address)
    if not options.local_only and options.keys is None:
        log.warning("anyone who reaches this port may use the model; --api-key-file asks for keys")
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listening])  # uvicorn raises its signals again when it is done: they have been heeded
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()


def listen(options: ServerOptions) -> socket.socket:
    """A listening socket. Raises ConfigError for an address that is in use or unknown, StorageError for others."""
    where = f"{options.host}:{options.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(f"--host {options.host}: {error.strerror}") from None
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where} is in use; choose another --port") from None
        raise StorageError(f"{where} cannot be listened on: {error.strerror}") from None
    return listening
