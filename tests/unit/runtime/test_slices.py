from itertools import count

import pytest
import trio

from ztunnel.runtime import slices
from ztunnel.runtime.slices import at_once, in_slices


def work(steps):
    """Yields so many times, then returns how often it was resumed."""
    for _ in range(steps):
        yield
    return steps


def broken():
    yield
    raise ValueError("no")


def test_at_once_is_the_result():
    assert at_once(work(0)) == 0
    assert at_once(work(1000)) == 1000


async def test_in_slices_is_the_result():
    assert await in_slices(work(0)) == 0
    assert await in_slices(work(1000)) == 1000


async def test_errors_come_out_as_they_are():
    with pytest.raises(ValueError, match="no"):
        at_once(broken())
    with pytest.raises(ValueError, match="no"):
        await in_slices(broken())


async def test_others_have_turns_after_each_slice(monkeypatch, autojump_clock):
    """A step takes a quarter of a slice, by a clock that moves with each look at it."""
    looks = count()
    monkeypatch.setattr(slices, "perf_counter", lambda: next(looks) * slices.SLICE / 4)
    turns = []
    steps = iter(range(1000))

    def noted():
        for step in range(12):
            yield
            next(steps)
            assert len(turns) >= step // 4 - 1

    async def other():
        while True:
            turns.append(trio.current_time())
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await in_slices(noted(), pause=1)
        nursery.cancel_scope.cancel()
    assert len(turns) >= 4
