"""One CONNECT stream with an application's socket attached: bytes from the one become DATA of the other.

Owns the relay between socket and stream: back-pressure both ways, half-close both ways, resets both ways. Knows
the tunnel it lives in (`h2.Tunnel`) but not who is allowed to open it.

States of an application's socket: none yet (request received or sent), attached and reading, attached and paused
(no window, or the tunnel's socket is full), at end of file. What arrives before a socket is attached waits in the
stream, bounded by the receive window.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from ztunnel.core.wire import frames
from ztunnel.core.wire.frames import HEADER_SIZE, pack_header
from ztunnel.worker.engine.ending import FINISHED, RESET_BY_APPLICATION, RESET_BY_PEER, Ending
from ztunnel.worker.engine.loop import FAILED, HUNG_UP, IN, OUT, PARKED
from ztunnel.worker.engine.scratch import READ_SIZE
from ztunnel.worker.engine.tcp import abort_on_close

if TYPE_CHECKING:
    from ztunnel.worker.engine.h2 import Tunnel

CORK_BELOW = 8 * 1024
"""Reads smaller than this wait for the end of the turn, so that several share one TLS record."""
MAX_IOV = 64
SMALL_PIECE = 16 * 1024
"""Queued pieces below this are joined: a peer's tiny frames must not cost more memory than the window says."""


class StreamOwner(Protocol):
    """Whoever opened or accepted the stream; each call comes at most once, `ended` or `returned` always last."""

    def opened(self, headers: list[tuple[bytes, bytes]]) -> None:
        """The peer answered 200; bytes flow from now on."""

    def refused(self, status: int) -> None:
        """The peer answered something else; `ended` follows."""

    def ended(self, ending: Ending) -> None:
        """Nothing of the stream is left; its byte counts are final."""

    def returned(self, sock: socket.socket, ending: Ending) -> None:
        """The peer never looked at the request: here is the application's socket, untouched, for another tunnel."""


class Joined(Protocol):
    """What carries the bytes when a stream is only a leash."""

    def leash_ended(self, ending: Ending) -> None:
        """The stream is over, and with it the right to carry on."""


class Stream:
    __slots__ = (
        "_consumed",
        "_ending",
        "_events",
        "_fd",
        "_joined",
        "_queue",
        "_read_done",
        "_receive_window",
        "_sock",
        "_unheard",
        "answered",
        "closed",
        "id",
        "owner",
        "received",
        "remote_ended",
        "sent",
        "tunnel",
        "window",
    )

    def __init__(self, tunnel: Tunnel, stream_id: int, window: int, receive_window: int) -> None:
        self.tunnel = tunnel
        self.id = stream_id
        self.window = window
        """Bytes the peer lets us send on this stream."""
        self.owner: StreamOwner | None = None
        self.answered = False
        self.sent = 0
        """Bytes from the application into the tunnel."""
        self.received = 0
        """Bytes from the tunnel to the application."""
        self._receive_window = receive_window
        self._consumed = 0
        self._sock: Any = None
        """The application's; never None while the loop watches it."""
        self._fd = -1
        self._events = 0
        self._queue: deque[bytearray | memoryview] | None = None
        self._read_done = False
        self.remote_ended = False
        """The peer sent END_STREAM: it may send nothing more but WINDOW_UPDATE, PRIORITY and RST_STREAM."""
        self.closed = False
        """It is not one of the tunnel's streams any more."""
        self._unheard = False
        """The peer listens no more, but the application may still be speaking."""
        self._ending: Ending | None = None
        self._joined: Joined | None = None

    def __repr__(self) -> str:
        return f"<Stream {self.id} of {self.tunnel!r}, {self.sent} bytes sent, {self.received} received>"

    @property
    def buffered(self) -> int:
        """Bytes that wait for the application to read them."""
        return sum(map(len, self._queue)) if self._queue else 0

    @property
    def pieces(self) -> int:
        """In how many pieces they wait."""
        return len(self._queue) if self._queue else 0

    # ---- set-up ----

    def attach(self, sock: socket.socket) -> None:
        """Join the application's socket to the stream; the stream owns it from now on."""
        self._sock = sock
        self._fd = sock.fileno()

    def join(self, joined: Joined) -> socket.socket | None:
        """Become a leash: the bytes take another way, this stream only says that they may. Gives up the socket."""
        self._joined = joined
        self._receive_window = 0
        sock: socket.socket | None = self._sock
        self._sock = None
        self._fd = -1
        return sock

    def end_leash(self) -> None:
        """Both directions of the join have ended with FIN; so does the stream."""
        if not self.closed:
            self._read_done = True
            self.tunnel.write(frames.end_stream(self.id))
            self._finish_if_done()

    def start(self) -> None:
        """Begin to carry bytes. The socket is attached, unless the stream is a leash."""
        self.answered = True
        if self._joined is not None:
            return
        self._events = IN
        if self._queue:
            self._events |= OUT
        self.tunnel.loop.add(self._fd, self._events, self.on_event)
        if self.remote_ended and not self._queue:
            self._shut_down_write()

    def start_closed(self) -> None:
        """The stream ended while its socket was being made: the application is reset, the owner told."""
        sock, self._sock = self._sock, None
        self._fd = -1
        if sock is not None:
            abort_on_close(sock)
            self.tunnel.loop.close(sock)
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.ended(self._ending or RESET_BY_PEER)

    # ---- application to tunnel ----

    def on_event(self, event: int) -> None:
        if event == IN:
            if self._events & IN:
                self._on_readable()
            return
        if event & (OUT | FAILED | HUNG_UP) and self._queue:
            self._on_writable()
            if self._fd < 0:
                return
        if self._events & IN:
            if event & ~OUT:
                self._on_readable()
        elif event & FAILED:
            self._on_error()
        elif event & HUNG_UP:
            # Both directions have ended, but bytes of the application still wait for a window: not a failure.
            # The kernel would report this on and on, so the socket is not watched until they can be read.
            self.tunnel.loop.remove(self._fd)
            self._events = PARKED

    def _watch(self, events: int) -> None:
        if events == self._events or self._fd < 0:
            return
        if self._events == PARKED:
            self.tunnel.loop.add(self._fd, events, self.on_event)
        else:
            self.tunnel.loop.modify(self._fd, events)
        self._events = events

    def resume(self) -> None:
        """There is a window again: read on."""
        self._watch(self._watched | IN)

    @property
    def _watched(self) -> int:
        return 0 if self._events == PARKED else self._events

    def _on_readable(self) -> None:
        tunnel = self.tunnel
        limit = self.window
        if tunnel.window < limit:
            limit = tunnel.window
        if limit <= 0 or tunnel.blocked:
            self._pause()
            return
        most = tunnel.read_most
        if limit > most:
            if limit >= READ_SIZE > most:
                self._read_frames()
                return
            limit = most
        scratch = tunnel.scratch
        loop = tunnel.loop
        at = 0 if loop.corked is None else tunnel.claim(HEADER_SIZE + limit)
        try:
            if at:
                start = at + HEADER_SIZE
                size = self._sock.recv_into(scratch.clear_view[start : start + limit])
            else:
                size = self._sock.recv_into(scratch.clear_body, limit)
        except BlockingIOError:
            return
        except OSError:
            self._on_error()
            return
        if not size:
            self._end_of_file()
            return
        pack_header(scratch.clear, at, size >> 8, size & 255, 0, 0, self.id)
        self.window -= size
        tunnel.window -= size
        self.sent += size
        scratch.used = at + HEADER_SIZE + size
        loop.corked = tunnel
        if size >= CORK_BELOW:
            tunnel.flush()
        elif not loop.in_turn:
            loop.wake()

    def _pause(self) -> None:
        """Nothing may be sent now; without a window that matters only once there are bytes."""
        tunnel = self.tunnel
        if tunnel.blocked or self._has_bytes():
            self._watch(self._events & ~IN)
            tunnel.paused[self.id] = self

    def _read_frames(self) -> None:
        """One large read, laid out as several DATA frames for a peer that takes only small ones."""
        tunnel = self.tunnel
        scratch = tunnel.scratch
        if tunnel.claim(READ_SIZE):
            tunnel.flush()
            tunnel.claim(READ_SIZE)
            if tunnel.blocked:
                return
        piece = tunnel.peer_frame
        try:
            size = self._sock.recvmsg_into(scratch.frame_views(piece))[0]
        except BlockingIOError:
            return
        except OSError:
            self._on_error()
            return
        if not size:
            self._end_of_file()
            return
        self.window -= size
        tunnel.window -= size
        self.sent += size
        at, left = 0, size
        while left > 0:
            length = piece if left > piece else left
            pack_header(scratch.clear, at, length >> 8, length & 255, 0, 0, self.id)
            at += length + HEADER_SIZE
            left -= length
        scratch.used = at
        if size >= CORK_BELOW:
            tunnel.flush()

    def _has_bytes(self) -> bool:
        """Whether there is something that needs a window; the application's end and its reset need none."""
        try:
            if self._sock.recv(1, socket.MSG_PEEK):
                return True
        except BlockingIOError:
            return False
        except OSError:
            self._on_error()
            return False
        self._end_of_file()
        return False

    def _end_of_file(self) -> None:
        self._read_done = True
        if not self.remote_ended or self._queue is not None:  # else the socket is closed at once
            self._watch(self._events & ~IN)
        self.tunnel.write(frames.end_stream(self.id))
        self._finish_if_done()

    def _on_error(self) -> None:
        """The application's side is gone without FIN: the reset travels on (RFC 9113 section 8.5)."""
        if self._read_done and self.remote_ended and not self._queue:
            self._finish(FINISHED)
            return
        self.tunnel.write(frames.rst_stream(self.id, frames.CONNECT_ERROR))
        self._finish(RESET_BY_APPLICATION)

    # ---- tunnel to application ----

    def deliver(self, view: memoryview) -> bool:
        """DATA arrived. False when it is more than the window allowed."""
        size = len(view)
        self._receive_window -= size
        if self._receive_window < 0:
            return False
        if self._queue is not None or not self.answered:
            self._enqueue(view)
            return True
        try:
            sent = self._sock.send(view)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._on_error()
            return True
        if sent < size:
            self._enqueue(view[sent:])
            self._watch(self._watched | OUT)
        self.received += sent
        self._consumed += sent
        if self._consumed >= self.tunnel.credit_step:
            self._give_credit()
        return True

    def _enqueue(self, view: memoryview) -> None:
        queue = self._queue
        if queue is None:
            self._queue = deque((bytearray(view),))
            return
        last = queue[-1]
        if len(last) < SMALL_PIECE and isinstance(last, bytearray):
            last += view
        else:
            queue.append(bytearray(view))

    def padded(self, size: int) -> None:
        """Padding of a DATA frame: it counts against the window and is consumed at once (RFC 9113 section 6.1)."""
        self._receive_window -= size
        self._credit(size)

    def _credit(self, size: int) -> None:
        self._consumed += size
        if self._consumed >= self.tunnel.credit_step:
            self._give_credit()

    def _give_credit(self) -> None:
        """What the application has taken may be sent again, unless the peer has finished."""
        if not self.remote_ended:
            self._receive_window += self._consumed
            self.tunnel.write(frames.window_update(self.id, self._consumed))
            self._consumed = 0

    def _on_writable(self) -> None:
        queue = self._queue
        assert queue is not None
        try:
            sent = self._sock.sendmsg([queue[i] for i in range(min(len(queue), MAX_IOV))])
        except BlockingIOError:
            return
        except OSError:
            self._on_error()
            return
        self.received += sent
        self._credit(sent)
        while queue and sent >= len(queue[0]):
            sent -= len(queue.popleft())
        if sent:
            queue[0] = memoryview(queue[0])[sent:]
        if not queue:
            self._queue = None
            self._watch(self._watched & ~OUT)
            if self.remote_ended:
                self._shut_down_write()

    def end_received(self) -> None:
        """END_STREAM: the peer's application has finished sending."""
        self.remote_ended = True
        if self._joined is not None:
            self._finish_if_done()
        elif self._queue is None and self.answered and self._fd >= 0:
            self._shut_down_write()

    def _shut_down_write(self) -> None:
        if self._read_done:  # closing the socket sends the FIN as well
            self._finish_if_done()
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._on_error()
            return
        self._finish_if_done()

    # ---- the end ----

    def reset_received(self, code: int) -> None:
        """RST_STREAM: a reset travels on, except that a peer which is done may stop listening (RFC 9113 8.1)."""
        if code == frames.NO_ERROR and self.remote_ended and self.answered:
            self._read_done = self._unheard = True
            self.tunnel.paused.pop(self.id, None)
            if self._queue is None:
                self._finish(FINISHED)
            else:  # a complete answer is not lost because its sender stops listening
                self._watch(self._watched & ~IN)
            return
        self._finish(Ending(f"the tunnel's peer reset the stream ({frames.error_name(code)})"))

    def unprocessed(self, ending: Ending) -> None:
        """The peer promises that nothing was done for the request (RFC 9113 section 8.7)."""
        sock, owner = self._sock, self.owner
        if self.answered or sock is None or owner is None:
            self._finish(ending)
            return
        self._sock = self.owner = None
        self._finish(ending)
        owner.returned(sock, ending)

    def abort(self, why: str, flag: str = "CONNECT", code: int = frames.CANCEL) -> None:
        """End it from our side: RST_STREAM to the peer, a reset to the application."""
        if self.closed:
            return
        self.tunnel.write(frames.rst_stream(self.id, code))
        self._finish(Ending(why, flag))

    def lost(self, ending: Ending) -> None:
        """The tunnel is gone."""
        self._finish(ending)

    def _finish_if_done(self) -> None:
        if self._read_done and self.remote_ended and self._queue is None:
            self._finish(FINISHED)

    def _finish(self, ending: Ending) -> None:
        if self.closed:
            return
        self.closed = True
        tunnel = self.tunnel
        del tunnel.streams[self.id]
        tunnel.paused.pop(self.id, None)
        self._ending = ending
        sock, self._sock = self._sock, None
        self._fd = -1
        self._queue = None
        self._events = 0
        if sock is not None:
            if ending.ok and self._unheard:
                tunnel.loop.lingering.add(sock)
            else:
                if not ending.ok:
                    abort_on_close(sock)
                tunnel.loop.close(sock)
        joined, self._joined = self._joined, None
        if joined is not None:
            joined.leash_ended(ending)
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.ended(ending)
        tunnel.stream_closed()
