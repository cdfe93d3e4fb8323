"""What costs much and carries nothing is ended, and nobody beside it notices; what only looks like it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_pair import CONNECT, Conversation, Pair, Raw, read_now

from ztunnel.core.wire import frames
from ztunnel.worker.engine.loop import Loop


def is_calmed(raw: Raw) -> bool:
    return raw.tunnel.closed and raw.goaway() == frames.ENHANCE_YOUR_CALM


def rapid_resets(count: int) -> bytes:
    return b"".join(
        frames.frame(frames.HEADERS, frames.END_HEADERS, 2 * i + 1, CONNECT) + frames.rst_stream(2 * i + 1, 8)
        for i in range(2, count)
    )


FLOODS: dict[str, Callable[[int], bytes]] = {
    "thousands of streams": lambda count: b"".join(
        frames.frame(frames.HEADERS, frames.END_HEADERS, 2 * i + 1, CONNECT) for i in range(2, count)
    ),
    "rapid resets": rapid_resets,
    "rapid resets with a little data on another stream": lambda count: b"".join(
        frames.frame(frames.HEADERS, frames.END_HEADERS, 2 * i + 1, CONNECT)
        + frames.frame(frames.DATA, 0, 1, b"x")
        + frames.rst_stream(2 * i + 1, 8)
        for i in range(2, count)
    ),
    "SETTINGS": lambda count: frames.frame(frames.SETTINGS, 0, 0) * count,
    "acknowledgements of SETTINGS": lambda count: frames.frame(frames.SETTINGS, frames.ACK, 0) * count,
    "PING": lambda count: frames.ping(bytes(8)) * count,
    "PING with a little data": lambda count: (frames.ping(bytes(8)) + frames.frame(frames.DATA, 0, 1, b"x")) * count,
    "answers to PING": lambda count: frames.frame(frames.PING, frames.ACK, 0, bytes(8)) * count,
    "empty DATA": lambda count: frames.frame(frames.DATA, 0, 1) * count,
    "empty padded DATA": lambda count: frames.frame(frames.DATA, frames.PADDED, 1, bytes([10, *range(10)])) * count,
    "tiny WINDOW_UPDATEs of a stream": lambda count: frames.window_update(1, 1) * count,
    "tiny WINDOW_UPDATEs of the connection": lambda count: frames.window_update(0, 1) * count,
    "PRIORITY": lambda count: frames.frame(frames.PRIORITY, 0, 1, bytes(5)) * count,
    "unknown frames": lambda count: frames.frame(0x99, 0, 1) * count,
    "GOAWAY": lambda count: frames.goaway(0, 0) * count,
    "resets of closed streams": lambda count: frames.rst_stream(3, 0) * count,
    "the end of closed streams": lambda count: frames.end_stream(3) * count,
    "headers of closed streams": lambda count: frames.frame(frames.HEADERS, frames.END_HEADERS, 3, CONNECT) * count,
    "window updates of closed streams": lambda count: frames.window_update(3, 1) * count,
}


@pytest.mark.parametrize(
    ("what", "accepts"),
    [(what, what != "thousands of streams") for what in FLOODS] + [(what, False) for what in FLOODS if "rapid" in what],
)
def test_a_flood_is_ended_and_its_neighbour_undisturbed(what: str, accepts: bool) -> None:
    loop = Loop()
    with Raw(loop=loop) as flooding, Raw(loop=loop) as neighbour:
        for raw in (flooding, neighbour):
            raw.greet()
            raw.request(1)
        flooding.request(3)
        flooding.send(frames.rst_stream(3, frames.CANCEL))
        flooding.side.answer = "200" if accepts else ""
        flood = FLOODS[what](6000)
        for at in range(0, len(flood), 8192):
            flooding.send(flood[at : at + 8192])
            read_now(flooding.side.applications[0])
            neighbour.send(frames.frame(frames.DATA, 0, 1, b"x"))
        assert is_calmed(flooding)
        assert not neighbour.tunnel.closed
        assert len(read_now(neighbour.side.applications[0])) >= 1
        assert neighbour.goaway() is None
    loop.shutdown()


def test_a_continuation_flood_is_ended() -> None:
    with Raw() as raw:
        raw.greet()
        raw.send(frames.frame(frames.HEADERS, 0, 1, b"") + frames.frame(frames.CONTINUATION, 0, 1, b"") * 1000)
        assert is_calmed(raw)


def test_a_header_block_without_end_is_ended() -> None:
    with Raw() as raw:
        raw.greet()
        piece = frames.encode_header("x", "y" * 16_000)
        raw.send(frames.frame(frames.HEADERS, 0, 1, piece) + frames.frame(frames.CONTINUATION, 0, 1, piece) * 10)
        assert is_calmed(raw)
        assert raw.side.requests == []


def test_a_few_continuations_are_no_flood() -> None:
    with Raw() as raw:
        raw.greet()
        pieces = [CONNECT[at : at + 6] for at in range(0, len(CONNECT), 6)]
        raw.send(
            frames.frame(frames.HEADERS, 0, 1, b"")
            + b"".join(frames.frame(frames.CONTINUATION, 0, 1, piece) for piece in pieces)
            + frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1),
            chunk=3,
        )
        assert raw.side.requests == [[(b":method", b"CONNECT"), (b":authority", b"10.0.0.2:80")]]


def test_a_busy_peer_is_no_flood() -> None:
    """Every round: a message, its window given back in small steps, a PING as gRPC's bandwidth estimate sends them."""
    with Raw() as raw:
        raw.greet()
        raw.request()
        app = raw.side.applications[0]
        for _ in range(3000):
            app.send(b"a" * 100)
            raw.sock.send(
                frames.frame(frames.DATA, 0, 1, bytes(4096))
                + frames.ping(bytes(8))
                + frames.window_update(1, 100)
                + frames.window_update(0, 100)
            )
            raw.loop.turn(0)
            app.recv(1 << 16)
            raw.collect()
        assert not raw.tunnel.closed


def test_many_refused_requests_are_no_flood_of_either_side() -> None:
    """A policy that denies thousands of connections a second must not end the tunnel that others use."""
    with Pair(answer="401") as pair:
        pair.client_side.changed = lambda tunnel: None  # type: ignore[method-assign]
        for _ in range(60):
            conversations = [Conversation() for _ in range(100)]
            for conversation in conversations:
                pair.client.open_stream(CONNECT, conversation)
            pair.run_until(lambda heard=conversations: all(each.ending for each in heard))
        assert not pair.client.closed
        assert not pair.server.closed


def test_half_a_frame_waits_and_costs_no_more_than_a_frame() -> None:
    with Raw() as raw:
        raw.greet()
        whole = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.encode_header("x", "y" * 60_000))
        raw.send(whole[:-1])
        assert len(raw.tunnel._carry) == len(whole) - 1
        assert raw.side.requests == []
        for _ in range(3):
            assert raw.loop.turn(0) == 0
        raw.send(whole[-1:])
        assert len(raw.side.requests) == 1
        assert raw.tunnel._carry == b""
