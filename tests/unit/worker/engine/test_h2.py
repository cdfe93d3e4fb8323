"""A tunnel carries CONNECT streams between two applications, faithfully."""

from __future__ import annotations

import contextlib
import socket
import time

import h2.config
import h2.connection
import h2.exceptions
import h2.settings
import hpack
import pytest
from engine_pair import CONNECT, INITIAL_WINDOW, MAX_FRAME, MAX_STREAMS, Conversation, Pair, Raw, read_now, setting

from ztunnel.core.wire import frames
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.h2 import Settings


def test_bytes_cross_a_tunnel_both_ways() -> None:
    with Pair() as pair:
        app, _stream, conversation = pair.connect()
        served, _ = pair.accepted()
        app.send(b"ping")
        assert pair.read(served, 4) == b"ping"
        served.send(b"pong")
        assert pair.read(app, 4) == b"pong"
        assert conversation.headers == [(b":status", b"200")]
        assert pair.server_side.requests == [[(b":method", b"CONNECT"), (b":authority", b"10.0.0.2:80")]]


def test_half_close_leaves_the_other_direction_open() -> None:
    with Pair() as pair:
        app, stream, conversation = pair.connect()
        served, server_conversation = pair.accepted()
        app.send(b"last words")
        app.shutdown(socket.SHUT_WR)
        assert pair.read_end(served) == b"last words"
        served.send(b"answer")
        served.shutdown(socket.SHUT_WR)
        assert pair.read_end(app) == b"answer"
        pair.run_until(lambda: conversation.ending and server_conversation.ending)
        assert conversation.ending is not None
        assert conversation.ending.ok
        assert (stream.sent, stream.received) == (10, 6)
        assert not pair.client.streams
        assert not pair.server.streams


@pytest.mark.parametrize("frame_size", [16_384, 1024 * 1024])
def test_bulk_arrives_whole_whatever_frames_the_peer_takes(frame_size: int) -> None:
    payload = bytes(range(256)) * 4096 * 6
    with Pair(server=Settings(frame_size=frame_size, stream_window=256 * 1024)) as pair:
        app, _, _ = pair.connect()
        served, _ = pair.accepted()
        sent = 0
        got = bytearray()

        def carry() -> bool:
            nonlocal sent
            for _ in range(50):
                try:
                    sent += app.send(payload[sent : sent + 65536])
                except BlockingIOError:
                    break
            with contextlib.suppress(BlockingIOError):
                got.extend(served.recv(1 << 20))
            return len(got) >= len(payload)

        pair.run_until(carry)
        assert bytes(got) == payload


def test_a_refused_tunnel_says_its_status() -> None:
    with Pair(answer="401") as pair:
        _, _, conversation = pair.connect()
        pair.run_until(lambda: conversation.ending)
        assert conversation.status == 401
        assert conversation.ending is not None
        assert "401" in conversation.ending.error


# ---- contracts, frame by frame ----


def test_a_server_announces_its_limits_and_windows() -> None:
    with Raw(settings=Settings(max_streams=7)) as raw:
        raw.greet()
        first, update, ack = raw.frames()[:3]
        values = {int.from_bytes(first.body[at : at + 2], "big"): first.body[at + 2 : at + 6] for at in range(0, 60, 6)}
        values.pop(0, None)
        said = {code: int.from_bytes(value, "big") for code, value in values.items() if value}
        assert said[MAX_STREAMS] == 7
        assert said[INITIAL_WINDOW] == 4 * 1024 * 1024
        assert said[MAX_FRAME] == 1024 * 1024
        assert said[6] == 64 * 1024
        assert (update.stream, int.from_bytes(update.body, "big")) == (0, 16 * 1024 * 1024 - 65_535)
        assert (ack.kind, ack.flags) == (frames.SETTINGS, frames.ACK)


def test_a_client_opens_no_more_streams_than_the_server_allows() -> None:
    with Raw(client=True) as raw:
        assert raw.tunnel.free_slots == 0
        raw.greet(setting(MAX_STREAMS, 2))
        assert raw.tunnel.free_slots == 2
        raw.open()
        raw.open()
        assert raw.tunnel.free_slots == 0
        raw.send(frames.frame(frames.SETTINGS, 0, 0, setting(MAX_STREAMS, 1)))
        assert raw.tunnel.free_slots == 0
        raw.send(frames.frame(frames.SETTINGS, 0, 0, setting(MAX_STREAMS, 50)))
        assert raw.tunnel.free_slots == 48
        raw.send(frames.rst_stream(1, frames.CANCEL))
        assert raw.tunnel.free_slots == 49


def test_one_request_goes_before_the_servers_settings_and_no_second() -> None:
    with Raw(client=True) as raw:
        raw.turn()
        assert raw.tunnel.free_slots == 1
        raw.open()
        assert [frame.kind for frame in raw.frames()] == [frames.SETTINGS, frames.WINDOW_UPDATE, frames.HEADERS]
        assert raw.tunnel.free_slots == 0
        raw.greet(setting(MAX_STREAMS, 3))
        assert raw.tunnel.free_slots == 2


def test_a_request_before_the_settings_fails_with_the_tunnel_that_never_was() -> None:
    with Raw(client=True) as raw:
        raw.turn()
        _, _, conversation = raw.open()
        raw.tunnel.abort("no HTTP/2 preface")
        assert conversation.ending is not None
        assert conversation.ending.error == "no tunnel: no HTTP/2 preface"


def test_pings_are_answered_with_their_own_bytes() -> None:
    with Raw() as raw:
        raw.greet()
        raw.send(frames.ping(b"12345678"))
        assert [(f.flags, f.body) for f in raw.frames(frames.PING)] == [(frames.ACK, b"12345678")]


def test_large_answers_are_split_into_continuations() -> None:
    with Raw(client=True) as raw:
        raw.greet()
        block = frames.encode_headers([(":method", "CONNECT"), (":authority", "a"), ("x", "y" * 40_000)])
        raw.tunnel.open_stream(block, Conversation())
        raw.turn()
        pieces = [f for f in raw.frames() if f.kind in (frames.HEADERS, frames.CONTINUATION)]
        assert [f.flags & frames.END_HEADERS for f in pieces] == [0, 0, frames.END_HEADERS]
        assert b"".join(f.body for f in pieces) == block


@pytest.mark.parametrize("ends", [True, False])
def test_a_refusal_ends_the_stream_for_both_sides(ends: bool) -> None:
    with Raw(client=True) as raw:
        raw.greet()
        _, _, conversation = raw.open()
        flags = frames.END_HEADERS | (frames.END_STREAM if ends else 0)
        raw.send(frames.frame(frames.HEADERS, flags, 1, frames.encode_header(":status", "503")))
        assert conversation.status == 503
        assert conversation.ending is not None
        assert "503" in conversation.ending.error
        assert raw.tunnel.streams == {}
        last = raw.frames()[-1]
        assert (last.kind, last.flags) == ((frames.DATA, frames.END_STREAM) if ends else (frames.RST_STREAM, 0))


def test_a_refused_request_costs_the_server_nothing_more() -> None:
    with Raw(answer="401") as raw:
        raw.greet()
        raw.request(1)
        raw.request(3, frames.END_STREAM)
        assert raw.resets() == {1: frames.NO_ERROR}
        assert [f.flags & frames.END_STREAM for f in raw.frames(frames.HEADERS)] == [1, 1]
        assert raw.tunnel.streams == {}


def test_interim_answers_are_passed_over() -> None:
    with Raw(client=True) as raw:
        raw.greet()
        _, _, conversation = raw.open()
        raw.send(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.encode_header(":status", "103")))
        assert conversation.headers is None
        raw.send(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.RESPONSE_200))
        assert conversation.headers == [(b":status", b"200")]


def test_an_answer_without_a_status_resets_the_stream() -> None:
    with Raw(client=True) as raw:
        raw.greet()
        _, _, conversation = raw.open()
        raw.send(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.encode_header("x", "y")))
        assert raw.resets() == {1: frames.PROTOCOL_ERROR}
        assert conversation.ending is not None
        assert "no status" in conversation.ending.error


def test_a_drain_says_goodbye_twice_and_closes_with_the_last_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Raw() as raw:
        raw.greet()
        raw.request(1)
        raw.tunnel.drain()
        raw.tunnel.drain()
        raw.request(3)
        assert len(raw.side.applications) == 2, "a request that crossed the first GOAWAY is served"
        now[0] += 1
        raw.turn()
        lasts = [int.from_bytes(f.body[:4], "big") for f in raw.frames(frames.GOAWAY)]
        assert lasts == [frames.MAX_WINDOW, 3]
        raw.request(5)
        assert raw.resets() == {5: frames.REFUSED_STREAM}
        for stream, app in zip((1, 3), raw.side.applications, strict=True):
            raw.send(frames.end_stream(stream))
            app.close()
            raw.turn()
        assert raw.side.ending == Ending("drained", "-")


def test_a_goaway_ends_only_what_the_peer_has_not_seen() -> None:
    with Raw(client=True) as raw:
        raw.greet()
        _, _, seen = raw.open()
        _, _, unseen = raw.open()
        raw.send(frames.goaway(1, frames.NO_ERROR))
        assert unseen.ending is not None
        assert "before it saw the request" in unseen.ending.error
        assert seen.ending is None
        assert raw.tunnel.free_slots == 0
        raw.send(frames.rst_stream(1, frames.CANCEL))
        assert raw.tunnel.closed


def test_the_reserved_bit_of_a_stream_means_nothing() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(frames.frame(frames.DATA, 0, 1 | 1 << 31, b"hello"))
        assert read_now(raw.side.applications[0]) == b"hello"


def test_unknown_frames_are_skipped() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(frames.frame(0x42, 0xFF, 1, bytes(100_000)) + frames.frame(frames.DATA, 0, 1, b"after"))
        assert read_now(raw.side.applications[0]) == b"after"


# ---- what peers may not do ----

F = frames
VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "DATA for an idle stream": (F.frame(F.DATA, 0, 5, b"x"), F.PROTOCOL_ERROR),
    "DATA for stream 0": (F.frame(F.DATA, 0, 0, b"x"), F.PROTOCOL_ERROR),
    "DATA that is too long": (b"\x20\0\0\0\0\0\0\0\1", F.FRAME_SIZE_ERROR),
    "padding that exceeds the frame": (F.frame(F.DATA, F.PADDED, 1, b"\x09abc"), F.PROTOCOL_ERROR),
    "padded DATA without padding": (F.frame(F.DATA, F.PADDED, 1, b""), F.FRAME_SIZE_ERROR),
    "HEADERS of an even stream": (F.frame(F.HEADERS, F.END_HEADERS, 4, CONNECT), F.PROTOCOL_ERROR),
    "HEADERS of stream 0": (F.frame(F.HEADERS, F.END_HEADERS, 0, CONNECT), F.PROTOCOL_ERROR),
    "padding that exceeds HEADERS": (F.frame(F.HEADERS, F.END_HEADERS | F.PADDED, 3, b"\x09abc"), F.PROTOCOL_ERROR),
    "broken header compression": (F.frame(F.HEADERS, F.END_HEADERS, 3, b"\xff\xff\xff\xff\xff\xff"), 0x9),
    "a header block interrupted by DATA": (
        F.frame(F.HEADERS, 0, 3, CONNECT) + F.frame(F.DATA, 0, 1, b"x"),
        F.PROTOCOL_ERROR,
    ),
    "a header block continued by another stream": (
        F.frame(F.HEADERS, 0, 3, CONNECT) + F.frame(F.CONTINUATION, F.END_HEADERS, 5),
        F.PROTOCOL_ERROR,
    ),
    "CONTINUATION out of place": (F.frame(F.CONTINUATION, F.END_HEADERS, 1), F.PROTOCOL_ERROR),
    "RST_STREAM of an idle stream": (F.rst_stream(5, 0), F.PROTOCOL_ERROR),
    "RST_STREAM of three bytes": (F.frame(F.RST_STREAM, 0, 1, b"abc"), F.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of an idle stream": (F.window_update(5, 1), F.PROTOCOL_ERROR),
    "WINDOW_UPDATE of five bytes": (F.frame(F.WINDOW_UPDATE, 0, 1, b"abcde"), F.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of nothing": (F.window_update(0, 0), F.PROTOCOL_ERROR),
    "a connection window that overflows": (F.window_update(0, F.MAX_WINDOW), F.FLOW_CONTROL_ERROR),
    "a stream window that overflows by SETTINGS": (
        F.window_update(1, F.MAX_WINDOW - 65_535) + F.frame(F.SETTINGS, 0, 0, setting(INITIAL_WINDOW, 65_536)),
        F.FLOW_CONTROL_ERROR,
    ),
    "SETTINGS with a wrong length": (F.frame(F.SETTINGS, 0, 0, b"abc"), F.FRAME_SIZE_ERROR),
    "SETTINGS of a stream": (F.frame(F.SETTINGS, 0, 1), F.PROTOCOL_ERROR),
    "SETTINGS with an impossible window": (
        F.frame(F.SETTINGS, 0, 0, setting(INITIAL_WINDOW, 1 << 31)),
        F.FLOW_CONTROL_ERROR,
    ),
    "SETTINGS with an impossible frame size": (F.frame(F.SETTINGS, 0, 0, setting(MAX_FRAME, 10)), F.PROTOCOL_ERROR),
    "PING of seven bytes": (F.ping(b"1234567"), F.FRAME_SIZE_ERROR),
    "GOAWAY of four bytes": (F.frame(F.GOAWAY, 0, 0, b"abcd"), F.FRAME_SIZE_ERROR),
    "PUSH_PROMISE": (F.frame(F.PUSH_PROMISE, F.END_HEADERS, 1, bytes(4) + CONNECT), F.PROTOCOL_ERROR),
    "a control frame that is too long": (F.frame(F.PING, 0, 0, bytes(20_000)), F.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("chunk", [1 << 20, 1], ids=["whole", "byte-at-a-time"])
@pytest.mark.parametrize("what", VIOLATIONS)
def test_a_violation_ends_the_tunnel_with_its_code(what: str, chunk: int) -> None:
    data, code = VIOLATIONS[what]
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(data, chunk)
        assert raw.tunnel.closed
        assert raw.goaway() == code
        assert raw.side.ending is not None
        assert raw.side.ending.flag == "H2_HANDSHAKE_FAILURE"
        assert raw.side.ending.error.startswith("the peer broke HTTP/2: ")
        assert frames.error_name(code) in raw.side.ending.error
        ending = raw.side.conversations[0].ending
        assert ending is not None
        assert ending.error.startswith("the tunnel is gone")


ELSEWHERE: dict[str, int | None] = {
    "DATA that is too long": None,  # the library waits for the whole frame
    "broken header compression": frames.PROTOCOL_ERROR,  # RFC 9113 section 4.3 says COMPRESSION_ERROR
    "RST_STREAM of an idle stream": None,  # RFC 9113 section 6.4 says PROTOCOL_ERROR
}
"""Where the h2 library says something else; None: nothing."""


@pytest.mark.parametrize("what", VIOLATIONS)
def test_the_h2_library_takes_it_for_a_violation_too(what: str) -> None:
    data, code = VIOLATIONS[what]
    expected = ELSEWHERE.get(what, code)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.local_settings = h2.settings.Settings(
        client=False, initial_values={h2.settings.SettingCodes.MAX_FRAME_SIZE: Settings().frame_size}
    )
    connection.max_inbound_frame_size = Settings().frame_size
    connection.initiate_connection()
    connection.receive_data(
        frames.PREFACE
        + frames.frame(frames.SETTINGS, 0, 0)
        + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, CONNECT)
    )
    connection.send_headers(1, [(":status", "200")])
    said: int | None = None
    try:
        connection.receive_data(data)
    except h2.exceptions.ProtocolError as error:
        said = int(error.error_code)
    assert said == expected


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", bytes(30)])
def test_a_client_without_the_preface_is_refused(first: bytes) -> None:
    with Raw() as raw:
        raw.send(first)
        assert raw.goaway() == frames.PROTOCOL_ERROR
        assert raw.side.ending is not None
        assert "does not speak HTTP/2" in raw.side.ending.error
        assert not raw.side.is_ready


@pytest.mark.parametrize("first", [frames.ping(bytes(8)), frames.frame(frames.DATA, 0, 1, b"x")])
def test_settings_come_first(first: bytes) -> None:
    with Raw() as raw:
        raw.send(frames.PREFACE + first)
        assert raw.goaway() == frames.PROTOCOL_ERROR
        assert not raw.side.is_ready


def test_streams_beyond_the_limit_are_refused_and_the_others_live() -> None:
    with Raw(answer="", settings=Settings(max_streams=3)) as raw:
        raw.greet()
        for stream in range(1, 200, 2):
            raw.request(stream)
        assert len(raw.tunnel.streams) == 3
        assert raw.resets() == dict.fromkeys(range(7, 200, 2), frames.REFUSED_STREAM)
        assert not raw.tunnel.closed


def test_a_header_list_that_is_too_long_is_answered_431() -> None:
    with Raw() as raw:
        raw.greet()
        encoder = hpack.Encoder()
        encoder.encode([("x", "y" * 3000)])
        entry = encoder.encode([("x", "y" * 3000)])
        assert len(entry) == 1
        block = hpack.Encoder().encode([("x", "y" * 3000)]) + entry * 30
        raw.request(1, 0, block)
        assert raw.side.requests == []
        assert frames.decode_plain(raw.frames(frames.HEADERS)[0].body) == [(b":status", b"431")]
        raw.request(3)
        assert len(raw.side.requests) == 1


def test_a_compression_bomb_ends_the_tunnel() -> None:
    with Raw() as raw:
        raw.greet()
        block = hpack.Encoder().encode([("x", "y" * 3000)]) + b"\xbe" * 60_000
        raw.request(1, 0, block)
        assert raw.tunnel.closed
        assert raw.side.requests == []


def test_headers_of_more_than_64_kilobytes_end_the_tunnel() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request(1, 0, bytes(70_000))
        assert raw.goaway() == frames.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("size", [0, 100, 4095])
def test_a_peer_with_a_smaller_header_table_is_told_that_none_is_used(size: int) -> None:
    """RFC 7541 section 4.2: or its decoder refuses everything we send from then on."""
    with Raw(client=True) as raw:
        raw.greet(setting(1, size))
        for _ in range(3):
            raw.open()
        decoder = hpack.Decoder()
        decoder.max_allowed_table_size = size
        blocks = [frame.body for frame in raw.frames(frames.HEADERS)]
        assert blocks[1:] == [CONNECT, CONNECT]
        for block in blocks:
            assert dict(decoder.decode(block, raw=True))[b":method"] == b"CONNECT"
