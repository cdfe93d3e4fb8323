"""The loop: readiness, timers, deferred closes, and bugs that stay where they are."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Hashable, Iterator
from functools import partial

import pytest
from engine_pair import socket_pair

from ztunnel.worker.engine.loop import IN, OUT, Deadlines, Loop


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket_pair()
    yield a, b
    a.close()
    b.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time stands still until the test moves it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_timer_may_be_months_away(loop: Loop, pair: tuple[socket.socket, ...]) -> None:
    a, b = pair
    seen: list[int] = []
    loop.add(a.fileno(), IN, seen.append)
    loop.call_later(60 * 86400, lambda: None)
    b.send(b"x")
    loop.turn(-1)
    assert seen == [IN]


def test_a_handler_is_called_while_its_descriptor_is_ready(loop: Loop, pair: tuple[socket.socket, ...]) -> None:
    a, b = pair
    seen: list[int] = []
    loop.add(a.fileno(), IN, seen.append)
    loop.turn(0)
    assert seen == []
    b.send(b"x")
    loop.turn(0)
    loop.turn(0)
    assert seen == [IN, IN]
    loop.remove(a.fileno())
    loop.remove(a.fileno())
    assert loop.turn(0) == 0


def test_handle_changes_handler_and_events(loop: Loop, pair: tuple[socket.socket, ...]) -> None:
    a, b = pair
    first: list[int] = []
    second: list[int] = []
    loop.add(a.fileno(), IN, first.append)
    loop.handle(a.fileno(), OUT, second.append)
    b.send(b"x")
    loop.turn(0)
    assert (first, second) == ([], [OUT])


def test_a_descriptor_removed_by_its_neighbour_is_not_called(loop: Loop) -> None:
    sockets = [socket.socketpair() for _ in range(2)]
    called: list[int] = []

    def handler(own: int) -> None:
        called.append(own)
        for each, _ in sockets:
            loop.remove(each.fileno())

    for a, b in sockets:
        loop.add(a.fileno(), IN, partial(lambda fd, _event: handler(fd), a.fileno()))
        b.send(b"x")
    loop.turn(0)
    assert len(called) == 1
    for a, b in sockets:
        a.close()
        b.close()


def test_a_closed_sockets_number_does_not_come_back_within_a_turn(loop: Loop, pair: tuple[socket.socket, ...]) -> None:
    a, b = pair
    number = a.fileno()
    made: list[socket.socket] = []

    def handler(_event: int) -> None:
        loop.close(a)
        made.append(socket.socket())

    loop.add(number, IN, handler)
    b.send(b"x")
    loop.turn(0)
    assert made[0].fileno() != number
    assert a.fileno() == -1
    made[0].close()


def test_timers_fire_in_order_and_not_when_cancelled(loop: Loop, clock: list[float]) -> None:
    fired: list[str] = []
    loop.call_later(2, lambda: fired.append("late"))
    loop.call_later(1, lambda: fired.append("early"))
    loop.call_later(1, lambda: fired.append("cancelled")).cancel()
    loop.turn(0)
    assert fired == []
    clock[0] += 1
    loop.turn(0)
    assert fired == ["early"]
    clock[0] += 1
    loop.turn(0)
    assert fired == ["early", "late"]
    assert loop.next_deadline() is None


def test_what_is_called_soon_is_called_at_the_end_of_the_turn(loop: Loop) -> None:
    order: list[str] = []

    def first() -> None:
        order.append("first")
        loop.call_soon(lambda: order.append("next turn"))

    loop.call_soon(first)
    assert loop.next_deadline() == 0
    loop.turn(0)
    assert order == ["first"]
    loop.turn(0)
    assert order == ["first", "next turn"]


def test_another_threads_turn_ends_when_something_is_queued(loop: Loop) -> None:
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (loop.turn(30), loop.turn(0), done.set()))
    waiting.start()
    loop.call_soon(lambda: None)
    waiting.join(10)
    assert done.is_set()


def test_a_bug_in_a_handler_ends_its_connection_only(
    loop: Loop, pair: tuple[socket.socket, ...], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        aborted = ""

        def on_event(self, _event: int) -> None:
            raise RuntimeError("a bug")

        def abort(self, why: str) -> None:
            self.aborted = why

    a, b = pair
    broken = Broken()
    neighbour: list[int] = []
    loop.add(a.fileno(), IN, broken.on_event)
    loop.add(b.fileno(), IN, neighbour.append)
    a.send(b"x")
    b.send(b"x")
    with caplog.at_level(logging.ERROR):
        loop.turn(0)
    assert broken.aborted == "internal error"
    assert neighbour == [IN]
    assert "a bug" in caplog.text
    loop.turn(0)
    assert neighbour == [IN, IN]


def test_a_bug_in_a_timer_leaves_the_others_alone(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    fired: list[int] = []
    loop.call_soon(lambda: 1 // 0)
    loop.call_soon(lambda: fired.append(1))
    loop.turn(0)
    assert fired == [1]
    assert "division" in caplog.text


def test_a_bug_in_what_another_thread_asks_for_does_not_make_the_loop_deaf(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[int] = []
    loop.call_threadsafe(lambda: 1 // 0)
    loop.call_threadsafe(lambda: called.append(1))
    loop.turn(0)
    loop.call_threadsafe(lambda: called.append(2))
    assert loop.turn(0) == 1
    assert called == [1, 2]
    assert "division" in caplog.text


def test_nothing_is_written_to_a_closed_waker() -> None:
    """Its number may belong to somebody else by then."""
    loop = Loop()
    loop.shutdown()
    other = socket.socket()
    loop.call_soon(lambda: None)
    other.close()


def test_shutdown_closes_what_waits_to_be_closed() -> None:
    loop = Loop()
    a, b = socket.socketpair()
    c, d = socket.socketpair()
    loop.add(a.fileno(), IN, lambda _event: None)
    loop.close(a)
    loop.add(c.fileno(), IN, lambda _event: None)
    loop.lingering.add(c)
    loop.call_soon(lambda: loop.call_soon(lambda: loop.close(b)))
    loop.shutdown()
    assert (a.fileno(), b.fileno(), c.fileno()) == (-1, -1, -1)
    d.close()


# ---- deadlines ----


def expired(loop: Loop, seconds: float) -> tuple[Deadlines, list[Hashable]]:
    seen: list[Hashable] = []
    return Deadlines(loop, seconds, seen.append), seen


def test_of_too_many_deadlines_the_oldest_expires_before_its_time(loop: Loop) -> None:
    seen: list[object] = []
    deadlines = Deadlines(loop, 10, seen.append, most=2)
    for key in ("a", "b", "a", "c"):
        deadlines.add(key)
    assert seen == ["b"]
    assert len(deadlines) == 2


def test_a_deadline_that_is_not_lifted_expires(loop: Loop, clock: list[float]) -> None:
    deadlines, seen = expired(loop, 10)
    deadlines.add("a")
    clock[0] += 5
    deadlines.add("b")
    deadlines.add("c")
    deadlines.discard("b")
    clock[0] += 5
    loop.turn(0)
    assert seen == ["a"]
    clock[0] += 5
    loop.turn(0)
    assert seen == ["a", "c"]
    assert len(deadlines) == 0
    assert loop.next_deadline() is None


def test_a_deadline_added_again_starts_anew_and_delays_nobody(loop: Loop, clock: list[float]) -> None:
    deadlines, seen = expired(loop, 10)
    deadlines.add("a")
    clock[0] += 1
    deadlines.add("b")
    clock[0] += 8
    deadlines.add("a")
    clock[0] += 2
    loop.turn(0)
    assert seen == ["b"]
    clock[0] += 8
    loop.turn(0)
    assert seen == ["b", "a"]


def test_one_timer_serves_all_deadlines_also_when_they_are_added_while_others_expire(
    loop: Loop, clock: list[float]
) -> None:
    deadlines: Deadlines

    def again(key: Hashable) -> None:
        deadlines.add(key)

    deadlines = Deadlines(loop, 10, again)
    for key in range(5):
        deadlines.add(key)
        clock[0] += 0.1
    for _ in range(50):
        clock[0] += 3
        loop.turn(0)
    assert len(deadlines) == 5
    assert repr(loop).endswith("1 timers>")


def test_a_bug_in_one_expiry_does_not_keep_the_others_from_expiring(loop: Loop, clock: list[float]) -> None:
    seen: list[Hashable] = []

    def expire(key: Hashable) -> None:
        if key == "bad":
            raise RuntimeError("a bug")
        seen.append(key)

    deadlines = Deadlines(loop, 1, expire)
    deadlines.add("bad")
    deadlines.add("good")
    clock[0] += 1
    loop.turn(0)
    loop.turn(0)
    assert seen == ["good"]


# ---- lingering ----


def test_a_lingering_socket_sends_fin_and_closes_when_its_peer_has(loop: Loop, pair: tuple[socket.socket, ...]) -> None:
    a, b = pair
    loop.add(a.fileno(), IN, lambda _event: None)
    a.send(b"last")
    loop.lingering.add(a)
    assert b.recv(10) == b"last"
    assert b.recv(10) == b""
    b.send(b"not heard")
    loop.turn(0)
    assert a.fileno() >= 0
    b.close()
    loop.turn(0)
    assert a.fileno() == -1
    assert len(loop.lingering) == 0


def test_a_lingering_socket_waits_only_so_long(loop: Loop, pair: tuple[socket.socket, ...], clock: list[float]) -> None:
    a, _ = pair
    loop.add(a.fileno(), IN, lambda _event: None)
    loop.lingering.add(a)
    clock[0] += 2
    loop.turn(0)
    assert a.fileno() == -1
