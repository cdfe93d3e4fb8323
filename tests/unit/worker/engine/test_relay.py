"""Two sockets joined: every byte, half-close and reset crosses, whatever the speed of the readers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from engine_pair import tcp_pair

from ztunnel.worker.engine import relay as module
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.relay import Pipes, Relay
from ztunnel.worker.engine.tcp import abort_on_close

MEGABYTE = 1 << 20


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    pipes.close()


class Joined:
    """`client` and `server` are applications; between them a relay."""

    def __init__(self, loop: Loop, pipes: Pipes) -> None:
        self.client, near = tcp_pair()
        far, self.server = tcp_pair()
        self.endings: list[Ending] = []
        self.loop = loop
        self.relay = Relay(loop, pipes, near, far, self.endings.append)

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, *_: object) -> None:
        self.relay.abort("the test is over")
        self.loop.turn(0)
        self.client.close()
        self.server.close()

    def until(self, condition: Callable[[], object]) -> None:
        limit = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < limit, f"the condition did not come true: {self.relay}"
            self.loop.turn(0.001)


class Transfer:
    """Sends a pattern one way in pieces of `piece` and takes `bite` bytes per step at the other end."""

    def __init__(self, source: socket.socket, sink: socket.socket, size: int, piece: int, bite: int) -> None:
        self.source, self.sink = source, sink
        self.left = memoryview(bytes(range(251)) * (size // 251 + 1))[:size]
        self.expected = hashlib.sha256(self.left).digest()
        self.got = hashlib.sha256()
        self.piece, self.bite = piece, bite
        self.ended = False

    def step(self) -> bool:
        try:
            while self.left:
                sent = self.source.send(self.left[: self.piece])
                self.left = self.left[sent:]
                if not self.left:
                    self.source.shutdown(socket.SHUT_WR)
                if sent < self.piece:
                    break
        except BlockingIOError:
            pass
        try:
            data = self.sink.recv(self.bite)
            self.got.update(data)
            self.ended = not data
        except BlockingIOError:
            pass
        return self.ended

    @property
    def whole(self) -> bool:
        return self.got.digest() == self.expected


@pytest.mark.parametrize(
    ("piece", "bite"),
    [(MEGABYTE, MEGABYTE), (MEGABYTE, 30_000), (1000, MEGABYTE), (100_000, 5000)],
    ids=["bulk", "bulk-to-slow-reader", "small-pieces", "slow-both"],
)
def test_every_byte_crosses_both_ways_at_once(loop: Loop, pipes: Pipes, piece: int, bite: int) -> None:
    size = 12 * MEGABYTE if bite > 10_000 and piece > 10_000 else 3 * MEGABYTE
    with Joined(loop, pipes) as joined:
        up = Transfer(joined.client, joined.server, size, piece, bite)
        down = Transfer(joined.server, joined.client, size, piece, bite)
        done: dict[Transfer, bool] = {}

        def step() -> bool:
            for each in (up, down):
                if not done.get(each):
                    done[each] = each.step()
            return all(done.values())

        joined.until(step)
        joined.until(lambda: joined.endings)
        assert up.whole
        assert down.whole
        assert joined.endings == [Ending("", "-")]
        assert (joined.relay.bytes_up, joined.relay.bytes_down) == (size, size)


def test_bulk_is_spliced_and_messages_are_copied(loop: Loop, pipes: Pipes) -> None:
    with Joined(loop, pipes) as joined:
        half = joined.relay._up
        for _ in range(20):
            joined.client.send(b"x" * 1000)
            joined.until(lambda: read_some(joined.server))
        assert not half.bulk
        sent = 0
        while sent < MEGABYTE:
            with contextlib.suppress(BlockingIOError):
                sent += joined.client.send(bytes(256 * 1024))
            loop.turn(0)
            read_some(joined.server)
        assert half.bulk
        for _ in range(30):
            joined.client.send(b"x")
            joined.until(lambda: read_some(joined.server))
        assert not half.bulk
        assert half.pipe is None, "an idle relay holds no pipe"


def read_some(sock: socket.socket) -> int:
    try:
        return len(sock.recv(MEGABYTE))
    except BlockingIOError:
        return 0


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_half_close_leaves_the_other_direction_open(loop: Loop, pipes: Pipes, first: str) -> None:
    with Joined(loop, pipes) as joined:
        one, other = (joined.client, joined.server) if first == "client" else (joined.server, joined.client)
        one.send(b"last words")
        one.shutdown(socket.SHUT_WR)
        joined.until(lambda: peek(other) == b"last words")
        assert other.recv(100) == b"last words"
        joined.until(lambda: ended(other))
        assert joined.endings == []
        other.send(b"answer")
        joined.until(lambda: peek(one) == b"answer")
        other.shutdown(socket.SHUT_WR)
        joined.until(lambda: joined.endings)
        assert joined.endings[0].ok


def peek(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1000, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


def is_reset(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    # After a FIN the kernel tells of a reset only to those who ask or send.
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("state", ["idle", "half-closed", "blocked", "bulk"])
def test_a_reset_of_one_side_resets_the_other(loop: Loop, pipes: Pipes, who: str, state: str) -> None:
    with Joined(loop, pipes) as joined:
        one, other = (joined.client, joined.server) if who == "client" else (joined.server, joined.client)
        if state == "half-closed":
            one.shutdown(socket.SHUT_WR)
            loop.turn(0)
        elif state == "blocked":
            stuff(loop, other)
        elif state == "bulk":
            stuff(loop, one)
        abort_on_close(one)
        one.close()
        joined.until(lambda: joined.endings or is_reset(other))
        joined.until(lambda: joined.endings)
        assert "reset" in joined.endings[0].error
        joined.until(lambda: is_reset(other))
        assert loop.turn(0) <= 1


def stuff(loop: Loop, sock: socket.socket) -> None:
    """Send until nothing moves any more."""
    stuck = 0
    while stuck < 20:
        try:
            sock.send(bytes(MEGABYTE))
            stuck = 0
        except BlockingIOError:
            stuck += 1
            loop.turn(0)


def test_fin_of_one_side_passes_while_the_other_is_blocked(loop: Loop, pipes: Pipes) -> None:
    """The server does not read, so the client's FIN waits behind its bytes; the server's own need not wait."""
    with Joined(loop, pipes) as joined:
        stuff(loop, joined.client)
        joined.client.shutdown(socket.SHUT_WR)
        joined.server.shutdown(socket.SHUT_WR)
        joined.until(lambda: ended(joined.client))
        assert joined.endings == []
        joined.until(lambda: ended(joined.server))
        joined.until(lambda: joined.endings)
        assert joined.endings[0].ok


def ended(sock: socket.socket) -> bool:
    try:
        while sock.recv(MEGABYTE):
            pass
    except BlockingIOError:
        return False
    return True


def test_a_slow_reader_stops_the_sender(loop: Loop, pipes: Pipes) -> None:
    with Joined(loop, pipes) as joined:
        stuff(loop, joined.client)
        moved = joined.relay.bytes_up
        for _ in range(50):
            loop.turn(0)
        assert joined.relay.bytes_up == moved
        assert loop.turn(0) == 0, "a blocked relay has nothing to do"


def test_an_idle_or_half_open_relay_has_nothing_to_do(loop: Loop, pipes: Pipes) -> None:
    with Joined(loop, pipes) as joined:
        joined.client.shutdown(socket.SHUT_WR)
        loop.turn(0.1)
        loop.turn(0)
        assert loop.turn(0) == 0


def test_a_side_that_is_wholly_gone_is_not_watched_for_ever(loop: Loop, pipes: Pipes) -> None:
    client, near = socket.socketpair()
    far, server = tcp_pair()
    near.setblocking(False)
    endings: list[Ending] = []
    relay = Relay(loop, pipes, near, far, endings.append)
    client.send(b"x")
    client.close()
    for _ in range(5):
        loop.turn(0)
    assert loop.turn(0) == 0
    assert peek(server) == b"x"
    server.send(b"for nobody")
    limit = time.monotonic() + 10
    while not endings and time.monotonic() < limit:
        loop.turn(0.01)
    assert relay.closed
    assert not endings[0].ok
    loop.turn(0)
    server.close()


def test_abort_resets_both_and_is_told_once(loop: Loop, pipes: Pipes) -> None:
    with Joined(loop, pipes) as joined:
        stuff(loop, joined.client)
        joined.relay.abort("denied by policy", "DENY")
        joined.relay.abort("again")
        loop.turn(0)
        assert is_reset(joined.server)
        assert is_reset(joined.client)
        assert joined.endings == [Ending("denied by policy", "DENY")]


def test_sockets_that_another_process_has_too_are_heard_of_no_more(loop: Loop, pipes: Pipes) -> None:
    client, near = tcp_pair()
    far, server = tcp_pair()
    copy = far.dup()
    relay = Relay(loop, pipes, near, far, lambda ending: None, shared=True)
    with client, server, copy:
        server.sendall(b"never read")
        relay.abort("enough")
        loop.turn(0)
        assert loop.turn(0) == 0


def test_pipes_are_capped_and_lent_again(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIPES", 2)
    pipes = Pipes()
    first, second = pipes.borrow(), pipes.borrow()
    assert first is not None
    assert second is not None
    assert pipes.borrow() is None
    pipes.give_back(first, empty=True)
    assert pipes.borrow() is first
    pipes.give_back(first, empty=False)
    third = pipes.borrow()
    assert third is not None
    assert third is not first
    pipes.give_back(second, empty=True)
    pipes.give_back(third, empty=True)
    pipes.close()


def test_without_pipes_bytes_are_copied(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIPES", 0)
    with Joined(loop, Pipes()) as joined:
        transfer = Transfer(joined.client, joined.server, 4 * MEGABYTE, MEGABYTE, MEGABYTE)
        joined.until(transfer.step)
        assert transfer.whole


def test_three_hundred_pairs_at_once(loop: Loop, pipes: Pipes) -> None:
    pairs = [Joined(loop, pipes) for _ in range(300)]
    transfers = [
        Transfer(joined.client, joined.server, 200_000 + index, 100_000, 50_000) for index, joined in enumerate(pairs)
    ]
    transfers += [
        Transfer(joined.server, joined.client, 30_000 + index, 1000, 9000) for index, joined in enumerate(pairs)
    ]
    waiting = transfers
    limit = time.monotonic() + 30
    while waiting:
        assert time.monotonic() < limit
        loop.turn(0)
        waiting = [each for each in waiting if not each.step()]
    assert all(each.whole for each in transfers)
    while not all(joined.endings for joined in pairs):
        assert time.monotonic() < limit
        loop.turn(0.01)
    assert all(joined.endings[0].ok for joined in pairs)
    for joined in pairs:
        joined.client.close()
        joined.server.close()


def test_a_relay_never_touches_frames_that_wait_to_be_sealed(loop: Loop, pipes: Pipes) -> None:
    """Tunnels cork frames in a buffer of the loop until the end of the turn; a relay uses another one."""
    scratch = loop.scratch
    waiting = bytes(range(256)) * (len(scratch.clear) // 256)
    scratch.clear[: len(waiting)] = waiting
    with Joined(loop, pipes) as joined:
        joined.client.send(b"\xff" * 200_000)
        joined.until(lambda: peek(joined.server))
    assert bytes(scratch.clear_view[: len(waiting)]) == waiting
