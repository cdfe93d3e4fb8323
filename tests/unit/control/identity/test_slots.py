from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from ztunnel.control.identity.slots import PrioritySlots


class Work:
    """Jobs that each hold a slot for a second and write down when they began."""

    def __init__(self, count: int) -> None:
        self.slots = PrioritySlots(count)
        self.ranks: dict[str, int] = {}
        self.begun: list[str] = []
        self.running = self.most = 0

    async def job(self, name: str, rank: int) -> None:
        self.ranks[name] = rank
        async with self.slots.hold(lambda: self.ranks[name]):
            self.begun.append(name)
            self.running += 1
            self.most = max(self.most, self.running)
            await trio.sleep(1)
            self.running -= 1


async def test_no_more_than_count_run_at_once(autojump_clock: MockClock) -> None:
    work = Work(3)
    async with trio.open_nursery() as nursery:
        for index in range(10):
            nursery.start_soon(work.job, str(index), 0)
    assert work.most == 3
    assert len(work.begun) == 10
    assert trio.current_time() == pytest.approx(4)


async def test_the_lowest_rank_goes_first_and_equals_in_order(autojump_clock: MockClock) -> None:
    work = Work(1)
    async with trio.open_nursery() as nursery:
        for name, rank in (("first", 2), ("late", 2), ("a", 1), ("b", 1), ("now", 0)):
            nursery.start_soon(work.job, name, rank)
            await trio.testing.wait_all_tasks_blocked()
    assert work.begun == ["first", "now", "a", "b", "late"]


async def test_a_waiting_job_may_become_urgent(autojump_clock: MockClock) -> None:
    work = Work(1)
    async with trio.open_nursery() as nursery:
        for name in ("first", "second", "third"):
            nursery.start_soon(work.job, name, 2)
            await trio.testing.wait_all_tasks_blocked()
        work.ranks["third"] = 0
    assert work.begun == ["first", "third", "second"]


async def test_a_cancelled_waiter_takes_no_slot_with_it(autojump_clock: MockClock) -> None:
    work = Work(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.job, "first", 0)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.5):
            await work.job("impatient", 0)
    await work.job("after", 0)
    assert work.begun == ["first", "after"]


async def test_a_slot_granted_to_a_job_cancelled_in_the_same_moment_is_passed_on(autojump_clock: MockClock) -> None:
    work = Work(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work.job, "first", 0)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:

            async def cancel_when_granted() -> None:
                await trio.sleep(1)
                scope.cancel()

            nursery.start_soon(cancel_when_granted)
            await work.job("cancelled", 0)
    with trio.fail_after(5):
        await work.job("after", 0)
    assert work.begun[-1] == "after"
