"""DATA of a tunnel and the windows that bound it (RFC 9113 sections 5.2, 6.1 and 6.9).

Credit. A stream's window is given back when its application has taken the bytes, so a slow reader stops its own
sender. The connection's window is given back as bytes arrive, so a slow reader never stops its neighbours: what a
stream may hold is bounded by its own window.

Owns which streams are open, those that wait for a window, and the budget of what a peer may send for nothing. How
streams come and go is the subclass's (`h2.Tunnel`).
"""

from __future__ import annotations

import socket

from ztunnel.core.wire import frames
from ztunnel.worker.engine.agreement import Settings
from ztunnel.worker.engine.budget import PER_BYTE, Budget
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.parser import FrameParser, Violation
from ztunnel.worker.engine.scratch import READ_SIZE
from ztunnel.worker.engine.stream import Stream
from ztunnel.worker.engine.tls import Session

SMALL_INCREMENT = 1024
"""WINDOW_UPDATEs below this cost budget, unless they give back what was sent."""


class Windows(FrameParser):
    """`streams` holds the open ones by id; `window` is what the peer lets us send on the connection, in bytes."""

    __slots__ = (
        "_budget",
        "_carried",
        "_connection_window",
        "_credit_below",
        "_data",
        "_data_end",
        "_high_window",
        "_last_peer_id",
        "_next_id",
        "_peer_window",
        "_receive_window",
        "_stream_window",
        "client",
        "credit_step",
        "paused",
        "peer_frame",
        "read_most",
        "streams",
        "window",
    )

    def __init__(self, loop: Loop, sock: socket.socket, session: Session, settings: Settings, *, client: bool) -> None:
        super().__init__(loop, sock, session, client=client, max_frame=settings.frame_size)
        self.client = client
        self.streams: dict[int, Stream] = {}
        self.paused: dict[int, Stream] = {}
        self.window = frames.DEFAULT_WINDOW
        self.peer_frame = frames.DEFAULT_MAX_FRAME
        self.read_most = min(READ_SIZE, self.peer_frame)
        """Most bytes of an application that one DATA frame takes."""
        self.credit_step = settings.stream_window // 4
        self._high_window = frames.DEFAULT_WINDOW
        self._peer_window = frames.DEFAULT_WINDOW
        self._next_id = 1
        self._last_peer_id = 0
        # Until the peer has seen our SETTINGS it may rely on the defaults of RFC 9113.
        self._connection_window = max(settings.connection_window, frames.DEFAULT_WINDOW)
        self._stream_window = max(settings.stream_window, frames.DEFAULT_WINDOW)
        self._receive_window = self._connection_window
        self._credit_below = self._connection_window - (self._connection_window >> 2)
        self._data: Stream | None = None
        self._data_end = False
        self._carried = 0
        """Bytes of DATA for applications since the budget was last looked at."""
        self._budget = Budget(loop.now)

    # ---- DATA ----

    def _begin_data(self, stream_id: int, length: int, payload: int, flags: int) -> None:
        if length > self.max_frame:
            raise Violation(frames.FRAME_SIZE_ERROR, f"DATA of {length} bytes")
        stream = self.streams.get(stream_id)
        if stream is None or stream.remote_ended:
            stream = self._misplaced_data(stream_id, stream)
        self._receive_window -= length
        if self._receive_window <= self._credit_below:
            self._give_credit()
        if not payload:
            self._empty_data(stream, bool(flags & frames.END_STREAM))
        else:
            if stream is not None and stream.answered:
                self._carried += payload
            self._data = stream
            self._data_end = bool(flags & frames.END_STREAM)
        if length != payload and stream is not None and not stream.closed:
            stream.padded(length - payload)

    def _misplaced_data(self, stream_id: int, stream: Stream | None) -> Stream | None:
        """DATA for a stream that is not open, or not any more in this direction: whose it is, if it counts at all."""
        if stream is None:
            stream_id &= frames.MAX_WINDOW  # the reserved bit means nothing
            stream = self.streams.get(stream_id)
            if stream is None and self._is_idle(stream_id):
                raise Violation(frames.PROTOCOL_ERROR, f"DATA for idle stream {stream_id}")
        if stream is not None and stream.remote_ended:
            self.write(frames.rst_stream(stream.id, frames.STREAM_CLOSED))
            stream.lost(Ending("the peer sent DATA after the end of its stream", "H2_HANDSHAKE_FAILURE"))
            return None
        return stream

    def _give_credit(self) -> None:
        """A quarter of the connection's window has arrived: give it back."""
        if self._receive_window < 0:
            raise Violation(frames.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        self.write(frames.window_update(0, self._connection_window - self._receive_window))
        self._receive_window = self._connection_window

    def _empty_data(self, stream: Stream | None, end: bool) -> None:
        if end and stream is not None:
            stream.end_received()
        else:
            self._unproductive("empty frames")

    def _deliver(self, view: memoryview) -> None:
        stream = self._data
        if stream is None:
            return
        if not stream.closed and not stream.deliver(view):
            self.write(frames.rst_stream(stream.id, frames.FLOW_CONTROL_ERROR))
            stream.lost(Ending("the peer sent more than the stream's window", "H2_HANDSHAKE_FAILURE"))
        if not self._data_left:
            self._data = None
            if self._data_end and not stream.closed:
                stream.end_received()

    # ---- windows ----

    def _resume(self) -> None:
        if self.window <= 0 or self.blocked:
            return
        paused, self.paused = self.paused, {}
        for stream in paused.values():
            if stream.window > 0:
                stream.resume()
            else:
                self.paused[stream.id] = stream

    def _unproductive(self, what: str, cost: float = 1.0) -> None:
        if self._carried:
            self._budget.earn(self._carried * PER_BYTE)
            self._carried = 0
        if not self._budget.spend(self.loop.now, cost):
            raise Violation(frames.ENHANCE_YOUR_CALM, f"too many {what}")

    def _is_idle(self, stream_id: int) -> bool:
        """A stream that nobody has opened; 0 and even numbers never are."""
        opened = self._next_id - 1 if self.client else self._last_peer_id
        return stream_id > opened or not stream_id & 1

    def _window_update(self, stream_id: int, increment: int) -> None:
        if not stream_id:
            self.window += increment
            if not increment or self.window > frames.MAX_WINDOW:
                raise Violation(
                    frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR, "the connection's window"
                )
            if self.paused:
                self._resume()
            if increment < SMALL_INCREMENT and self.window > self._high_window:
                self._high_window = self.window
                self._unproductive("small WINDOW_UPDATE frames")
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise Violation(frames.PROTOCOL_ERROR, f"WINDOW_UPDATE for idle stream {stream_id}")
            if increment < SMALL_INCREMENT:
                self._unproductive("small WINDOW_UPDATE frames")
            return
        stream.window += increment
        if not increment or stream.window > frames.MAX_WINDOW:
            code = frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR
            self.write(frames.rst_stream(stream_id, code))
            stream.lost(Ending("the peer broke the stream's window", "H2_HANDSHAKE_FAILURE"))
            return
        if stream_id in self.paused and stream.window > 0 and self.window > 0 and not self.blocked:
            del self.paused[stream_id]
            stream.resume()
        if increment < SMALL_INCREMENT and stream.window > self._peer_window:
            self._unproductive("small WINDOW_UPDATE frames")
