"""The link between two workers under somebody who withholds, changes and cuts: no connection is lost or hangs by it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
import trio
from netns_builder import Topology
from talkers import HOLD, Plan, Server, begin, serving, whole
from two_pods import DENY_CLIENT, SERVER_IP, SETTINGS, VIP, Mesh, two_workers

from ztunnel.link.channel import ChannelClosed
from ztunnel.link.messages import JoinEnded, JoinOffered, Sideways, StateSlice
from ztunnel.link.unix import UnixChannel, sibling_end, socket_pair

Edit = Callable[[Sideways], Sideways | None]


class Between:
    """Passes on what the workers say to each other, as `edit` has it."""

    def __init__(self, edit: Edit) -> None:
        (near, ours), (theirs, far) = socket_pair(), socket_pair()
        self.ends = (near, far)
        self._channels = (sibling_end(ours), sibling_end(theirs))
        self._edit = edit
        self.said: list[type] = []

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass, *self._channels)
            nursery.start_soon(self._pass, *reversed(self._channels))

    async def _pass(self, source: UnixChannel[Sideways, Sideways], sink: UnixChannel[Sideways, Sideways]) -> None:
        async for message in source:
            self.said.append(type(message))
            edited = self._edit(message)
            if edited is not None:
                with suppress(ChannelClosed):  # that worker has ended
                    sink.send(edited)

    def cut(self) -> None:
        for channel in self._channels:
            channel.close()


@asynccontextmanager
async def meddled(topology: Topology, edit: Edit) -> AsyncIterator[tuple[Mesh, Server, Between]]:
    between = Between(edit)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run)
        async with (
            two_workers(topology, SETTINGS, between.ends) as m,
            serving(m.server, SERVER_IP, 8080) as server,
        ):
            yield m, server, between
            server.released.set()
        between.cut()


def drop(*kinds: type) -> Edit:
    return lambda message: None if isinstance(message, kinds) else message


def wrong_token(message: Sideways) -> Sideways:
    return msgspec.structs.replace(message, token="0" * 32) if isinstance(message, JoinOffered) else message


async def talk(m: Mesh, server: Server) -> None:
    plan = Plan(1, 3_000_001, 2_000_003)
    await whole(server, await begin(m.client, VIP, 80, plan), plan)
    for flow in (await m.near.flow(1), await m.far.flow(1)):
        assert (flow.error, flow.bytes_sent + flow.bytes_received) == ("", 5_000_004 + 17)


async def test_a_token_that_nobody_gave_out_leaves_an_ordinary_stream(topology: Topology) -> None:
    async with meddled(topology, wrong_token) as (m, server, between):
        await talk(m, server)
        assert JoinOffered in between.said


async def test_a_link_that_ends_before_the_answer_leaves_an_ordinary_stream(topology: Topology) -> None:
    between: Between

    def cut_at_offer(message: Sideways) -> Sideways | None:
        if isinstance(message, JoinOffered):
            assert message.sock_fd is not None
            os.close(message.sock_fd)
            between.cut()
            return None
        return message

    async with meddled(topology, cut_at_offer) as (m, server, between):
        await talk(m, server)


async def test_a_link_that_ends_resets_its_joins_and_later_connections_go_through_the_tunnel(
    topology: Topology,
) -> None:
    async with meddled(topology, lambda message: message) as (m, server, between):
        client = await begin(m.client, VIP, 80, Plan(7, 0, 0, HOLD))
        far = await server.conversation(7)
        between.cut()
        for sock in (client, far):
            with pytest.raises(ConnectionResetError):
                await sock.recv(1)
        client.close()
        ends = [await m.near.flow(1), await m.far.flow(1)]
        assert all("is gone" in flow.error or "reset" in flow.error for flow in ends)
        plan = Plan(2, 100_000, 100_000)
        await whole(server, await begin(m.client, VIP, 80, plan), plan)


async def test_a_flow_does_not_wait_for_ever_for_the_last_word(topology: Topology) -> None:
    async with meddled(topology, drop(JoinEnded)) as (m, server, _):
        client = await begin(m.client, VIP, 80, Plan(7, 0, 0, HOLD))
        await server.conversation(7)
        m.far.play(StateSlice(policies=(DENY_CLIENT,)))
        with pytest.raises(ConnectionResetError):
            await client.recv(1)
        client.close()
        flow = await m.far.flow(1)
    assert flow.flag == "DENY"


async def test_switched_off_the_workers_do_not_even_say_where_their_pods_are(topology: Topology) -> None:
    between = Between(lambda message: message)
    settings = msgspec.structs.replace(SETTINGS, same_node_join=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(between.run)
        async with (
            two_workers(topology, settings, between.ends) as m,
            serving(m.server, SERVER_IP, 8080) as server,
        ):
            await talk(m, server)
        between.cut()
    assert between.said == []
