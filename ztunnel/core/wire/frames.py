"""HTTP/2 frames and header blocks of the tunnel's hot path (RFC 9113 sections 4 and 6, RFC 7541 section 6).

What a tunnel sends per connection and per read is built here from a few bytes; header blocks never use the
dynamic table, so that they can be prepared once and sent on any tunnel. `decode_plain` reads such blocks without
touching a decoder's state; whatever it does not know it leaves to a full HPACK decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
CONNECT_ERROR = 0xA
ENHANCE_YOUR_CALM = 0xB

ERROR_NAMES = {
    0x0: "NO_ERROR",
    0x1: "PROTOCOL_ERROR",
    0x2: "INTERNAL_ERROR",
    0x3: "FLOW_CONTROL_ERROR",
    0x4: "SETTINGS_TIMEOUT",
    0x5: "STREAM_CLOSED",
    0x6: "FRAME_SIZE_ERROR",
    0x7: "REFUSED_STREAM",
    0x8: "CANCEL",
    0x9: "COMPRESSION_ERROR",
    0xA: "CONNECT_ERROR",
    0xB: "ENHANCE_YOUR_CALM",
    0xC: "INADEQUATE_SECURITY",
    0xD: "HTTP_1_1_REQUIRED",
}

HEADER_SIZE = 9
DEFAULT_MAX_FRAME = 16_384
DEFAULT_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1

_header = struct.Struct("!HBBBI")
unpack_header = _header.unpack_from
"""(length >> 8, length & 255, type, flags, stream id) from (buffer, offset)."""
pack_header = _header.pack_into
"""Into (buffer, offset, length >> 8, length & 255, type, flags, stream id)."""

_window_update = struct.Struct("!HBBBII")
_rst = struct.Struct("!HBBBII")

DEFAULT_HEADER_TABLE = 4096
NO_HEADER_TABLE = b"\x20"
"""In front of a header block: the dynamic table has no room from now on (RFC 7541 section 6.3)."""
RESPONSE_200 = b"\x88"
"""The header block of a bare `:status: 200` (RFC 7541 appendix A, index 8)."""


def frame(kind: int, flags: int, stream_id: int, body: bytes = b"") -> bytes:
    length = len(body)
    return _header.pack(length >> 8, length & 255, kind, flags, stream_id) + body


def window_update(stream_id: int, increment: int) -> bytes:
    return _window_update.pack(0, 4, WINDOW_UPDATE, 0, stream_id, increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    return _rst.pack(0, 4, RST_STREAM, 0, stream_id, code)


def end_stream(stream_id: int) -> bytes:
    """An empty DATA frame that ends the stream: half-close in a tunnel."""
    return _header.pack(0, 0, DATA, END_STREAM, stream_id)


def goaway(last_stream_id: int, code: int, text: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack("!II", last_stream_id, code) + text.encode())


def ping(opaque: bytes) -> bytes:
    return frame(PING, 0, 0, opaque)


def error_name(code: int) -> str:
    return ERROR_NAMES.get(code, f"code {code:#x}")


# ---- header blocks ----


def literal_size(size: int) -> bytes:
    """How a literal of so many bytes begins: an HPACK integer, 7-bit prefix, no Huffman flag (RFC 7541 section 5.1)."""
    if size < 127:
        return bytes((size,))
    out = bytearray((127,))
    size -= 127
    while size >= 128:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


def encode_header(name: str, value: str) -> bytes:
    """One literal header without indexing and without Huffman coding."""
    raw = value.encode("latin-1")
    index = {":authority": 1, ":method": 2, ":status": 8}.get(name)
    if index is not None:
        return bytes((index,)) + literal_size(len(raw)) + raw
    raw_name = name.encode("latin-1")
    return b"\x00" + literal_size(len(raw_name)) + raw_name + literal_size(len(raw)) + raw


def encode_headers(headers: Iterable[tuple[str, str]]) -> bytes:
    return b"".join([encode_header(name, value) for name, value in headers])


_STATIC_NAMES = {1: b":authority", 2: b":method", 8: b":status"}
_STATIC_FIELDS = {
    8: (b":status", b"200"),
    9: (b":status", b"204"),
    12: (b":status", b"400"),
    13: (b":status", b"404"),
    14: (b":status", b"500"),
}


def decode_plain(block: bytes) -> list[tuple[bytes, bytes]] | None:
    """The headers of a block that needs no decoder state, or None if it is not that simple.

    Accepts literals that are not indexed, in plain text shorter than 127 bytes, and the static table's status
    fields. None says nothing about validity: give the block to a full decoder.
    """
    headers: list[tuple[bytes, bytes]] = []
    at, size = 0, len(block)
    try:
        while at < size:
            first = block[at]
            if not first & 0xEF:  # a literal with a name of its own, not indexed or never to be
                start = at + 2
                at = start + block[at + 1]
                if at > start + 126:
                    return None
                name = block[start:at]
            elif first & 0x80:
                field = _STATIC_FIELDS.get(first & 0x7F)
                if field is None:
                    return None
                headers.append(field)
                at += 1
                continue
            else:
                known = _STATIC_NAMES.get(first & 0x0F)
                if known is None or first & 0x60:
                    return None
                name = known
                at += 1
            length = block[at]
            start = at + 1
            if length >= 127:
                if length != 127 or block[start] >= 128:
                    return None
                length += block[start]
                start += 1
            at = start + length
            headers.append((name, block[start:at]))
    except IndexError:
        return None
    return headers if at == size else None
