"""HTTP/2 frames out of a stream of bytes (RFC 9113 sections 4 and 6): syntax, sizes, order; no meaning.

Owns what is left of an unfinished frame between reads: how much of a DATA frame is to come, how much is to be
skipped, a header block in pieces, the HPACK decoder. What frames mean is the subclass's (`h2.Tunnel`); it is told of
DATA piece by piece as it arrives, of everything else frame by frame.

A peer that breaks a rule raises Violation, with the RFC's error code.
"""

from __future__ import annotations

import socket
from abc import abstractmethod

import hpack

from ztunnel.core.wire import frames
from ztunnel.core.wire.frames import HEADER_SIZE, PADDED, unpack_header
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.scratch import READ_SIZE
from ztunnel.worker.engine.tls import Session
from ztunnel.worker.engine.transport import FRAMES_PER_READ, Transport

MAX_HEADER_LIST = 64 * 1024
"""SETTINGS_MAX_HEADER_LIST_SIZE of ztunnel's server; also the limit of an encoded block."""
MAX_CONTINUATIONS = 32
MAX_CONTROL_FRAME = 16 * 1024

Headers = list[tuple[bytes, bytes]]


class Violation(Exception):
    """The peer broke HTTP/2; `code` is what GOAWAY will say."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class FrameParser(Transport):
    """Walks over what the transport decrypted. `max_frame` is the largest frame we have said we take."""

    __slots__ = (
        "_block",
        "_block_head",
        "_block_pieces",
        "_data_left",
        "_decoder",
        "_preface_left",
        "_skip",
        "max_frame",
        "settled",
    )

    def __init__(self, loop: Loop, sock: socket.socket, session: Session, *, client: bool, max_frame: int) -> None:
        super().__init__(loop, sock, session)
        self.max_frame = max_frame
        self.settled = False
        """The peer's SETTINGS have arrived."""
        self._preface_left = b"" if client else frames.PREFACE
        self._data_left = 0
        self._skip = 0
        self._block: bytearray | None = None
        self._block_head = (0, 0)
        self._block_pieces = 0
        self._decoder: hpack.Decoder | None = None
        """For blocks that are not plain; made for the first of them."""

    # ---- what the subclass makes of it ----

    @abstractmethod
    def _preface_received(self) -> None:
        """The client's preface is complete and right."""

    @abstractmethod
    def _begin_data(self, stream_id: int, length: int, payload: int, flags: int) -> None:
        """The header of a DATA frame: `length` counts against the windows, `payload` of it will be delivered."""

    @abstractmethod
    def _deliver(self, view: memoryview) -> None:
        """A piece of the payload; the last one when `_data_left` is 0."""

    @abstractmethod
    def _headers(self, stream_id: int, flags: int, headers: Headers) -> None:
        """A whole header list; `flags` are those of its HEADERS frame."""

    @abstractmethod
    def _window_update(self, stream_id: int, increment: int) -> None:
        """For the connection when `stream_id` is 0."""

    @abstractmethod
    def _reset(self, stream_id: int, code: int) -> None:
        """RST_STREAM."""

    @abstractmethod
    def _connection_frame(self, whole: bytes) -> None:
        """SETTINGS or PING."""

    @abstractmethod
    def _goaway(self, last_stream_id: int, code: int) -> None:
        """GOAWAY; its text is not looked at."""

    @abstractmethod
    def _unproductive(self, what: str, cost: float = 1.0) -> None:
        """A frame that carries nothing; raises Violation when there were too many."""

    # ---- frames ----

    def _parse(self, end: int) -> int:
        scratch = self.scratch
        plain, view = scratch.plain, scratch.plain_view
        at = 0
        if self._preface_left:
            at = self._read_preface(view[:end])
        count = 0
        while at < end and not self.closed:
            left = self._data_left
            if not left:
                count += 1
                if self._skip:
                    size = min(self._skip, end - at)
                    self._skip -= size
                    at += size
                    continue
                if end - at < HEADER_SIZE:
                    break
                high, low, kind, flags, stream_id = unpack_header(plain, at)
                left = high << 8 | low
                if kind or flags & PADDED or self._block is not None or not self.settled:
                    used = self._parse_control(view[at:end], kind, flags, stream_id & frames.MAX_WINDOW, left)
                    if not used:
                        break
                    at += used
                    continue
                at += HEADER_SIZE
                self._begin_data(stream_id, left, left, flags)
                if not left:
                    continue
            here = end - at
            if here < left:
                self._data_left = left - here
                if not here:
                    break
            else:
                self._data_left = 0
                here = left
            self._deliver(view[at : at + here])
            at += here
        if count > FRAMES_PER_READ or self._appetite < READ_SIZE:
            self._digested(count)
        return at

    def _read_preface(self, view: memoryview) -> int:
        expected = self._preface_left
        size = min(len(view), len(expected))
        if view[:size] != expected[:size]:
            raise Violation(frames.PROTOCOL_ERROR, "the client does not speak HTTP/2")
        self._preface_left = expected[size:]
        if not self._preface_left:
            self._preface_received()
        return size

    def _parse_control(self, view: memoryview, kind: int, flags: int, stream_id: int, length: int) -> int:
        """Handle the frame at the start of `view`; the bytes it takes, or 0 when it is not complete yet."""
        if not self.settled and kind != frames.SETTINGS:
            raise Violation(frames.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block_head[0]):
            raise Violation(frames.PROTOCOL_ERROR, "a header block is interrupted")
        if length > self.max_frame:
            raise Violation(frames.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
        size = HEADER_SIZE + length
        if kind == frames.DATA:
            return self._padded_data(view, flags, stream_id, length)
        if kind in (frames.HEADERS, frames.CONTINUATION):
            if length > MAX_HEADER_LIST:
                raise Violation(frames.ENHANCE_YOUR_CALM, f"a header block of {length} bytes")
        elif kind > frames.CONTINUATION:
            self._unproductive("unknown frames")
            self._skip = length
            return HEADER_SIZE
        elif length > MAX_CONTROL_FRAME:
            raise Violation(frames.FRAME_SIZE_ERROR, f"a control frame of {length} bytes")
        if len(view) < size:
            return 0
        body = view[HEADER_SIZE:size]
        if kind == frames.WINDOW_UPDATE:
            if length != 4:
                raise Violation(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE")
            self._window_update(stream_id, int.from_bytes(body, "big") & frames.MAX_WINDOW)
        elif kind == frames.HEADERS:
            self._headers_frame(flags, stream_id, body)
        elif kind == frames.CONTINUATION:
            self._continuation(flags, body)
        elif kind == frames.RST_STREAM:
            if length != 4:
                raise Violation(frames.FRAME_SIZE_ERROR, "RST_STREAM")
            self._reset(stream_id, int.from_bytes(body, "big"))
        elif kind in (frames.SETTINGS, frames.PING):
            self._connection_frame(bytes(view[:size]))
        elif kind == frames.GOAWAY:
            if length < 8:
                raise Violation(frames.FRAME_SIZE_ERROR, "GOAWAY")
            self._goaway(int.from_bytes(body[:4], "big") & frames.MAX_WINDOW, int.from_bytes(body[4:8], "big"))
        elif kind == frames.PUSH_PROMISE:
            raise Violation(frames.PROTOCOL_ERROR, "PUSH_PROMISE is switched off")
        else:
            self._unproductive("PRIORITY frames")
        return size

    def _padded_data(self, view: memoryview, flags: int, stream_id: int, length: int) -> int:
        if not flags & PADDED:
            raise Violation(frames.PROTOCOL_ERROR, "DATA is out of place")
        if len(view) <= HEADER_SIZE and length:
            return 0
        if not length:
            raise Violation(frames.FRAME_SIZE_ERROR, "padded DATA without its padding's length")
        padding = view[HEADER_SIZE]
        payload = length - 1 - padding
        if payload < 0:
            raise Violation(frames.PROTOCOL_ERROR, "padding exceeds the frame")
        self._data_left = payload
        self._skip = padding
        self._begin_data(stream_id, length, payload, flags)
        return HEADER_SIZE + 1

    # ---- header blocks ----

    def _headers_frame(self, flags: int, stream_id: int, body: memoryview) -> None:
        start, end = 0, len(body)
        if flags & PADDED:
            if not end:
                raise Violation(frames.FRAME_SIZE_ERROR, "HEADERS")
            start, end = 1, end - body[0]
        if flags & frames.PRIORITY_FLAG:
            start += 5
        if start > end or not stream_id:
            raise Violation(frames.PROTOCOL_ERROR, "HEADERS")
        block = bytes(body[start:end])
        if flags & frames.END_HEADERS:
            self._headers(stream_id, flags, self._decode(block))
        else:
            self._block = bytearray(block)
            self._block_head = (stream_id, flags)
            self._block_pieces = 0

    def _continuation(self, flags: int, body: memoryview) -> None:
        block = self._block
        if block is None:
            raise Violation(frames.PROTOCOL_ERROR, "CONTINUATION is out of place")
        block += body
        self._block_pieces += 1
        if len(block) > MAX_HEADER_LIST or self._block_pieces > MAX_CONTINUATIONS:
            raise Violation(frames.ENHANCE_YOUR_CALM, "a header block of too many pieces")
        if flags & frames.END_HEADERS:
            self._block = None
            self._headers(*self._block_head, self._decode(bytes(block)))

    def _decode(self, block: bytes) -> Headers:
        headers = frames.decode_plain(block)
        if headers is not None:
            return headers
        if self._decoder is None:
            self._decoder = hpack.Decoder(max_header_list_size=2 * MAX_HEADER_LIST)
        return [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
