"""Silent tunnels are asked, those that do not answer are ended, busy ones are left alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from engine_pair import Raw

from ztunnel.core.wire import frames
from ztunnel.worker.engine.keepalive import Keepalive


class Watched:
    """A tunnel under a keepalive of 10 and 20 seconds, and a clock that the test moves."""

    def __init__(self, raw: Raw, now: list[float]) -> None:
        self.raw = raw
        self.now = now
        self.keepalive = Keepalive(raw.loop, 10, 20)
        self.keepalive.add(raw.tunnel)

    def pass_time(self, seconds: float) -> None:
        self.now[0] += seconds
        self.raw.turn()

    @property
    def pings(self) -> int:
        return len([frame for frame in self.raw.frames(frames.PING) if not frame.flags])


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Raw() as raw:
        raw.greet()
        yield Watched(raw, now)


def test_a_silent_tunnel_is_asked_and_goes_on_when_it_answers(watched: Watched) -> None:
    for count in range(1, 4):
        watched.pass_time(10)
        assert watched.pings == count
        watched.raw.send(frames.frame(frames.PING, frames.ACK, 0, b"ztunnel\0"))
        watched.pass_time(10)
    assert not watched.raw.tunnel.closed


def test_a_tunnel_that_does_not_answer_is_ended(watched: Watched) -> None:
    watched.pass_time(10)
    watched.pass_time(10)
    assert not watched.raw.tunnel.closed
    watched.pass_time(10)
    assert watched.raw.tunnel.closed
    assert watched.raw.side.ending is not None
    assert "PING within 20 s" in watched.raw.side.ending.error
    assert watched.pings == 1


def test_a_tunnel_that_carries_anything_is_never_asked(watched: Watched) -> None:
    for _ in range(5):
        watched.raw.send(frames.window_update(0, 5000))
        watched.pass_time(10)
    assert watched.pings == 0


def test_a_closed_or_discarded_tunnel_is_forgotten(watched: Watched) -> None:
    watched.raw.tunnel.abort("gone")
    watched.pass_time(10)
    assert len(watched.keepalive) == 0
    watched.keepalive.discard(watched.raw.tunnel)


def test_one_end_that_fails_does_not_stop_the_watch(watched: Watched) -> None:
    def closed(tunnel: object, ending: object) -> None:
        raise RuntimeError("a bug")

    watched.raw.side.closed = closed  # type: ignore[method-assign]
    for _ in range(3):
        watched.pass_time(10)
    with Raw(loop=watched.raw.loop) as other:
        other.greet()
        watched.keepalive.add(other.tunnel)
        watched.pass_time(10)
        other.turn()
        assert [frame for frame in other.frames(frames.PING) if not frame.flags]


def test_stop_ends_the_watch(watched: Watched) -> None:
    watched.keepalive.stop()
    for _ in range(5):
        watched.pass_time(10)
    assert watched.pings == 0
