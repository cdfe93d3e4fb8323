"""Accepting, connecting, options and resets of plain TCP."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ztunnel.core.model.address import Address
from ztunnel.linux import sockets
from ztunnel.worker.engine import tcp
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.tcp import Dialler, Listener, SocketOptions, abort_on_close


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    sock.setblocking(False)
    yield sock
    sock.close()


def connect(listening: socket.socket) -> socket.socket:
    return socket.create_connection(listening.getsockname(), 5)  # noqa: TID251 - a client of the test


def test_connections_are_accepted_in_batches(loop: Loop, listening: socket.socket) -> None:
    taken: list[socket.socket] = []
    listener = Listener(loop, listening, lambda sock, _peer: taken.append(sock))
    clients = [connect(listening) for _ in range(70)]
    loop.turn(1)
    assert len(taken) == 64
    loop.turn(1)
    assert len(taken) == 70
    assert not taken[0].getblocking()
    listener.close()
    for sock in (*clients, *taken):
        sock.close()


def test_a_connection_whose_setup_fails_does_not_end_the_listener(
    loop: Loop, listening: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[socket.socket] = []

    def take(sock: socket.socket, _peer: Any) -> None:
        if not taken:
            taken.append(sock)
            raise RuntimeError("a bug")
        taken.append(sock)

    listener = Listener(loop, listening, take)
    clients = [connect(listening) for _ in range(2)]
    loop.turn(1)
    assert len(taken) == 2
    assert "a bug" in caplog.text
    assert clients[0].recv(1) == b""
    listener.close()
    for sock in (*clients, *taken):
        sock.close()


def test_a_closed_listener_takes_nothing_more(loop: Loop, listening: socket.socket) -> None:
    taken: list[socket.socket] = []

    def take(sock: socket.socket, _peer: Any) -> None:
        taken.append(sock)
        listener.close()

    listener = Listener(loop, listening, take)
    clients = [connect(listening) for _ in range(3)]
    loop.turn(1)
    assert len(taken) == 1
    assert listening.fileno() == -1
    listener.close()
    for sock in (*clients, *taken):
        sock.close()


def test_without_descriptors_the_listener_pauses_and_goes_on(
    loop: Loop, listening: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    full = True

    def accept(sock: socket.socket, family: int) -> tuple[socket.socket, Any]:
        if full:
            raise OSError(errno.EMFILE, "Too many open files")
        return sockets.accept(sock, family)

    monkeypatch.setattr(tcp, "accept", accept)
    taken: list[socket.socket] = []
    listener = Listener(loop, listening, lambda accepted, _peer: taken.append(accepted))
    client = connect(listening)
    loop.turn(1)
    assert "raise the limit" in caplog.text
    assert loop.turn(0) <= 1, "only the waker"
    assert loop.turn(0) == 0
    full = False
    now[0] += tcp.ACCEPT_PAUSE
    loop.turn(0)
    loop.turn(0)
    assert len(taken) == 1
    listener.close()
    client.close()
    taken[0].close()


# ---- connecting ----


class Dial:
    """One connect and what was said of it."""

    def __init__(self, dialler: Dialler, address: Address, sock: socket.socket | None = None) -> None:
        self.sock = sock or socket.socket()
        self.sock.setblocking(False)
        self.answers: list[OSError | None] = []
        dialler.connect(self.sock, address, self.answers.append)


def silent_address() -> tuple[Address, list[socket.socket]]:
    """A listener whose queue is full: connects to it get no answer."""
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    held = [full]
    for _ in range(3):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(full.getsockname())
        held.append(client)
    return Address(*full.getsockname()), held


def test_a_connect_on_this_host_is_over_at_once(loop: Loop, listening: socket.socket) -> None:
    dial = Dial(Dialler(loop, 10), Address(*listening.getsockname()))
    assert dial.answers == [None]
    dial.sock.close()


def test_a_refused_connect_says_why(loop: Loop) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dial = Dial(Dialler(loop, 10), Address(*unused.getsockname()))
    assert dial.answers[0] is not None
    assert dial.answers[0].errno == errno.ECONNREFUSED
    dial.sock.close()


def test_a_connect_without_an_answer_ends_at_its_time_limit(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    address, held = silent_address()
    dial = Dial(Dialler(loop, 10), address)
    loop.turn(0)
    assert dial.answers == []
    now[0] += 10
    loop.turn(0)
    assert isinstance(dial.answers[0], TimeoutError)
    assert "10 s" in str(dial.answers[0])
    now[0] += 100
    loop.turn(0)
    assert len(dial.answers) == 1
    for sock in (dial.sock, *held):
        sock.close()


def test_a_cancelled_connect_is_never_answered(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    address, held = silent_address()
    dialler = Dialler(loop, 10)
    dial = Dial(dialler, address)
    dialler.cancel(dial.sock)
    dialler.cancel(dial.sock)
    now[0] += 100
    loop.turn(0)
    assert dial.answers == []
    for sock in (dial.sock, *held):
        sock.close()


def test_a_connect_that_takes_time_is_answered_when_it_is_through(loop: Loop) -> None:
    address, held = silent_address()
    dialler = Dialler(loop, 10)
    dial = Dial(dialler, address)
    assert dial.answers == []
    held[0].close()  # its queue is gone: the kernel answers the next SYN with a reset
    limit = time.monotonic() + 8
    while not dial.answers and time.monotonic() < limit:
        loop.turn(0.5)
    assert dial.answers[0] is not None
    assert dial.answers[0].errno == errno.ECONNREFUSED
    for sock in (dial.sock, *held):
        sock.close()


# ---- options ----


def test_options_are_applied(listening: socket.socket) -> None:
    with socket.socket() as sock:
        SocketOptions(True, 11, 12, 13, 14_000, "reno", 65_536).apply(sock)
        read = lambda option: sock.getsockopt(socket.IPPROTO_TCP, option)  # noqa: E731
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert read(socket.TCP_NODELAY) == 1
        values = [read(option) for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)]
        assert values == [11, 12, 13]
        assert read(socket.TCP_USER_TIMEOUT) == 14_000
        assert read(tcp.NOTSENT_LOWAT) == 65_536
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"


def test_the_hosts_choice_is_left_alone_unless_told_otherwise() -> None:
    with socket.socket() as sock, socket.socket() as plain:
        SocketOptions(notsent_lowat=0).apply(sock)
        for option in (tcp.NOTSENT_LOWAT, socket.TCP_CONGESTION):
            size = (socket.IPPROTO_TCP, option, 16)
            assert sock.getsockopt(*size) == plain.getsockopt(*size)


def test_keepalive_can_be_off() -> None:
    with socket.socket() as sock:
        SocketOptions(keepalive=False).apply(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_an_aborted_socket_closes_with_a_reset(listening: socket.socket) -> None:
    with connect(listening) as client:
        served, _ = listening.accept()
        abort_on_close(served)
        served.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    abort_on_close(served)
