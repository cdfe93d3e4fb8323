"""Hosts a small ASGI application on listening sockets, with bounds on everything a client can do.

hypercorn speaks HTTP; this adds what its own `serve` lacks: at most so many connections, a limit on the time a
response may take to be read and on the life of a connection, and no error of one connection that reaches another.
hypercorn's keep-alive time runs from the accept (or the last response) until a request's header is complete, so it is
the header time limit too.

This module must not know what the application answers.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import msgspec
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

_log = logging.getLogger("ztunnel.control.admin.http")

_FULL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, bytes and numbers that bound one server."""

    header_timeout: float = 2.0
    """From the accept, or from the last response, until a request's header is complete (ztunnel: 2 s)."""
    header_bytes: int = 8192
    """ztunnel: 8 KiB."""
    write_timeout: float = 5.0
    """For a client to take one piece of a response."""
    lifetime: float = 60.0
    """Of a connection, however busy."""
    connections: int = 32
    """At once; further ones get 503."""


class _TimedStream:
    """A connection as hypercorn uses it, whose writes end when the client does not read.

    hypercorn shields its writes from cancellation, so the limit has to be in here.
    """

    def __init__(self, stream: trio.SocketStream, write_timeout: float) -> None:
        self._stream = stream
        self._write_timeout = write_timeout
        self.socket = stream.socket

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(self._write_timeout):
            await self._stream.send_all(data)
            return
        raise trio.BrokenResourceError("the client does not read")

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Server:
    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._limits = limits
        self._config = _hypercorn_config(limits)
        self._app = wrap_app(cast(ASGIFramework, app), self._config.wsgi_max_body_size, "asgi")
        self._context = WorkerContext(None)
        self._open = 0

    async def handle(self, stream: trio.SocketStream) -> None:
        if self._open >= self._limits.connections:
            with trio.move_on_after(self._limits.write_timeout):
                await _refuse(stream)
            await trio.aclose_forcefully(stream)
            return
        self._open += 1
        try:
            with trio.move_on_after(self._limits.lifetime):
                await self._converse(stream)
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        timed = _TimedStream(stream, self._limits.write_timeout)
        server = TCPServer(self._app, self._config, self._context, ConnectionState({}), cast(Any, timed))
        try:
            await server.run()
        except Exception as error:  # hypercorn lets some malformed requests escape as errors.
            _log.debug("connection ended by an error", exc_info=error)


async def _refuse(stream: trio.SocketStream) -> None:
    try:
        await stream.send_all(_FULL)
    except trio.BrokenResourceError:
        _log.debug("the refused client was gone already")


def _hypercorn_config(limits: Limits) -> Any:
    config = Config()
    config.errorlog = _log
    config.accesslog = None
    config.include_server_header = False
    config.keep_alive_timeout = limits.header_timeout
    config.h11_max_incomplete_size = limits.header_bytes
    config.h2_max_header_list_size = limits.header_bytes
    config.h2_max_concurrent_streams = 8
    return config


async def serve(
    app: ASGIApp,
    sockets: Sequence[socket.socket],
    limits: Limits | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on sockets that listen already, which are closed at the end, until cancelled."""
    server = _Server(app, limits or Limits())
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, server.handle, listeners, handler_nursery=nursery))
        task_status.started()
