"""A TLS connection on a non-blocking socket: corked writes, batched reads, back-pressure.

Owns the socket, its TLS session and what could not be sent yet. Knows nothing of HTTP/2: the subclass (`h2.Tunnel`)
gets decrypted bytes in the loop's scratch buffer and writes frames into it.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections import deque

from ztunnel.core.errors import TlsError
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.loop import IN, OUT, Loop
from ztunnel.worker.engine.scratch import CORK_LIMIT, READ_SIZE
from ztunnel.worker.engine.tls import Session

MAX_UNSENT = 16 * 1024 * 1024
"""Bytes that may wait for a peer that does not read; only control frames can pile up that far."""
MAX_IOV = 64
FIRST_READ = 64 * 1024
SMALLEST_READ = 16 * 1024
FRAMES_PER_READ = 4096
"""Frames of one read that are handled without a look at other connections; more make the next read smaller."""


class Transport(ABC):
    """Sealed bytes between a socket and the scratch buffers of its loop."""

    __slots__ = (
        "_appetite",
        "_carry",
        "_fd",
        "_sock",
        "_unsent",
        "_unsent_size",
        "blocked",
        "closed",
        "loop",
        "scratch",
        "session",
    )

    def __init__(self, loop: Loop, sock: socket.socket, session: Session) -> None:
        self.loop = loop
        self.scratch = loop.scratch
        self.session = session
        self.blocked = False
        """The socket takes no more at the moment; streams stop reading their applications."""
        self.closed = False
        self._sock = sock
        self._fd = sock.fileno()
        self._unsent: deque[bytes] = deque()
        self._unsent_size = 0
        self._carry = b""
        self._appetite = FIRST_READ

    # ---- what the subclass does with it ----

    @abstractmethod
    def _on_secured(self) -> None:
        """The TLS handshake is complete."""

    @abstractmethod
    def _on_plain(self, end: int) -> int:
        """Bytes lie in `scratch.plain[:end]`; how many were used up. The rest comes again with the next read."""

    @abstractmethod
    def _on_unblocked(self) -> None:
        """The socket takes bytes again."""

    @abstractmethod
    def close(self, ending: Ending) -> None:
        """End it now; called for every failure of the transport too."""

    # ---- life ----

    def _open(self, *, client: bool) -> None:
        self.loop.add(self._fd, IN, self.on_event)
        if client:
            self._send_sealed(self.session.start())

    def _shut(self, *, linger: bool = False) -> None:
        """Forget and close the socket; what was written before is sent as far as the socket takes it."""
        self.flush_if_corked()
        if not self.blocked:
            self._send_sealed(self.session.close_notify())
        self.closed = True
        self._unsent.clear()
        if linger:
            self.loop.lingering.add(self._sock)
        else:
            self.loop.close(self._sock)

    # ---- reading ----

    def on_event(self, event: int) -> None:
        if event != IN:
            if event & OUT and self.blocked:
                self._on_writable()
            if not event & ~OUT or self.closed:
                return
        scratch = self.scratch
        try:
            size = self._sock.recv_into(scratch.cipher, self._appetite)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(Ending(f"the connection to the peer failed: {error.strerror}"))
            return
        if not size:
            self.close(Ending("the peer closed the connection"))
            return
        session = self.session
        carry = self._carry
        start = len(carry)
        if start:
            scratch.plain[:start] = carry
        try:
            end = session.read(size, start) if session.established else self._shake_hands(size)
        except TlsError as error:
            self._send_sealed(session.take_output())
            self.close(Ending(str(error), error.flag))
            return
        if end and not self.closed:
            used = self._on_plain(end)
            if used < end:
                self._carry = bytes(scratch.plain_view[used:end])
            elif start:
                self._carry = b""
        if session.closed and not self.closed:
            self.close(Ending("the peer closed the connection"))

    def _shake_hands(self, size: int) -> int:
        """The handshake goes on; the end of what the peer sent behind its own last message of it."""
        end = self.session.shake_hands(size)
        if self.session.established:
            self._on_secured()
        if self.loop.corked is not self:  # else what the handshake says last leaves with what is corked
            self._send_sealed(self.session.take_output())
        return end

    def _digested(self, frames: int) -> None:
        """A read held so many frames: tiny ones cost the neighbours time, so less is read of them at once."""
        if frames > FRAMES_PER_READ:
            self._appetite = max(SMALLEST_READ, self._appetite * FRAMES_PER_READ // frames)
        else:
            self._appetite = min(READ_SIZE, self._appetite * 2)

    # ---- writing ----

    def claim(self, size: int) -> int:
        """Where `size` bytes may be written into `scratch.clear`; `scratch.used` grows by what was."""
        loop = self.loop
        scratch = self.scratch
        if loop.corked is self:
            if scratch.used + size <= CORK_LIMIT:
                return scratch.used
            self.flush()
        while loop.corked is not None:
            loop.corked.flush()
        loop.corked = self
        if not loop.in_turn:
            loop.wake()
        scratch.used = 0
        return 0

    def write(self, data: bytes) -> None:
        """Queue bytes for this turn's record; nothing happens on a closed transport."""
        if self.closed:
            return
        at = self.claim(len(data))
        end = at + len(data)
        self.scratch.clear[at:end] = data
        self.scratch.used = end

    def flush_if_corked(self) -> None:
        if self.loop.corked is self:
            self.flush()

    def flush(self) -> None:
        """Seal and send what this transport has corked."""
        self.loop.corked = None
        size = self.scratch.used
        self.scratch.used = 0
        if size and not self.closed:
            try:
                sealed = self.session.seal(size)
            except TlsError as error:
                self._fail_soon(Ending(str(error), error.flag))
                return
            self._send_sealed(sealed)

    def _send_sealed(self, size: int) -> None:
        if not size or self.closed:
            return
        view = self.scratch.sealed_view[:size]
        sent = 0
        if not self.blocked:
            try:
                sent = self._sock.send(view)
            except BlockingIOError:
                pass
            except OSError as error:
                self._fail_soon(Ending(f"the connection to the peer failed: {error.strerror}"))
                return
            if sent == size:
                return
            self.blocked = True
            self.loop.modify(self._fd, IN | OUT)
        self._unsent.append(bytes(view[sent:]))
        self._unsent_size += size - sent
        if self._unsent_size > MAX_UNSENT:
            self._fail_soon(Ending("the peer does not read what it asks for"))

    def _fail_soon(self, ending: Ending) -> None:
        """Close at the end of the turn: the caller may be in the middle of something."""
        self.loop.call_soon(lambda: self.close(ending))

    def _on_writable(self) -> None:
        unsent = self._unsent
        try:
            sent = self._sock.sendmsg([unsent[i] for i in range(min(len(unsent), MAX_IOV))])
        except BlockingIOError:
            return
        except OSError as error:
            self.close(Ending(f"the connection to the peer failed: {error.strerror}"))
            return
        self._unsent_size -= sent
        while unsent and sent >= len(unsent[0]):
            sent -= len(unsent.popleft())
        if sent:
            unsent[0] = unsent[0][sent:]
        if not unsent:
            self.blocked = False
            self.loop.modify(self._fd, IN)
            self._on_unblocked()
