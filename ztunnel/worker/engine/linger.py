"""Closes connections without losing their last bytes.

A plain close may lose them: whatever the peer still sends (window updates, PING) makes the kernel answer with a
reset, which throws away what is still to be sent. So FIN first, and the close when the peer has closed too.
"""

from __future__ import annotations

import select
import socket
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztunnel.worker.engine.loop import Loop

SECONDS = 2.0
"""How long the peer may take."""


class Lingering:
    """The sockets of a loop that wait for their peers to close."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._sockets: set[socket.socket] = set()

    def __len__(self) -> int:
        return len(self._sockets)

    def add(self, sock: socket.socket) -> None:
        """Send FIN and own the socket, whether it is in the loop or not."""
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._loop.close(sock)
            return
        self._sockets.add(sock)
        self._loop.remove(sock.fileno())
        self._loop.add(sock.fileno(), select.EPOLLIN, partial(self._discard, sock))
        self._loop.call_later(SECONDS, partial(self._close, sock))

    def _discard(self, sock: socket.socket, _event: int) -> None:
        try:
            if sock.recv_into(self._loop.scratch.cipher):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        if sock in self._sockets:
            self._sockets.remove(sock)
            self._loop.close(sock)

    def close(self) -> None:
        """All of them now."""
        for sock in list(self._sockets):
            self._close(sock)
