"""What is joined is joined right: every byte, every end, every reset, both flows, and nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from netns_builder import Pod, Topology
from talkers import (
    BOTH,
    CLIENT_FIRST,
    HOLD,
    SERVER_FIRST,
    Plan,
    Server,
    abort,
    begin,
    exactly,
    hear,
    say,
    serving,
    whole,
)
from two_pods import DENY_CLIENT, SERVER_IP, SETTINGS, VIP, Mesh, one_node, two_workers

from ztunnel.core.model.flow import Flow
from ztunnel.link.messages import Drain, Drained, PodRemoved, Question, StateSlice
from ztunnel.worker.engine.relay import MAX_PIPES

MB = 1 << 20
IN_FLIGHT = 96 * MB
"""More than two receive buffers, two send buffers and a pipe hold while nobody reads (tcp_rmem: 32 MB at most)."""
RESETS = 40
QUIET = 0.3
"""Seconds without room after which a sender counts as stopped."""

World = Callable[..., AbstractAsyncContextManager[Mesh]]


@pytest.fixture(params=[one_node, two_workers], ids=["one worker", "two workers"])
def world(request: pytest.FixtureRequest) -> World:
    return request.param  # type: ignore[no-any-return]


async def call(m: Mesh, plan: Plan) -> trio.socket.SocketType:
    return await begin(m.client, VIP, 80, plan)


async def flows(m: Mesh, connections: int) -> list[Flow]:
    """Both flows of so many connections, the client's first."""
    if m.near is m.far:
        await m.near.flow(2 * connections)
        return sorted(m.near.flows, key=lambda flow: flow.direction.value, reverse=True)
    await m.near.flow(connections)
    await m.far.flow(connections)
    return m.near.flows + m.far.flows


def crossed(pod: Pod) -> int:
    """Bytes that came into the pod over its network."""

    def read() -> int:
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
        return sum(int(line.split(":")[1].split()[0]) for line in lines if line.split(":")[0].strip() != "lo")

    return pod.call(read)


def descriptors() -> Counter[str]:
    """How many of each kind; without namespaces, of which every thread keeps its own."""
    kinds: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            kinds[os.readlink(f"/proc/self/fd/{fd}").split(":")[0]] += 1
        except FileNotFoundError:
            continue
    del kinds["net"]
    return kinds


# ---- bytes ----


@pytest.mark.parametrize("order", [BOTH, CLIENT_FIRST, SERVER_FIRST])
async def test_bulk_arrives_whole_both_ways_whoever_ends_first(topology: Topology, world: World, order: int) -> None:
    plan = Plan(1, 30 * MB + 3, 20 * MB + 1, order)
    async with world(topology) as m, serving(m.server, SERVER_IP, 8080) as server:
        before = crossed(m.server)
        await whole(server, await call(m, plan), plan)
        ended = await flows(m, 1)
        assert crossed(m.server) - before < MB, "the bytes went over the network"
    overhead = 4 + 13  # the server's banner, the client's plan
    for flow in ended:
        assert (flow.error, flow.bytes_sent + flow.bytes_received) == ("", plan.up + plan.down + overhead)
    assert [flow.direction.value for flow in ended] == ["outbound", "inbound"]
    assert (ended[0].bytes_sent, ended[0].bytes_received) == (ended[1].bytes_received, ended[1].bytes_sent)


@pytest.mark.parametrize("sizes", [(0, 0), (0, 1), (1, 0), (65_535, 65_537), (131_072, 16_384), (1_000_003, 0)])
async def test_sizes_at_the_edges_of_buffers_arrive_whole(
    topology: Topology, world: World, sizes: tuple[int, int]
) -> None:
    async with world(topology) as m, serving(m.server, SERVER_IP, 8080) as server:
        for number, order in enumerate((BOTH, CLIENT_FIRST, SERVER_FIRST)):
            plan = Plan(number, *sizes, order)
            await whole(server, await call(m, plan), plan)


async def test_five_hundred_connections_at_once_do_not_mix_their_bytes(topology: Topology, world: World) -> None:
    rng = random.Random(500)
    plans = [
        Plan(number, rng.randrange(60_000), rng.randrange(60_000), rng.choice((BOTH, CLIENT_FIRST, SERVER_FIRST)))
        for number in range(500)
    ]
    async with world(topology) as m, serving(m.server, SERVER_IP, 8080) as server:

        async def one(plan: Plan) -> None:
            await whole(server, await call(m, plan), plan)

        async with trio.open_nursery() as nursery:
            for plan in plans:
                nursery.start_soon(one, plan)
        ended = await flows(m, len(plans))
    assert {flow.error for flow in ended} == {""}
    assert sum(flow.bytes_sent for flow in ended[:500]) == sum(plan.up + 13 for plan in plans)
    assert sum(flow.bytes_sent for flow in ended[500:]) == sum(plan.down + 4 for plan in plans)


async def test_a_connection_that_turns_from_messages_to_bulk_and_back_stays_whole(
    topology: Topology, world: World
) -> None:
    """Small messages are copied, bulk is spliced; the answers prove that no message waits in a pipe."""
    async with world(topology) as m, serving(m.server, SERVER_IP, 8080) as server:
        client = await call(m, Plan(1, 0, 0, HOLD))
        far = await server.conversation(1)

        async def back_and_forth(near: trio.socket.SocketType, far: trio.socket.SocketType) -> None:
            for turn in range(20):
                message = bytes([turn]) * 64
                await near.send(message)
                assert await exactly(far, 64) == message
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say, near, 7, 3 * MB)
                assert len(await exactly(far, 3 * MB)) == 3 * MB

        for _ in range(4):
            await back_and_forth(client, far)
            await back_and_forth(far, client)
        server.released.set()
        client.close()
        ended = await flows(m, 1)
    assert ended[0].bytes_sent == 4 * (3 * MB + 20 * 64) + 13


@pytest.mark.parametrize("slow", ["server", "client"])
async def test_a_reader_that_sleeps_stops_the_sender_and_then_gets_everything(
    topology: Topology, world: World, slow: str
) -> None:
    async with world(topology) as m, serving(m.server, SERVER_IP, 8080) as server:
        client = await call(m, Plan(1, 0, 0, HOLD))
        far = await server.conversation(1)
        sender, reader = (client, far) if slow == "server" else (far, client)
        chunk = random.Random(2).randbytes(MB)
        sent = 0
        while True:
            with trio.move_on_after(QUIET) as waited:
                sent += await sender.send(memoryview(chunk)[sent % MB :])
            if waited.cancelled_caught:
                break
            assert sent < IN_FLIGHT, "nothing stops the sender"
        sender.shutdown(trio.socket.SHUT_WR)
        said, heard = hashlib.sha256(), hashlib.sha256()
        for start in range(0, sent, MB):
            said.update(memoryview(chunk)[: min(MB, sent - start)])
        while piece := await reader.recv(256 * 1024):
            heard.update(piece)
        assert heard.digest() == said.digest()
        client.close()
        server.released.set()


# ---- resets ----


@pytest.mark.parametrize("who", ["client", "server"])
async def test_resets_at_random_moments_reach_the_other_side_and_both_flows(
    topology: Topology, world: World, who: str
) -> None:
    rng = random.Random(who)
    async with world(topology) as m, serving(m.server, SERVER_IP, 8080) as server:

        async def one(number: int, after: int) -> None:
            client = await call(m, Plan(number, 0, 0, HOLD))
            far = await server.conversation(number)
            breaker, victim = (client, far) if who == "client" else (far, client)

            async def break_it() -> None:
                await say(breaker, number, after)
                abort(breaker)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(break_it)
                with pytest.raises(ConnectionResetError):
                    await hear(victim)  # an end would not raise
            victim.close()

        for number in range(RESETS):
            await one(number, rng.choice((0, 1, 1000, 70_000, rng.randrange(4 * MB))))
        ended = await flows(m, RESETS)
        server.released.set()
    assert all("reset" in flow.error for flow in ended)


async def cut_during_bulk(m: Mesh, server: Server, cut: Callable[[], Awaitable[None]]) -> list[Flow]:
    """Both directions are full of bytes when `cut` is called: both applications are reset. The flows."""
    client = await call(m, Plan(1, 0, 0, HOLD))
    far = await server.conversation(1)
    ends: dict[str, list[int]] = {"client": [], "server": []}

    async def until_the_end(name: str, move: Callable[[], Awaitable[object]]) -> None:
        try:
            while await move():
                pass
            ends[name].append(0)
        except OSError as error:
            ends[name].append(error.errno or 0)

    payload = bytes(MB)
    async with trio.open_nursery() as nursery:
        for name, sock in (("client", client), ("server", far)):
            nursery.start_soon(until_the_end, name, partial(sock.send, payload))
            nursery.start_soon(until_the_end, name, partial(sock.recv, MB))
        while sum(await moved(m)) < 50 * MB:
            await trio.lowlevel.checkpoint()
        await cut()
    for name, codes in ends.items():  # the kernel tells of a reset once, to whoever asks first
        assert errno.ECONNRESET in codes, f"{name}: {codes}"
    client.close()
    server.released.set()
    return await flows(m, 1)


async def moved(m: Mesh) -> tuple[int, ...]:
    """Sent and received in all open connections, as each worker counts them now."""
    answers = [await worker.ask(Question.COUNTERS) for worker in {m.near, m.far}]
    return tuple(sum(pair) for answer in answers for pair in answer.open_bytes.values())


async def test_a_policy_during_bulk_resets_both_applications_and_says_deny(topology: Topology, world: World) -> None:
    async def deny() -> None:
        for worker in {m.near, m.far}:
            worker.play(StateSlice(policies=(DENY_CLIENT,)))

    async with world(topology) as m, serving(m.server, SERVER_IP, 8080) as server:
        ended = await cut_during_bulk(m, server, deny)
    assert ended[1].flag == "DENY"
    assert "policy change" in ended[1].error
    assert ended[0].error
    assert (ended[0].bytes_sent, ended[0].bytes_received) == (ended[1].bytes_received, ended[1].bytes_sent)


async def test_a_tunnel_that_is_lost_during_bulk_ends_the_join(topology: Topology, world: World) -> None:
    """Only the leash goes over the network: without it there is no right to carry on."""
    settings = msgspec.structs.replace(SETTINGS, ping_interval=0.2, ping_timeout=0.5)
    rule = "-p tcp --dport 15008 -j REJECT --reject-with tcp-reset"
    async with world(topology, settings) as m, serving(m.server, SERVER_IP, 8080) as server:

        async def block() -> None:
            await trio.to_thread.run_sync(m.client.run, ["iptables", "-A", "OUTPUT", *rule.split()])

        ended = await cut_during_bulk(m, server, block)
    assert all(flow.error for flow in ended)


@pytest.mark.parametrize("name", ["client", "server"])
async def test_a_pod_that_goes_during_bulk_resets_the_other_one(topology: Topology, world: World, name: str) -> None:
    async def remove() -> None:
        (m.near if name == "client" else m.far).play(PodRemoved(name))

    async with world(topology) as m, serving(m.server, SERVER_IP, 8080) as server:
        ended = await cut_during_bulk(m, server, remove)
    assert all(flow.error for flow in ended)


# ---- drain ----


async def test_a_drain_lets_a_transfer_finish(topology: Topology, world: World) -> None:
    plan = Plan(1, 40 * MB, 40 * MB)
    async with world(topology) as m, serving(m.server, SERVER_IP, 8080) as server:
        client = await call(m, plan)
        await server.conversation(1)
        for worker in {m.near, m.far}:
            worker.play(Drain(30))
        await whole(server, client, plan)
        assert {flow.error for flow in await flows(m, 1)} == {""}
        for worker in {m.near, m.far}:
            assert (await worker.heard(Drained)).cut == 0


async def test_a_drain_cuts_what_does_not_finish_and_says_so_in_both_flows(topology: Topology, world: World) -> None:
    async with world(topology) as m, serving(m.server, SERVER_IP, 8080) as server:

        async def drain() -> None:
            for worker in {m.near, m.far}:
                worker.play(Drain(0.2))
            for worker in {m.near, m.far}:
                await worker.heard(Drained)

        ended = await cut_during_bulk(m, server, drain)
    assert len(ended) == 2
    assert any("drain deadline" in flow.error for flow in ended)
    assert all(flow.error and flow.bytes_sent > 10 * MB for flow in ended)


# ---- what is left ----


async def test_nothing_is_left_open_by_joins_that_ended_or_were_reset(topology: Topology, world: World) -> None:
    """Descriptors are as many as before; idle pipes wait for bulk, up to their cap, and end with the worker."""
    rng = random.Random(8)

    async with world(topology) as m, serving(m.server, SERVER_IP, 8080) as server:

        async def one(number: int) -> None:
            plan = Plan(number, rng.randrange(3 * MB), rng.randrange(3 * MB))
            client = await call(m, plan)
            if number % 2:
                await whole(server, client, plan)
                return
            await client.recv(rng.randrange(1, 100_000))
            abort(client)
            await server.outcome(number)

        async def many(first: int, last: int) -> None:
            async with trio.open_nursery() as nursery:
                for number in range(first, last):
                    nursery.start_soon(one, number)
            await flows(m, last)

        await many(0, 20)
        before = descriptors()
        await many(20, 120)
        after = descriptors()
    pipes = after.pop("pipe", 0) - before.pop("pipe", 0)
    assert after == before
    assert pipes <= 2 * MAX_PIPES * len({m.near, m.far})
