"""The workers behind their links: every message reaches whom it is for, and silence is bounded."""

import os
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio
import trio.testing

from ztunnel.control import fleet as fleet_module
from ztunnel.control.fleet import Fleet
from ztunnel.core.errors import PlatformError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.link.channel import Channel, memory_link
from ztunnel.link.messages import (
    Answer,
    Ask,
    Down,
    Drain,
    Drained,
    PodAdded,
    PodGone,
    PodReady,
    PodRemoved,
    Question,
    Serving,
    StateSynced,
    Up,
)
from ztunnel.runtime.supervise import open_supervisor


class Rig:
    """A fleet of workers that are played by the test."""

    def __init__(self, count: int) -> None:
        links = [memory_link() for _ in range(count)]
        self.workers: list[Channel[Up, Down]] = [worker for _, worker in links]
        self.fleet = Fleet([control for control, _ in links])
        self.heard: list[tuple[int, Up]] = []

    def hear(self, number: int, message: Up) -> None:
        self.heard.append((number, message))

    async def next(self, number: int) -> Down:
        return await self.workers[number].receive()


def added(uid: str) -> PodAdded:
    return PodAdded(uid=uid, name=uid, namespace="n", service_account="s", capture=CaptureMode.NONE)


async def test_a_pod_has_one_worker_and_all_hear_of_the_mesh() -> None:
    rig = Rig(2)
    for message in (added("a"), added("b"), StateSynced(), PodRemoved("b"), added("c")):
        rig.fleet.send(message)
    assert [await rig.next(0) for _ in range(2)] == [added("a"), StateSynced()]
    assert [await rig.next(1) for _ in range(4)] == [added("b"), StateSynced(), PodRemoved("b"), added("c")]


async def test_reports_are_heard_with_their_workers_number_and_what_was_sent_before_the_end_too() -> None:
    rig = Rig(2)
    rig.workers[0].send(PodReady("a"))
    rig.workers[1].send(PodReady("b"))
    rig.fleet.close()
    await rig.fleet.listen(rig.hear)
    assert sorted(rig.heard, key=lambda heard: heard[0]) == [(0, PodReady("a")), (1, PodReady("b"))]
    assert not rig.fleet.is_connected


async def test_listening_outlives_a_cancellation_until_the_fleet_is_closed() -> None:
    rig = Rig(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.fleet.listen, rig.hear)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            rig.workers[0].send(PodReady("a"))
            await trio.testing.wait_all_tasks_blocked()
            rig.fleet.close()
    assert rig.heard == [(0, PodReady("a"))]


async def test_a_worker_that_ends_by_itself_is_the_end() -> None:
    rig = Rig(2)
    rig.workers[1].close()
    with pytest.raises(PlatformError, match="worker 1 has ended"):
        async with open_supervisor() as tasks:
            tasks.spawn("links", rig.fleet.listen, rig.hear)


async def answer(worker: Channel[Up, Down], body: object) -> None:
    async for message in worker:
        if isinstance(message, Ask):
            worker.send(Answer(message.id, body))


async def test_a_question_has_an_answer_of_each_worker() -> None:
    rig = Rig(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.fleet.listen, rig.hear)
        nursery.start_soon(answer, rig.workers[0], "zero")
        nursery.start_soon(answer, rig.workers[1], "one")
        assert await rig.fleet.ask(Question.STATUS) == {0: "zero", 1: "one"}
        rig.fleet.close()


async def test_who_does_not_answer_in_time_is_left_out(autojump_clock: trio.testing.MockClock) -> None:
    rig = Rig(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.fleet.listen, rig.hear)
        nursery.start_soon(answer, rig.workers[0], "zero")
        assert await rig.fleet.ask(Question.STATUS) == {0: "zero"}
        rig.fleet.close()


async def test_a_drain_is_over_when_every_worker_says_so() -> None:
    rig = Rig(2)
    done = trio.Event()

    async def drain() -> None:
        await rig.fleet.drain(30)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.fleet.listen, rig.hear)
        nursery.start_soon(drain)
        assert await rig.next(0) == Drain(30)
        rig.workers[0].send(Drained(2))
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        rig.workers[1].send(Drained(1))
        await done.wait()
        rig.fleet.close()
    assert rig.fleet.cut == 3


async def test_a_worker_that_never_drains_holds_up_nobody_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    rig = Rig(1)
    began = trio.current_time()
    await rig.fleet.drain(5)
    assert trio.current_time() - began == pytest.approx(5 + fleet_module.DRAIN_GRACE)


class Replaced(Rig):
    """A fleet whose workers are processes: places that somebody takes."""

    def __init__(self, places: int) -> None:
        self.fleet = Fleet(places=places)
        self.heard: list[tuple[int, Up]] = []
        self.lost: list[tuple[int, list[str]]] = []
        self.workers: dict[int, Channel[Up, Down]] = {}

    async def listen(self) -> None:
        await self.fleet.listen(self.hear, lambda number, uids: self.lost.append((number, uids)))

    def come(self, number: int, *serving: PodAdded) -> None:
        control, worker = memory_link()
        self.workers[number] = worker
        worker.send(Serving(serving))
        self.fleet.attach(number, control)


@pytest.fixture
async def replaced(nursery: trio.Nursery) -> AsyncIterator[Replaced]:
    rig = Replaced(2)
    nursery.start_soon(rig.listen)
    await trio.testing.wait_all_tasks_blocked()
    yield rig
    rig.fleet.close()


async def test_an_order_waits_for_the_worker_to_come(replaced: Replaced) -> None:
    replaced.fleet.send(added("a"))
    replaced.come(0)
    assert await replaced.next(0) == added("a")


async def test_a_pod_goes_to_whoever_takes_the_place_of_its_worker(replaced: Replaced) -> None:
    replaced.come(0)
    replaced.come(1)
    await replaced.fleet.wait_serving()
    for uid in ("a", "b"):
        replaced.fleet.send(added(uid))
    assert [await replaced.next(0), await replaced.next(1)] == [added("a"), added("b")]
    replaced.workers[0].close()
    await trio.testing.wait_all_tasks_blocked()
    assert replaced.lost == [(0, ["a"])]
    replaced.fleet.send(added("a"))
    replaced.come(0)
    assert await replaced.next(0) == added("a")


async def test_the_pods_that_a_worker_serves_already_stay_there(replaced: Replaced) -> None:
    replaced.come(1, added("a"))
    replaced.come(0)
    await replaced.fleet.wait_serving()
    replaced.fleet.send(added("a"))
    assert await replaced.next(1) == added("a")
    assert (1, Serving((added("a"),))) in replaced.heard


async def test_a_pod_that_waits_for_a_worker_may_go_before_it_comes(replaced: Replaced) -> None:
    replaced.fleet.send(msgspec.structs.replace(added("a"), netns_fd=os.open(os.devnull, os.O_RDONLY)))
    replaced.fleet.send(PodRemoved("a"))
    assert replaced.heard == [(0, PodGone("a"))]


async def test_an_order_that_nobody_ever_gets_leaks_no_descriptor(replaced: Replaced) -> None:
    """The leak check of every test is what proves it."""
    replaced.fleet.send(msgspec.structs.replace(added("a"), netns_fd=os.open(os.devnull, os.O_RDONLY)))


async def test_pods_of_the_nodes_own_namespace_share_a_worker(replaced: Replaced) -> None:
    replaced.come(0)
    replaced.come(1)
    await replaced.fleet.wait_serving()
    pods = [msgspec.structs.replace(added(uid), capture=CaptureMode.NODE) for uid in ("a", "b", "c")]
    for pod in pods:
        replaced.fleet.send(pod)
    assert [await replaced.next(0) for _ in pods] == pods


async def test_a_worker_that_comes_during_a_drain_is_told_of_it(replaced: Replaced) -> None:
    replaced.come(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replaced.fleet.drain, 30)
        assert await replaced.next(0) == Drain(30)
        replaced.come(1)
        assert await replaced.next(1) == Drain(30)
        for number in (0, 1):
            replaced.workers[number].send(Drained(0))


async def test_a_drain_does_not_wait_for_a_worker_that_ended(replaced: Replaced) -> None:
    replaced.come(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replaced.fleet.drain, 30)
        assert await replaced.next(0) == Drain(30)
        replaced.workers[0].close()
