"""Frames and header blocks: what is built reads back with the h2 library's own parsers, and the other way round."""

from __future__ import annotations

import hpack
import pytest
from hyperframe.frame import Frame
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.core.wire import frames

deterministic = settings(derandomize=True, deadline=None)

stream_ids = st.integers(1, frames.MAX_WINDOW)
codes = st.integers(0, 2**32 - 1)
visible = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=300)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=140)
pseudo = st.sampled_from([":authority", ":method", ":status", ":protocol"])
header_lists = st.lists(st.tuples(names | pseudo, visible), max_size=8)


def parse(data: bytes) -> Frame:
    frame, length = Frame.parse_frame_header(memoryview(data[:9]))
    frame.parse_body(memoryview(data[9:]))
    assert len(data) == 9 + length
    return frame


def hpack_decode(block: bytes) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in hpack.Decoder().decode(block, raw=True)]


@deterministic
@given(stream_ids, st.integers(1, frames.MAX_WINDOW))
def test_window_updates_read_back(stream: int, increment: int) -> None:
    frame = parse(frames.window_update(stream, increment))
    assert (type(frame).__name__, frame.stream_id, frame.window_increment) == ("WindowUpdateFrame", stream, increment)


@deterministic
@given(stream_ids, codes)
def test_resets_read_back(stream: int, code: int) -> None:
    frame = parse(frames.rst_stream(stream, code))
    assert (type(frame).__name__, frame.stream_id, frame.error_code) == ("RstStreamFrame", stream, code)


@deterministic
@given(stream_ids)
def test_the_end_of_a_stream_reads_back(stream: int) -> None:
    frame = parse(frames.end_stream(stream))
    assert (type(frame).__name__, frame.stream_id, frame.data, set(frame.flags)) == (
        "DataFrame",
        stream,
        b"",
        {"END_STREAM"},
    )


@deterministic
@given(st.integers(0, frames.MAX_WINDOW), codes, visible)
def test_goaways_read_back(last: int, code: int, text: str) -> None:
    frame = parse(frames.goaway(last, code, text))
    assert type(frame).__name__ == "GoAwayFrame"
    assert (frame.last_stream_id, frame.error_code, frame.additional_data) == (last, code, text.encode())


@deterministic
@given(st.binary(min_size=8, max_size=8))
def test_pings_read_back(opaque: bytes) -> None:
    frame = parse(frames.ping(opaque))
    assert (type(frame).__name__, frame.opaque_data, set(frame.flags)) == ("PingFrame", opaque, set())


@deterministic
@given(st.integers(0, 9), st.integers(0, 255), stream_ids, st.binary(max_size=70_000))
def test_a_frame_header_says_what_was_put_in(kind: int, flags: int, stream: int, body: bytes) -> None:
    data = frames.frame(kind, flags, stream, body)
    high, low, *rest = frames.unpack_header(data, 0)
    assert (high << 8 | low, *rest) == (len(body), kind, flags, stream)
    packed = bytearray(12)
    frames.pack_header(packed, 3, len(body) >> 8, len(body) & 255, kind, flags, stream)
    assert bytes(packed[3:]) == data[:9]


@deterministic
@given(header_lists)
def test_headers_read_back_with_any_decoder(headers: list[tuple[str, str]]) -> None:
    block = frames.encode_headers(headers)
    raw = [(name.encode(), value.encode()) for name, value in headers]
    assert hpack_decode(block) == raw
    assert frames.decode_plain(block) in (raw, None)
    if all(len(name) < 127 and len(value) < 255 for name, value in headers):
        assert frames.decode_plain(block) == raw


@deterministic
@given(header_lists, st.integers(0, 3))
def test_headers_never_depend_on_what_was_sent_before(headers: list[tuple[str, str]], repeats: int) -> None:
    decoder = hpack.Decoder()
    block = frames.encode_headers(headers)
    first = decoder.decode(block, raw=True)
    for _ in range(repeats):
        assert decoder.decode(block, raw=True) == first
    assert decoder.header_table.dynamic_entries == type(decoder.header_table.dynamic_entries)()


@deterministic
@given(st.binary(max_size=200) | st.builds(lambda h, tail: frames.encode_headers(h) + tail, header_lists, st.binary()))
def test_what_decode_plain_accepts_a_full_decoder_reads_alike(block: bytes) -> None:
    plain = frames.decode_plain(block)
    if plain is not None:
        assert plain == hpack_decode(block)


@deterministic
@given(header_lists, st.booleans())
def test_blocks_of_other_encoders_are_read_alike_or_left_alone(headers: list[tuple[str, str]], huffman: bool) -> None:
    block = hpack.Encoder().encode(headers, huffman=huffman)
    plain = frames.decode_plain(block)
    assert plain is None or plain == [(name.encode(), value.encode()) for name, value in headers]


@deterministic
@given(header_lists, st.data())
def test_a_cut_block_is_left_alone_or_ends_between_headers(headers: list[tuple[str, str]], data: st.DataObject) -> None:
    block = frames.encode_headers(headers)
    cut = data.draw(st.integers(0, len(block)))
    plain = frames.decode_plain(block[:cut])
    assert plain is None or plain == [(name.encode(), value.encode()) for name, value in headers[: len(plain)]]


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 16_383, 16_510, 16_511, 30_000])
def test_lengths_at_the_edges_of_their_coding(size: int) -> None:
    block = frames.encode_header("x" * max(1, size), "y" * size)
    assert hpack_decode(block) == [(b"x" * max(1, size), b"y" * size)]


def test_a_bare_200_is_one_byte() -> None:
    assert frames.decode_plain(frames.RESPONSE_200) == hpack_decode(frames.RESPONSE_200) == [(b":status", b"200")]


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"\x82", "a static field that is no status"),
        (b"\xbe", "a field of the dynamic table"),
        (b"\x40\x01a\x01b", "a literal that enters the dynamic table"),
        (b"\x20", "a change of the table's size"),
        (b"\x01\x81\xff", "a Huffman-coded value"),
        (b"\x00\x81\xff\x01b", "a Huffman-coded name"),
        (b"\x03\x01a", "a name of the static table that is not one of ours"),
        (b"\x0f\x10\x01a", "a name with a long index"),
        (b"\x00\x7f\x00" + b"a" * 127, "a long name"),
        (b"\x00\x01a\x7f\x80\x01" + b"b" * 255, "a value with a length of three bytes"),
        (b"\x00\x05ab", "a cut name"),
        (b"\x00\x01a\x05b", "a cut value"),
        (b"\x00", "nothing after the first byte"),
    ],
)
def test_what_needs_a_full_decoder_is_left_to_it(block: bytes, why: str) -> None:
    assert frames.decode_plain(block) is None, why


@pytest.mark.parametrize(
    ("code", "name"), [(0, "NO_ERROR"), (8, "CANCEL"), (0xB, "ENHANCE_YOUR_CALM"), (99, "code 0x63")]
)
def test_codes_have_names(code: int, name: str) -> None:
    assert frames.error_name(code) == name


def test_codes_and_frame_types_are_those_of_the_standard() -> None:
    import h2.errors

    for code, name in frames.ERROR_NAMES.items():
        assert h2.errors.ErrorCodes(code).name == name
    kinds = ("DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY")
    assert [getattr(frames, kind) for kind in (*kinds, "WINDOW_UPDATE", "CONTINUATION")] == list(range(10))
