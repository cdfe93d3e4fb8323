"""A tunnel: one HTTP/2 connection over mTLS that carries many CONNECT streams (RFC 9113).

Theory of operation. The h2 library owns what is rare and belongs to the connection: preface, SETTINGS and their
acknowledgement, answers to PING. Frames of streams never reach it: its cost per stream grows with the streams that
are open, and it copies every DATA frame several times. They are coded here: DATA goes straight from the decrypted
bytes into the application's socket, HEADERS through `frames.decode_plain` or, when a block needs state, through
the one HPACK decoder. What is seen on the wire is the same as from h2 (tests play conversations through both).

DATA and the windows are the base's (`windows`), syntax is the parser's, bytes the transport's; what is left here is
what streams and the connection go through. Failures of the peer raise `Violation`, in any of these, and end in one
place: GOAWAY with the RFC's code.
"""

from __future__ import annotations

import socket
from itertools import chain
from typing import Protocol

import hpack

from ztunnel.core.wire import frames
from ztunnel.worker.engine.agreement import Agreement, Code, Settings
from ztunnel.worker.engine.budget import PER_CONNECTION
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.loop import IN, Loop
from ztunnel.worker.engine.parser import MAX_HEADER_LIST, Headers, Violation
from ztunnel.worker.engine.scratch import READ_SIZE
from ztunnel.worker.engine.stream import Stream, StreamOwner
from ztunnel.worker.engine.tls import Session
from ztunnel.worker.engine.windows import Windows

GOAWAY_GRACE = 1.0
"""Seconds between the first GOAWAY of a drain and the one that names the last stream (RFC 9113 section 6.8)."""


class TunnelOwner(Protocol):
    """Who made the tunnel."""

    def secured(self, tunnel: Tunnel) -> None:
        """The TLS handshake is complete: the peer's names are verified. A client may open one stream."""

    def ready(self, tunnel: Tunnel) -> None:
        """TLS and SETTINGS are exchanged: how many streams may be opened is known."""

    def requested(self, stream: Stream, headers: Headers) -> None:
        """A peer opened a stream (server role)."""

    def changed(self, tunnel: Tunnel) -> None:
        """A stream ended, the peer's limits changed, or the tunnel began to drain."""

    def closed(self, tunnel: Tunnel, ending: Ending) -> None:
        """Nothing is left of it."""


class Tunnel(Windows):
    """Client or server end of a tunnel. `streams` holds the open ones by id."""

    __slots__ = (
        "_agreement",
        "_refuse_above",
        "_table_notice",
        "draining",
        "owner",
        "peer_max_streams",
        "ping_sent_at",
        "received_frames",
        "settings",
    )

    def __init__(
        self, loop: Loop, sock: socket.socket, session: Session, owner: TunnelOwner, settings: Settings, *, client: bool
    ) -> None:
        super().__init__(loop, sock, session, settings, client=client)
        self.owner = owner
        self.settings = settings
        self.peer_max_streams = 1
        """Until the peer's SETTINGS say otherwise. RFC 9113 knows no limit before, but a peer refuses what exceeds its
        own: one request is what all but a peer without any take, and what a first connection needs."""
        self.draining = False
        self.received_frames = 0
        """Grows with everything received; keepalive looks at it."""
        self.ping_sent_at: float | None = None
        self._refuse_above = frames.MAX_WINDOW
        self._table_notice: bytes | None = None
        """What the next header block must say about the dynamic table; empty when it has been said."""
        self._agreement = Agreement(settings, client=client)
        self._open(client=client)

    def __repr__(self) -> str:
        role = "client" if self.client else "server"
        state = "closed" if self.closed else "draining" if self.draining else "open" if self.settled else "starting"
        return f"<Tunnel {role} {state}, {len(self.streams)} streams>"

    # ---- opening streams (client) ----

    @property
    def free_slots(self) -> int:
        """How many more streams the peer allows now; one as soon as TLS is there, before its SETTINGS are."""
        if not self.session.established or self.draining or self.closed or self._next_id > frames.MAX_WINDOW - 2:
            return 0
        return max(0, self.peer_max_streams - len(self.streams))

    def open_stream(self, block: bytes, owner: StreamOwner) -> Stream:
        """Send HEADERS with an encoded block, while there are free slots; attach the application's socket next.

        The owner hears `opened` or `refused`, and `ended` at last.
        """
        stream_id = self._next_id
        self._next_id += 2
        stream = Stream(self, stream_id, self._peer_window, self._stream_window)
        stream.owner = owner
        self.streams[stream_id] = stream
        self._budget.earn(PER_CONNECTION)
        self._write_headers(stream_id, frames.END_HEADERS, block)
        return stream

    # ---- answering requests (server) ----

    def accept(self, stream: Stream, block: bytes, owner: StreamOwner) -> None:
        """Answer with an encoded header block; the stream's socket is attached and bytes flow.

        A stream that the peer reset in the meantime ends here: its owner hears `ended`, the socket is reset.
        """
        stream.owner = owner
        if stream.closed:
            stream.start_closed()
            return
        self._budget.earn(PER_CONNECTION)
        self._write_headers(stream.id, frames.END_HEADERS, block)
        stream.start()

    def refuse(self, stream: Stream, block: bytes) -> None:
        """Answer and end the stream; the peer need not send the rest (RFC 9113 section 8.1)."""
        if stream.closed:
            return
        stream.closed = True
        del self.streams[stream.id]
        self._write_headers(stream.id, frames.END_HEADERS | frames.END_STREAM, block)
        if not stream.remote_ended:
            self._budget.earn(PER_CONNECTION)
            self.write(frames.rst_stream(stream.id, frames.NO_ERROR))
        self.stream_closed()

    def _write_headers(self, stream_id: int, flags: int, block: bytes) -> None:
        if self._table_notice:
            block = self._table_notice + block
            self._table_notice = b""
        if len(block) <= self.peer_frame:
            self.write(frames.frame(frames.HEADERS, flags, stream_id, block))
            return
        pieces = [block[at : at + self.peer_frame] for at in range(0, len(block), self.peer_frame)]
        self.write(frames.frame(frames.HEADERS, flags & ~frames.END_HEADERS, stream_id, pieces[0]))
        for piece in pieces[1:-1]:
            self.write(frames.frame(frames.CONTINUATION, 0, stream_id, piece))
        self.write(frames.frame(frames.CONTINUATION, frames.END_HEADERS, stream_id, pieces[-1]))

    # ---- life ----

    def _on_secured(self) -> None:
        self.write(self._agreement.begin())
        extra = self.settings.connection_window - frames.DEFAULT_WINDOW
        if extra > 0:
            self.write(frames.window_update(0, extra))
        self.owner.secured(self)

    def _on_unblocked(self) -> None:
        self._resume()
        if self.draining and not self.streams:
            self._close_if_drained()

    def send_ping(self, now: float) -> None:
        self.ping_sent_at = now
        self.write(frames.ping(b"ztunnel\0"))

    def drain(self) -> None:
        """Accept no new streams; close once the open ones have ended (two GOAWAYs, RFC 9113 section 6.8)."""
        if self.draining or self.closed:
            return
        self.draining = True
        if not self.streams:
            self._close_if_drained()
            return
        if not self.client:
            self.write(frames.goaway(frames.MAX_WINDOW, frames.NO_ERROR))
            self.loop.call_later(GOAWAY_GRACE, self._name_last_stream)
        self.owner.changed(self)

    def _name_last_stream(self) -> None:
        if not self.closed:
            self._refuse_above = self._last_peer_id
            self.write(frames.goaway(self._last_peer_id, frames.NO_ERROR))

    def stream_closed(self) -> None:
        if self.closed:
            return
        if self.draining and not self.streams:
            self.loop.call_soon(self._close_if_drained)
            return
        self.owner.changed(self)

    def _close_if_drained(self) -> None:
        """Not while bytes of streams that have ended wait for the socket."""
        if self.draining and not self.streams and not self.closed:
            self.flush_if_corked()
            if not self.blocked:
                self.close(Ending("drained", "-"), linger=True)

    def abort(self, why: str) -> None:
        self.close(Ending(why), code=frames.INTERNAL_ERROR)

    def close(self, ending: Ending, code: int = frames.NO_ERROR, *, linger: bool = False) -> None:
        """End it and every stream now; `linger` lets the peer take what is still on its way."""
        if self.closed:
            return
        if self.session.established:
            self.write(frames.goaway(self._last_peer_id, code, ending.error if code else ""))
        self._shut(linger=linger)
        gone = "the tunnel is gone" if self.settled else "no tunnel"
        lost = Ending(f"{gone}: {ending.error}" if ending.error else gone, ending.flag)
        for stream in list(self.streams.values()):
            stream.lost(lost)
        self._data = None
        self.owner.closed(self, ending)

    # ---- receiving ----

    def _on_plain(self, end: int) -> int:
        self.received_frames += 1
        self.ping_sent_at = None
        try:
            return self._parse(end)
        except Violation as violation:
            self._condemn(violation.code, str(violation))
        except hpack.exceptions.HPACKError as error:
            self._condemn(0x9, f"header compression: {error}")
        return end

    def _condemn(self, code: int, text: str) -> None:
        self.close(Ending(f"the peer broke HTTP/2: {text} ({frames.error_name(code)})", "H2_HANDSHAKE_FAILURE"), code)

    def _preface_received(self) -> None:
        self._agreement.preface_received()

    def _reset(self, stream_id: int, code: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise Violation(frames.PROTOCOL_ERROR, f"RST_STREAM for idle stream {stream_id}")
            self._unproductive("resets")
            return
        if not self.client and not stream.sent and not stream.received:
            # What an answered request earned is taken back: a peer may not open and reset for ever.
            self._unproductive("resets of requests that carried nothing", 1 + PER_CONNECTION * stream.answered)
        if code == frames.REFUSED_STREAM and self.client and not stream.answered:
            # Its limit is lower than we knew, or it counts streams that we take for closed.
            self.peer_max_streams = max(1, min(self.peer_max_streams, len(self.streams) - 1))
            stream.unprocessed(Ending("the tunnel's peer takes no more streams (REFUSED_STREAM)"))
            return
        stream.reset_received(code)

    def _connection_frame(self, whole: bytes) -> None:
        """SETTINGS and PING: the agreement's."""
        if self.settled:
            self._unproductive("SETTINGS and PING frames")
        for changed in self._agreement.receive(whole):
            if self.closed:
                return
            self._settings(changed)
        answer = self._agreement.answer()
        if answer:
            self.write(answer)

    def _settings(self, changed: dict[Code, int]) -> None:
        for code, value in changed.items():
            if code == Code.INITIAL_WINDOW_SIZE:
                difference = value - self._peer_window
                self._peer_window = value
                for stream in self.streams.values():
                    stream.window += difference
                    if stream.window > frames.MAX_WINDOW:
                        raise Violation(frames.FLOW_CONTROL_ERROR, f"the window of stream {stream.id}")
                self._resume()
            elif code == Code.MAX_FRAME_SIZE:
                self.peer_frame = value
                self.read_most = min(READ_SIZE, value)
            elif code == Code.HEADER_TABLE_SIZE:
                # We never use the table, but a peer that makes it smaller must be told so (RFC 7541 section 4.2).
                if value < frames.DEFAULT_HEADER_TABLE and self._table_notice is None:
                    self._table_notice = frames.NO_HEADER_TABLE
            elif code == Code.MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = value
        if not self.settled:
            if Code.MAX_CONCURRENT_STREAMS not in changed:
                self.peer_max_streams = frames.MAX_WINDOW
            self.settled = True
            self.owner.ready(self)
        else:
            self.owner.changed(self)

    def _goaway(self, last_stream_id: int, code: int) -> None:
        if self.draining:
            self._unproductive("GOAWAY frames")
        self.draining = True
        if self.client:
            for stream in [s for s in self.streams.values() if s.id > last_stream_id]:
                stream.unprocessed(Ending(f"the peer went away before it saw the request ({frames.error_name(code)})"))
        self.owner.changed(self)
        if not self.streams and not self.closed:
            self.loop.call_soon(self._close_if_drained)

    # ---- header blocks ----

    def _headers(self, stream_id: int, flags: int, headers: Headers) -> None:
        stream = self.streams.get(stream_id)
        if stream is None and (self.client or stream_id <= self._last_peer_id):
            if self._is_idle(stream_id):
                raise Violation(frames.PROTOCOL_ERROR, f"HEADERS for idle stream {stream_id}")
            self._unproductive("headers of closed streams")
            return
        if stream is not None and stream.remote_ended:
            self.write(frames.rst_stream(stream_id, frames.STREAM_CLOSED))
            stream.lost(Ending("the peer sent headers after the end of its stream", "H2_HANDSHAKE_FAILURE"))
            return
        if stream is None:
            self._request(stream_id, flags, headers)
        elif self.client and not stream.answered:
            self._response(stream, flags, headers)
        elif flags & frames.END_STREAM:
            stream.end_received()
        else:
            self.write(frames.rst_stream(stream_id, frames.PROTOCOL_ERROR))
            stream.lost(Ending("the peer sent headers in the middle of the tunnel", "H2_HANDSHAKE_FAILURE"))

    def _request(self, stream_id: int, flags: int, headers: Headers) -> None:
        if not stream_id & 1:
            raise Violation(frames.PROTOCOL_ERROR, f"a client opened stream {stream_id}")
        self._last_peer_id = stream_id
        if len(self.streams) >= self.settings.max_streams or stream_id > self._refuse_above:
            self._unproductive("streams beyond the limit")
            self.write(frames.rst_stream(stream_id, frames.REFUSED_STREAM))
            return
        stream = Stream(self, stream_id, self._peer_window, self._stream_window)
        self.streams[stream_id] = stream
        if sum(map(len, chain.from_iterable(headers))) + 32 * len(headers) > MAX_HEADER_LIST:
            self.refuse(stream, frames.encode_header(":status", "431"))
            return
        if flags & frames.END_STREAM:
            stream.end_received()
        self.owner.requested(stream, headers)

    def _response(self, stream: Stream, flags: int, headers: Headers) -> None:
        value = headers[0][1] if headers and headers[0][0] == b":status" else b""
        if len(value) != 3 or not value.isdigit():
            self.write(frames.rst_stream(stream.id, frames.PROTOCOL_ERROR))
            stream.lost(Ending("the peer's answer has no status", "H2_HANDSHAKE_FAILURE"))
            return
        status = int(value)
        if status < 200:
            self._unproductive("interim answers")
            return
        owner = stream.owner
        if status >= 300:
            if owner is not None:
                owner.refused(status)
            if not stream.closed:
                # Either way the stream is over for the peer too and no longer counts against its limit.
                over = flags & frames.END_STREAM
                self.write(frames.end_stream(stream.id) if over else frames.rst_stream(stream.id, frames.CANCEL))
            stream.lost(Ending(f"the peer refused the tunnel with status {status}"))
            return
        if owner is not None:
            owner.opened(headers)
        if not stream.closed:
            stream.start()
            stream.on_event(IN)  # a client has mostly spoken by now: its bytes need not wait for the next turn
        if flags & frames.END_STREAM and not stream.closed:
            stream.end_received()
