"""A link delivers every message in order, never blocks the sender, and drops nothing but history."""

import pytest
import trio
import trio.testing

from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Direction
from ztunnel.core.model.flow import Flow
from ztunnel.link.channel import ChannelClosed, memory_link
from ztunnel.link.messages import Counters, Drain, Drained, Flows, PodGone, PodReady, StateSynced


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


async def test_messages_arrive_in_order_both_ways() -> None:
    control, worker = memory_link()
    control.send(StateSynced())
    control.send(Drain(1.0))
    worker.send(PodReady("a"))
    worker.send(PodGone("a"))
    assert [await worker.receive(), await worker.receive()] == [StateSynced(), Drain(1.0)]
    assert [await control.receive(), await control.receive()] == [PodReady("a"), PodGone("a")]


async def test_a_waiting_reader_gets_the_message() -> None:
    control, worker = memory_link()
    got = []

    async def read() -> None:
        got.append(await worker.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        control.send(StateSynced())
    assert got == [StateSynced()]


async def test_what_was_sent_before_closing_still_arrives_and_then_the_loop_ends() -> None:
    control, worker = memory_link()
    worker.send(PodGone("a"))
    worker.send(Drained(0))
    worker.close()
    assert [message async for message in control] == [PodGone("a"), Drained(0)]
    with pytest.raises(ChannelClosed):
        await control.receive()


async def test_closing_wakes_the_waiting_reader_of_either_end() -> None:
    control, worker = memory_link()
    async with trio.open_nursery() as nursery:

        async def expect_end(end) -> None:
            with pytest.raises(ChannelClosed):
                await end.receive()

        nursery.start_soon(expect_end, control)
        nursery.start_soon(expect_end, worker)
        await trio.testing.wait_all_tasks_blocked()
        control.close()
        control.close()


async def test_sending_to_a_closed_link_says_so() -> None:
    control, worker = memory_link()
    worker.close()
    with pytest.raises(ChannelClosed):
        control.send(StateSynced())
    with pytest.raises(ChannelClosed):
        worker.send(Drained(0))


async def test_flows_beyond_the_bound_are_dropped_and_counted_and_nothing_else_is() -> None:
    control, worker = memory_link(max_queued_flows=10)
    worker.send(flows(8))
    worker.send(flows(3))
    worker.send(flows(2))
    worker.send(Counters(opened={1: 1}))
    worker.send(PodReady("a"))
    assert control.lost_flows == worker.lost_flows == 3
    got = [await control.receive() for _ in range(4)]
    assert got == [flows(8), flows(2), Counters(opened={1: 1}), PodReady("a")]


async def test_reading_makes_room_for_flows_again() -> None:
    control, worker = memory_link(max_queued_flows=10)
    for _ in range(5):
        worker.send(flows(10))
        assert await control.receive() == flows(10)
    assert control.lost_flows == 0


async def test_a_reader_of_a_full_queue_lets_others_run() -> None:
    control, worker = memory_link()
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
