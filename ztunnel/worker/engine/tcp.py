"""Plain TCP of the engine: accepting in batches, connecting without waiting, options, resets."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from ztunnel.core.model.address import Address
from ztunnel.linux.sockets import accept
from ztunnel.worker.engine.loop import IN, OUT, Deadlines, Loop

ACCEPT_BATCH = 64
"""Connections taken per readiness event; more would delay the bytes of those that are open."""
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
ACCEPT_PAUSE = 0.1
"""Seconds without accepting when descriptors or memory have run out."""
NOTSENT_LOWAT = 25
"""TCP_NOTSENT_LOWAT (linux/tcp.h)."""
_LINGER_ZERO = struct.pack("ii", 1, 0)

log = logging.getLogger("ztunnel.worker.engine.tcp")


class SocketOptions(NamedTuple):
    """Keepalive in seconds; `user_timeout` in milliseconds, 0 leaves the system's."""

    keepalive: bool = True
    keepalive_time: int = 180
    keepalive_interval: int = 180
    keepalive_retries: int = 9
    user_timeout: int = 0
    congestion: str = ""
    """Name of the congestion control; empty leaves the host's choice."""
    notsent_lowat: int = 128 * 1024
    """Unsent bytes in the kernel at which a socket stops being writable; 0 leaves the host's choice."""

    def apply(self, sock: socket.socket) -> None:
        """TCP_NODELAY always, the rest as configured. Raises OSError for a congestion control that is not there."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.notsent_lowat:
            sock.setsockopt(socket.IPPROTO_TCP, NOTSENT_LOWAT, self.notsent_lowat)
        if self.congestion:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self.congestion.encode())
        if self.keepalive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self.keepalive_time)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, self.keepalive_interval)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, self.keepalive_retries)
        if self.user_timeout:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self.user_timeout)


def abort_on_close(sock: socket.socket) -> None:
    """Make the coming close send RST instead of FIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    except OSError:
        return


class Listener:
    """Accepts in batches and hands each socket on; `take(sock, peer)` owns the socket."""

    def __init__(self, loop: Loop, sock: socket.socket, take: Callable[[socket.socket, Any], None]) -> None:
        self._loop = loop
        self._sock = sock
        self._family = int(sock.family)
        self._take = take
        self._open = True
        loop.add(sock.fileno(), IN, self._on_event)

    def __repr__(self) -> str:
        return f"<Listener fd {self._sock.fileno()}>"

    def _on_event(self, _event: int) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, peer = accept(self._sock, self._family)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    log.error("cannot accept connections: %s; raise the limit of open files", error.strerror)
                    self._loop.modify(self._sock.fileno(), 0)
                    self._loop.call_later(ACCEPT_PAUSE, self._resume)
                    return
                continue
            try:
                self._take(sock, peer)
            except Exception:
                # A bug in the set-up of one connection ends that one, never the listener.
                log.exception("the connection from %s could not be set up; it is closed", peer)
                sock.close()
            if not self._open:
                return

    def _resume(self) -> None:
        if self._open:
            self._loop.modify(self._sock.fileno(), IN)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.close(self._sock)


Connected = Callable[[OSError | None], None]


class Dialler:
    """Connects sockets; a connection that completes at once is reported before `connect` returns."""

    def __init__(self, loop: Loop, timeout: float) -> None:
        self._loop = loop
        self._timeout = timeout
        self._waiting: dict[socket.socket, Connected] = {}
        self._deadlines = Deadlines(loop, timeout, self._expired)

    def connect(self, sock: socket.socket, address: Address, done: Connected) -> None:
        """`done(None)` when connected, `done(error)` when not; the socket stays the caller's in both cases."""
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            # On one host the handshake is often over by now: asking again is cheaper than waiting.
            code = sock.connect_ex(address)
            if code == errno.EALREADY:
                self._wait(sock, done)
                return
        if code in (0, errno.EISCONN):
            done(None)
        else:
            done(OSError(code, os.strerror(code)))

    def cancel(self, sock: socket.socket) -> None:
        """Forget a connect under way; `done` is not called."""
        if self._waiting.pop(sock, None) is not None:
            self._deadlines.discard(sock)
            self._loop.remove(sock.fileno())

    def _wait(self, sock: socket.socket, done: Connected) -> None:
        self._waiting[sock] = done
        self._deadlines.add(sock)

        def on_event(_event: int) -> None:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._settle(sock, OSError(code, os.strerror(code)) if code else None)

        self._loop.add(sock.fileno(), OUT, on_event)

    def _expired(self, sock: Any) -> None:
        self._settle(sock, TimeoutError(errno.ETIMEDOUT, f"no answer within {self._timeout:g} s"))

    def _settle(self, sock: socket.socket, error: OSError | None) -> None:
        done = self._waiting.pop(sock, None)
        if done is not None:
            self._deadlines.discard(sock)
            self._loop.remove(sock.fileno())
            done(error)
