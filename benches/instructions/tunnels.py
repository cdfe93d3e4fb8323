"""Two tunnels of one loop that talk TLS over a socket pair, with applications at both ends: the engine alone.

Nothing here depends on time: every step goes on when the kernel has what it waits for, and a socket pair has it at
once. The owners do as little as owners can, so that what is counted is the engine.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from ztunnel.control.identity.ca import MemoryCa
from ztunnel.core.model.identity import Identity
from ztunnel.core.wire import frames
from ztunnel.worker.engine.agreement import Settings
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Tunnel
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.stream import Stream
from ztunnel.worker.engine.tls import Context

Result = TypeVar("Result")

CLIENT = Identity("cluster.local", "demo", "client")
SERVER = Identity("cluster.local", "demo", "server")
CONNECT = frames.encode_headers([(":method", "CONNECT"), (":authority", "10.0.0.2:80")])
PATIENCE = 600
"""Turns of at most a second that a step may take under an emulator on a busy machine."""


def turn_until(loop: Loop, condition: Callable[[], object]) -> None:
    for _ in range(PATIENCE):
        if condition():
            return
        loop.turn(1.0)
    raise RuntimeError("the engine did not get to where it should")


def once_ready(loop: Loop, call: Callable[[], Result]) -> Result:
    """The result of a non-blocking call, taking turns until it has one."""
    for _ in range(PATIENCE):
        try:
            return call()
        except BlockingIOError:
            loop.turn(1.0)
    raise RuntimeError("the engine did not deliver what it should")


def transfer(loop: Loop, source: socket.socket, target: socket.socket, data: bytes) -> None:
    """Send what fits into the socket's buffer at once, and receive it at the other end."""
    if source.send(data) != len(data):
        raise RuntimeError(f"the kernel's socket buffers do not hold {len(data)} bytes")
    size = len(data)
    got = 0
    while got < size:
        got += len(once_ready(loop, lambda: target.recv(size)))


def socket_pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


class _Quiet:
    """A stream's owner that only knows whether it is over."""

    def __init__(self) -> None:
        self.over = False

    def opened(self, headers: list[tuple[bytes, bytes]]) -> None:
        pass

    def returned(self, sock: socket.socket, ending: Ending) -> None:
        raise RuntimeError(f"a request came back: {ending.error}")

    def refused(self, status: int) -> None:
        raise RuntimeError(f"refused with {status}")

    def ended(self, ending: Ending) -> None:
        self.over = True


class _Side:
    """A tunnel's owner that accepts every request and keeps the application's end of it."""

    def __init__(self) -> None:
        self.is_ready = False
        self.served: list[socket.socket] = []

    def secured(self, tunnel: Tunnel) -> None:
        pass

    def ready(self, tunnel: Tunnel) -> None:
        self.is_ready = True

    def requested(self, stream: Stream, headers: list[tuple[bytes, bytes]]) -> None:
        near, far = socket_pair()
        self.served.append(far)
        stream.attach(near)
        stream.tunnel.accept(stream, frames.RESPONSE_200, _Quiet())

    def changed(self, tunnel: Tunnel) -> None:
        pass

    def closed(self, tunnel: Tunnel, ending: Ending) -> None:
        pass


class Tunnels:
    """A context manager; `client` and `server` are ready inside it, with `streams` open ones that stay idle."""

    def __init__(self, streams: int = 0) -> None:
        now = time.time()
        ca = MemoryCa(now=now)
        self.loop = Loop()
        self._side = _Side()
        self._idle: list[socket.socket] = []
        mine = _Side()
        ends = socket_pair()
        made = []
        for identity, sock, owner in ((SERVER, ends[0], self._side), (CLIENT, ends[1], mine)):
            is_server = identity is SERVER
            issued = ca.issue(identity, ttl=3600.0, now=now).message(identity)
            session = Context(issued, server=is_server).session(self.loop.scratch, lambda names: None)
            made.append(Tunnel(self.loop, sock, session, owner, Settings(), client=not is_server))
        self.server, self.client = made
        turn_until(self.loop, lambda: mine.is_ready and self._side.is_ready)
        for _ in range(streams):
            self._idle += self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for tunnel in (self.client, self.server):
            tunnel.close(Ending("the measurement is over"))
        self.loop.shutdown()
        for sock in self._idle:
            sock.close()

    def open(self) -> tuple[socket.socket, socket.socket]:
        """The applications' ends of a new stream: client's, server's."""
        app, inner = socket_pair()
        stream = self.client.open_stream(CONNECT, _Quiet())
        stream.attach(inner)
        turn_until(self.loop, lambda: self._side.served and stream.answered)
        return app, self._side.served.pop()

    def close(self, app: socket.socket, served: socket.socket) -> None:
        """End a stream that `open` gave in order: FIN from the client, then from the server."""
        left = len(self.client.streams) - 1
        app.shutdown(socket.SHUT_WR)
        if once_ready(self.loop, lambda: served.recv(1)):
            raise RuntimeError("bytes where the end should be")
        served.close()
        turn_until(self.loop, lambda: len(self.client.streams) == left and len(self.server.streams) == left)
        app.close()
