"""A tunnel carries CONNECT streams between two applications, faithfully."""

from __future__ import annotations

import contextlib
import socket

import pytest
from engine_pair import Pair

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
