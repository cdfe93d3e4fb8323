"""Any link delivers every message in order, never blocks the sender, and drops nothing but history."""

from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Direction
from ztunnel.core.model.flow import Flow
from ztunnel.link import unix
from ztunnel.link.channel import Channel, ChannelClosed, memory_link
from ztunnel.link.messages import (
    Counters,
    Down,
    Drain,
    Drained,
    Flows,
    PodFailed,
    PodGone,
    PodReady,
    StateSynced,
    Up,
)

Link = tuple[Channel[Down, Up], Channel[Up, Down]]
MakeLink = Callable[..., Link]


def unix_link(max_queued_flows: int = 1000) -> Link:
    control, worker = unix.socket_pair()
    return unix.control_end(control, max_queued_flows), unix.worker_end(worker, max_queued_flows)


@pytest.fixture(params=[memory_link, unix_link], ids=["memory", "unix"])
def make_link(request: pytest.FixtureRequest) -> Iterator[MakeLink]:
    made: list[Link] = []

    def make(**options: int) -> Link:
        made.append(request.param(**options))
        return made[-1]

    yield make
    for link in made:
        for end in link:
            end.close()


def flows(number: int) -> Flows:
    one = Flow(
        id=1,
        edge=-1,
        direction=Direction.OUTBOUND,
        source=Address("10.0.0.1", 1),
        destination=None,
        started=0.0,
        duration=0.0,
    )
    return Flows((one,) * number)


async def test_messages_arrive_in_order_both_ways(make_link: MakeLink) -> None:
    control, worker = make_link()
    control.send(StateSynced())
    control.send(Drain(1.0))
    worker.send(PodReady("a"))
    worker.send(PodGone("a"))
    assert [await worker.receive(), await worker.receive()] == [StateSynced(), Drain(1.0)]
    assert [await control.receive(), await control.receive()] == [PodReady("a"), PodGone("a")]


async def test_a_waiting_reader_gets_the_message(make_link: MakeLink) -> None:
    control, worker = make_link()
    got = []

    async def read() -> None:
        got.append(await worker.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        control.send(StateSynced())
    assert got == [StateSynced()]


async def test_what_was_sent_before_closing_still_arrives_and_then_the_loop_ends(make_link: MakeLink) -> None:
    control, worker = make_link()
    worker.send(PodGone("a"))
    worker.send(Drained(0))
    worker.close()
    assert [message async for message in control] == [PodGone("a"), Drained(0)]
    with pytest.raises(ChannelClosed):
        await control.receive()


async def test_it_arrives_even_when_the_closer_did_not_read_what_it_was_sent(make_link: MakeLink) -> None:
    control, worker = make_link()
    control.send(StateSynced())
    worker.send(Drained(0))
    worker.close()
    assert [message async for message in control] == [Drained(0)]


async def test_closing_wakes_the_waiting_reader_of_either_end(make_link: MakeLink) -> None:
    control, worker = make_link()

    async def expect_end(end: Channel[Down, Up] | Channel[Up, Down]) -> None:
        with pytest.raises(ChannelClosed):
            await end.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_end, control)
        nursery.start_soon(expect_end, worker)
        await trio.testing.wait_all_tasks_blocked()
        control.close()
        control.close()


async def test_sending_to_a_closed_link_says_so(make_link: MakeLink) -> None:
    control, worker = make_link()
    worker.close()
    with pytest.raises(ChannelClosed):
        control.send(StateSynced())
    with pytest.raises(ChannelClosed):
        worker.send(Drained(0))


async def test_a_message_may_be_large(make_link: MakeLink) -> None:
    control, worker = make_link()
    texts = [PodFailed(str(size), "é" * size) for size in (0, 32_000, 65_536, 3_000_000, 1)]
    for text in texts:
        worker.send(text)
    assert [await control.receive() for _ in texts] == texts


async def test_flows_beyond_the_bound_are_dropped_and_counted_and_nothing_else_is(make_link: MakeLink) -> None:
    control, worker = make_link(max_queued_flows=100)
    rounds = 100
    for number in range(rounds):  # more than any buffer of a kernel takes
        worker.send(flows(60))
        worker.send(PodReady(str(number)))
    worker.send(Counters(opened={1: 1}))
    worker.close()
    got = [message async for message in control]
    assert [message for message in got if isinstance(message, PodReady)] == [PodReady(str(n)) for n in range(rounds)]
    assert got[-1] == Counters(opened={1: 1})
    arrived = sum(len(message.flows) for message in got if isinstance(message, Flows))
    assert worker.lost_flows > 0
    assert arrived + worker.lost_flows == 60 * rounds
    assert control.lost_flows == worker.lost_flows


async def test_reading_makes_room_for_flows_again(make_link: MakeLink) -> None:
    control, worker = make_link(max_queued_flows=10)
    for _ in range(5):
        worker.send(flows(10))
        assert await control.receive() == flows(10)
    assert control.lost_flows == 0


async def test_a_reader_of_a_full_queue_lets_others_run(make_link: MakeLink) -> None:
    control, worker = make_link()
    for number in range(3):
        control.send(Drain(number))
    seen = []

    async def other() -> None:
        seen.append("other")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(3):
            seen.append(await worker.receive())  # noqa: PERF401
    assert seen.index("other") < 3
