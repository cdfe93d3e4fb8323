"""The socket beneath a tunnel: blocked, slow, gone; and what is said last is heard."""

from __future__ import annotations

import contextlib

import pytest
from engine_pair import CONNECT, Pair, Raw, fill, parse_frames, read_now

from ztunnel.core.wire import frames
from ztunnel.worker.engine import transport
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.loop import Loop

OPEN = frames.window_update(0, 1 << 30) + frames.window_update(1, 1 << 30)


def take(raw: Raw, size: int = 1 << 20) -> int:
    """Read from the tunnel's socket without turning the loop."""
    try:
        data = raw.sock.recv(size)
    except BlockingIOError:
        return 0
    raw.received += data
    return len(data)


def push(raw: Raw, limit: int = 1 << 23) -> int:
    """Have the application send while the peer does not read, until nothing moves."""
    app, sent, stuck = raw.side.applications[0], 0, 0
    while sent < limit and stuck < 5:
        more = fill(app, min(limit - sent, 1 << 18))
        stuck = 0 if more else stuck + 1
        sent += more
        raw.loop.turn(0)
    return sent


def test_a_peer_that_does_not_read_stops_the_application() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(OPEN)
        sent = push(raw)
        assert sent < 1 << 22
        assert raw.tunnel.blocked
        for _ in range(3):
            raw.loop.turn(0)
        assert raw.loop.turn(0) == 0, "a blocked tunnel has nothing to do"


def test_every_byte_arrives_through_partial_sends() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(OPEN)
        sent = push(raw)
        total = 3_000_000
        while raw.tunnel.blocked or take(raw, 7001):
            take(raw, 7001)
            if sent < total:
                sent += fill(raw.side.applications[0], total - sent)
            raw.loop.turn(0)
        raw.turn()
        assert sum(len(frame.body) for frame in raw.frames(frames.DATA)) == sent == total


def test_what_is_said_while_blocked_arrives_in_order() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(OPEN)
        sent = push(raw)
        for number in range(5):
            raw.sock.send(frames.ping(bytes([number]) * 8))
            raw.loop.turn(0)
        while take(raw) or raw.tunnel.blocked:
            raw.loop.turn(0)
        raw.turn(10)
        found = parse_frames(bytes(raw.received))
        assert [f.body[0] for f in found if f.kind == frames.PING] == [0, 1, 2, 3, 4]
        assert sum(len(f.body) for f in found if f.kind == frames.DATA) == sent


def test_a_peer_that_asks_and_never_reads_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_UNSENT", 100_000)
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(OPEN)
        push(raw)
        raw.side.answer = "401"
        stream = 3
        while not raw.tunnel.closed:
            with contextlib.suppress(BlockingIOError):
                raw.sock.send(frames.frame(frames.HEADERS, frames.END_HEADERS, stream, CONNECT))
            stream += 2
            raw.loop.turn(0)
            assert stream < 100_000
        assert raw.side.ending is not None
        assert "does not read" in raw.side.ending.error or "too many" in raw.side.ending.error


def test_a_drained_tunnel_waits_until_the_last_bytes_are_taken() -> None:
    """A stream that has ended may have left its bytes in a full socket."""
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(OPEN)
        sent = push(raw)
        raw.sock.send(frames.end_stream(1))
        raw.side.applications[0].close()
        for _ in range(5):
            raw.loop.turn(0)
        while raw.tunnel.streams:  # the last bytes of the application, read as the peer reads
            take(raw)
            raw.loop.turn(0)
        raw.tunnel.drain()
        while take(raw, 50_000) or not raw.tunnel.closed:
            raw.loop.turn(0)
        raw.turn(10)
        found = parse_frames(bytes(raw.received))
        assert sum(len(f.body) for f in found if f.kind == frames.DATA) == sent
        assert found[-1].kind == frames.GOAWAY
        assert raw.side.ending == Ending("drained", "-")
        assert raw.ended


def test_a_drained_tunnel_says_what_waits_before_it_closes() -> None:
    with Raw() as raw:
        raw.greet()
        raw.request()
        raw.send(OPEN)
        push(raw)
        assert raw.tunnel.blocked
        raw.tunnel.streams[1].abort("enough")
        raw.tunnel.drain()
        while take(raw) or not raw.tunnel.closed:
            raw.loop.turn(0)
        raw.turn()
        assert [f.kind for f in parse_frames(bytes(raw.received))[-2:]] == [frames.RST_STREAM, frames.GOAWAY]


def test_a_drained_tunnel_lets_its_peer_close_first() -> None:
    """A close with unread bytes (a window update is enough) would reset, and throw away what is still to be sent."""
    with Raw() as raw:
        raw.greet()
        raw.tunnel.drain()
        raw.sock.send(frames.window_update(0, 5000))
        raw.loop.turn(0)
        raw.sock.send(frames.ping(b"12345678"))
        raw.turn()
        assert raw.ended
        assert raw.goaway() == frames.NO_ERROR
        assert len(raw.loop.lingering) == 1
        raw.sock.close()
        raw.loop.turn(0)
        assert len(raw.loop.lingering) == 0


def test_a_peer_that_vanishes_ends_the_tunnel_and_its_streams() -> None:
    with Pair() as pair:
        app, _, conversation = pair.connect()
        pair.accepted()
        pair.server.abort("gone")
        pair.run_until(lambda: conversation.ending)
        assert pair.client.closed
        assert conversation.ending is not None
        assert conversation.ending.error.startswith("the tunnel is gone")
        assert read_now_or_reset(app)


def read_now_or_reset(sock: object) -> bool:
    try:
        read_now(sock)  # type: ignore[arg-type]
    except ConnectionResetError:
        return True
    return True


def test_a_failure_is_reported_once_and_a_closed_transport_is_silent() -> None:
    with Raw() as raw:
        raw.greet()
        raw.sock.close()
        raw.loop.turn(0)
        assert raw.side.ending is not None
        assert "closed the connection" in raw.side.ending.error
        raw.side.ending = None
        raw.tunnel.write(b"nothing")
        raw.tunnel.close(Ending("again"))
        raw.tunnel.abort("again")
        raw.loop.turn(0)
        assert raw.side.ending is None


def test_tunnels_share_a_buffer_and_keep_their_bytes_apart() -> None:
    loop = Loop()
    with Raw(loop=loop) as one, Raw(loop=loop) as other:
        one.greet()
        other.greet()
        one.received.clear()
        other.received.clear()
        for number in range(50):
            one.tunnel.write(frames.ping(bytes([number]) * 8))
            other.tunnel.write(frames.ping(bytes([100 + number]) * 8))
        one.turn()
        other.turn()
        assert [f.body[0] for f in parse_frames(bytes(one.received))] == list(range(50))
        assert [f.body[0] for f in parse_frames(bytes(other.received))] == list(range(100, 150))
    loop.shutdown()


def test_tiny_frames_make_the_next_reads_smaller_and_large_ones_larger_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour waits for a bounded number of frames, however small a peer makes them."""
    counts: list[int] = []
    digested = transport.Transport._digested

    def note(self: transport.Transport, count: int) -> None:
        counts.append(count)
        digested(self, count)

    monkeypatch.setattr(transport.Transport, "_digested", note)
    with Raw() as raw:
        raw.greet()
        raw.request()
        counts.clear()
        flood = frames.frame(frames.DATA, 0, 1, b"x") * 30_000
        view = memoryview(flood)
        while view:
            try:
                view = view[raw.sock.send(view) :]
            except BlockingIOError:
                raw.loop.turn(0)
                read_now(raw.side.applications[0])
        raw.turn()
        assert sum(counts) >= 30_000
        assert max(counts[1:]) <= 2 * transport.FRAMES_PER_READ
        raw.send(frames.frame(frames.DATA, 0, 1, bytes(500_000)))
        for _ in range(40):
            read_now(raw.side.applications[0])
            raw.turn()
        raw.send(frames.frame(frames.DATA, 0, 1, bytes(800_000)))
        assert counts[-1] < 100
