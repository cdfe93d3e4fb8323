"""A worker outlives its control halves: traffic goes on without one, and the next one finds everything in place."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
import trio
import trio.testing
from mesh_pki import MeshPki
from netns_builder import Acceptor, Topology
from two_pods import CLIENT, DENY_CLIENT, SERVER, SERVER_IP, SETTINGS, VIP, WEB, added, redirect_output
from worker_mesh import PlayedWorker

from ztunnel.link.channel import Channel, ChannelClosed, memory_link
from ztunnel.link.messages import (
    CertificateWanted,
    Down,
    PodAdded,
    PodReady,
    Resync,
    Serving,
    StateSlice,
    StateSynced,
    Up,
)
from ztunnel.worker import main


class Halves:
    """One worker that serves both pods, and control halves that come and go."""

    def __init__(self, nursery: trio.Nursery, links: trio.MemorySendChannel[Channel[Up, Down]]) -> None:
        self._nursery = nursery
        self._links = links
        self.pki = MeshPki()
        self.now: PlayedWorker | None = None
        self._link: Channel[Down, Up] | None = None

    def begin(self) -> PlayedWorker:
        self._link, worker_end = memory_link()
        self._links.send_nowait(worker_end)
        self.now = PlayedWorker(self._link, self.pki)
        self._nursery.start_soon(self._listen, self.now)
        return self.now

    async def _listen(self, half: PlayedWorker) -> None:
        with suppress(ChannelClosed):  # it dies in the middle of an answer
            await half.listen()

    async def die(self) -> None:
        assert self._link is not None
        self._link.close()
        await trio.testing.wait_all_tasks_blocked(0.01)


@asynccontextmanager
async def halves(topology: Topology) -> AsyncIterator[tuple[Halves, PodAdded, PodAdded]]:
    def build() -> tuple[PodAdded, PodAdded]:
        client = topology.pod("client", "10.1.0.2")
        server = topology.pod("server", SERVER_IP)
        redirect_output(client)
        return added(client, "client"), added(server, "server")

    client, server = await trio.to_thread.run_sync(build)
    send, receive = trio.open_memory_channel[Channel[Up, Down]](10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(main.serve, receive, SETTINGS)
        both = Halves(nursery, send)
        first = both.begin()
        first.play(StateSlice(workloads=(CLIENT, SERVER), services=(WEB,)), StateSynced(), client, server)
        await first.heard(PodReady)
        yield both, client, server
        send.close()
        await both.die()


async def exchange(sock: socket.socket, data: bytes) -> bytes:
    def both() -> bytes:
        sock.sendall(data)
        return sock.recv(100)

    return await trio.to_thread.run_sync(both)


async def connect(topology: Topology) -> socket.socket:
    client = topology.pods[0]
    return await trio.to_thread.run_sync(client.connect, VIP, 80)


async def test_connections_go_on_and_new_ones_come_while_there_is_no_control_half(topology: Topology) -> None:
    async with halves(topology) as (both, _, _):
        with Acceptor(topology.pods[1], SERVER_IP, 8080), await connect(topology) as old:
            assert await exchange(old, b"before") == b"before"
            await both.die()
            assert await exchange(old, b"without") == b"without"
            with await connect(topology) as new:
                assert await exchange(new, b"new") == b"new"
            again = both.begin()
            again.play(Resync(), StateSlice(workloads=(CLIENT, SERVER), services=(WEB,)), StateSynced())
            flow = await again.flow()
            assert await exchange(old, b"after") == b"after"
        assert flow.bytes_sent == 3
        assert flow.edge in again.edges, "a flow of the time between is told with its edge"
        assert again.opened >= 1
        kinds = [type(message) for message in again.said]
        assert kinds[0] is Serving
        assert CertificateWanted in kinds, "certificates in use are kept fresh by the next one"


async def test_the_next_control_half_learns_what_is_served_and_opening_it_again_changes_nothing(
    topology: Topology,
) -> None:
    async with halves(topology) as (both, client, server):
        with Acceptor(topology.pods[1], SERVER_IP, 8080), await connect(topology) as old:
            assert await exchange(old, b"before") == b"before"
            await both.die()
            again = both.begin()
            serving = await again.heard(Serving)
            assert serving.pods == tuple(msgspec.structs.replace(pod, netns_fd=None) for pod in (client, server))
            again.play(Resync(), StateSlice(workloads=(CLIENT, SERVER), services=(WEB,)), StateSynced())
            for pod in (client, server):
                assert pod.netns_fd is not None
                again.play(msgspec.structs.replace(pod, netns_fd=os.dup(pod.netns_fd), memo=b"newer"))
            await again.heard(PodReady)
            assert await exchange(old, b"after") == b"after"


async def test_a_policy_of_the_next_control_half_is_in_force_and_one_it_does_not_know_is_not(
    topology: Topology,
) -> None:
    state = StateSlice(workloads=(CLIENT, SERVER), services=(WEB,))
    async with halves(topology) as (both, _, _):
        with Acceptor(topology.pods[1], SERVER_IP, 8080), await connect(topology) as sock:
            assert await exchange(sock, b"before") == b"before"
            await both.die()
            again = both.begin()
            again.play(Resync(), state, StateSlice(policies=(DENY_CLIENT,)), StateSynced())
            with pytest.raises(ConnectionResetError):
                await trio.to_thread.run_sync(sock.recv, 1)
            await both.die()
            both.begin().play(Resync(), state, StateSynced())
            await trio.testing.wait_all_tasks_blocked(0.01)
            with await connect(topology) as allowed:
                assert await exchange(allowed, b"again") == b"again"
