"""Hosts a small ASGI application on listening sockets, with bounds on everything a client can do.

At most so many connections at once, a limit on the time until a request's header is complete, on the time a response
may take to be read and on the life of a connection, and no error of one connection that reaches another.

This module must not know what the application answers.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from functools import partial

import msgspec
import trio

from ztunnel.control.admin import http1
from ztunnel.control.admin.asgi import App, Client
from ztunnel.core.wire.frames import PREFACE

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
    """A connection whose writes end when the client does not read."""

    def __init__(self, stream: trio.SocketStream, write_timeout: float) -> None:
        self._stream = stream
        self._write_timeout = write_timeout

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(self._write_timeout):
            await self._stream.send_all(data)
            return
        raise trio.BrokenResourceError("the client does not read")

    async def receive_some(self, max_bytes: int) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)


class _Server:
    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self._limits = limits
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
        client = _TimedStream(stream, self._limits.write_timeout)
        deadline = trio.current_time() + self._limits.header_timeout
        try:
            with trio.move_on_at(deadline) as beginning:
                received = await _beginning(client)
            if beginning.cancelled_caught:
                return
            converse = http1.converse
            if received == PREFACE:
                from ztunnel.control.admin.http2 import converse  # here and not above: seldom used, and 1.3 MB
            await converse(
                *(self._app, client, received),
                deadline=deadline,
                header_timeout=self._limits.header_timeout,
                header_bytes=self._limits.header_bytes,
            )
        except Exception as error:  # the application's, or the connection broke
            _log.debug("connection ended by an error", exc_info=error)


async def _beginning(client: Client) -> bytes:
    """As many bytes as tell which HTTP it is; none when the client has gone."""
    received = b""
    while received != PREFACE and PREFACE.startswith(received):
        piece = await client.receive_some(len(PREFACE) - len(received))
        if not piece:
            break
        received += piece
    return received


async def _refuse(stream: trio.SocketStream) -> None:
    try:
        await stream.send_all(_FULL)
    except trio.BrokenResourceError:
        _log.debug("the refused client was gone already")


async def serve(
    app: App,
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
