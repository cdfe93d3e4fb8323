"""DATA and the windows that bound it, on both sides of a tunnel."""

from __future__ import annotations

import socket

import pytest
from engine_pair import CONNECT, INITIAL_WINDOW, MAX_FRAME, Pair, Raw, fill, read_now, setting

from ztunnel.core.wire import frames
from ztunnel.worker.engine.h2 import Settings


def test_a_reader_that_stops_bounds_what_its_sender_can_send() -> None:
    window = 128 * 1024
    with Pair(server=Settings(stream_window=window)) as pair:
        app, stream, _ = pair.connect()
        pair.accepted()
        for _ in range(400):
            try:
                app.send(b"x" * 65536)
            except BlockingIOError:
                pair.turn(2)
        (server_stream,) = pair.server.streams.values()
        assert stream.window == 0
        assert server_stream.buffered <= window


def test_the_first_request_keeps_to_the_window_that_is_announced_after_it() -> None:
    with Raw(client=True) as raw:
        raw.turn()
        app, _, conversation = raw.open()
        raw.greet(setting(INITIAL_WINDOW, 10))
        app.send(b"x" * 100)
        raw.send(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.RESPONSE_200))
        assert conversation.headers is not None
        assert b"".join(frame.body for frame in raw.frames(frames.DATA)) == b"x" * 10
        raw.send(frames.window_update(1, 90))
        assert b"".join(frame.body for frame in raw.frames(frames.DATA)) == b"x" * 100


def test_frames_are_as_small_as_the_peer_wants_them() -> None:
    with Raw() as raw:
        raw.greet(setting(MAX_FRAME, 20_000) + setting(INITIAL_WINDOW, 1 << 24))
        raw.send(frames.window_update(0, 1 << 24))
        raw.request()
        app, sent = raw.side.applications[0], 0
        while sent < 2_000_000:
            sent += fill(app, 2_000_000 - sent)
            raw.turn()
        raw.turn()
        sizes = [len(f.body) for f in raw.frames(frames.DATA)]
        assert sum(sizes) == sent
        assert max(sizes) == 20_000


def test_a_changed_initial_window_changes_open_streams_too() -> None:
    with Raw() as raw:
        raw.greet(setting(INITIAL_WINDOW, 1000))
        raw.request()
        fill(raw.side.applications[0], 10_000)

        def sent() -> int:
            raw.turn()
            return sum(len(f.body) for f in raw.frames(frames.DATA))

        assert sent() == 1000
        raw.send(frames.frame(frames.SETTINGS, 0, 0, setting(INITIAL_WINDOW, 500)))
        assert raw.tunnel.streams[1].window == -500
        raw.send(frames.window_update(1, 400))
        assert sent() == 1000
        raw.send(frames.frame(frames.SETTINGS, 0, 0, setting(INITIAL_WINDOW, 700)))
        assert sent() == 1100


def test_windows_below_the_default_do_not_punish_a_peer_that_relies_on_it() -> None:
    with Raw(settings=Settings(stream_window=1000, connection_window=1000)) as raw:
        raw.send(
            frames.PREFACE
            + frames.frame(frames.SETTINGS, 0, 0)
            + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, CONNECT)
            + frames.frame(frames.DATA, 0, 1, bytes(16_000)) * 4
        )
        assert len(read_now(raw.side.applications[0])) == 64_000
        assert raw.resets() == {}
        assert raw.goaway() is None


@pytest.mark.parametrize(
    ("increment", "code"), [(0, frames.PROTOCOL_ERROR), (frames.MAX_WINDOW, frames.FLOW_CONTROL_ERROR)]
)
def test_a_broken_stream_window_ends_that_stream_only(increment: int, code: int) -> None:
    with Raw() as raw:
        raw.greet()
        raw.request(1)
        raw.request(3)
        raw.send(frames.window_update(1, increment) + frames.frame(frames.DATA, 0, 3, b"unharmed"))
        assert raw.resets() == {1: code}
        assert read_now(raw.side.applications[1]) == b"unharmed"


def test_more_than_the_connections_window_ends_the_tunnel() -> None:
    with Raw(settings=Settings(stream_window=1 << 20, connection_window=1 << 20)) as raw:
        raw.greet()
        raw.request()
        raw.tunnel._receive_window = 10_000
        raw.send(frames.frame(frames.DATA, 0, 1, bytes(10_001)))
        assert raw.goaway() == frames.FLOW_CONTROL_ERROR


def test_a_half_close_needs_no_window() -> None:
    with Raw() as raw:
        raw.greet(setting(INITIAL_WINDOW, 0))
        raw.request()
        raw.side.applications[0].shutdown(socket.SHUT_WR)
        raw.turn()
        assert [(f.flags, f.body) for f in raw.frames(frames.DATA)] == [(frames.END_STREAM, b"")]


def test_a_half_close_needs_no_window_also_when_the_application_was_silent_at_first() -> None:
    with Raw(client=True) as raw:
        raw.greet(setting(INITIAL_WINDOW, 0))
        app, _, _ = raw.open()
        raw.send(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.RESPONSE_200))
        app.shutdown(socket.SHUT_WR)
        raw.turn()
        assert [(f.flags, f.body) for f in raw.frames(frames.DATA)] == [(frames.END_STREAM, b"")]
