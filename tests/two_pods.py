"""The smallest mesh of tests: a client and a server pod, their workload values, and workers that serve them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import trio
import trio.testing
from mesh_pki import MeshPki
from mesh_samples import service, workload
from netns_builder import Pod, Topology
from worker_mesh import PlayedWorker, open_worker

from ztunnel.config.settings import Settings
from ztunnel.core.model.capture import CaptureMode
from ztunnel.core.model.policy import Action, Match, MatchKind, Policy, PolicyScope, StringMatch
from ztunnel.link.messages import PodAdded, PodReady, StateSlice, StateSynced
from ztunnel.link.unix import socket_pair

CLIENT_IP, SERVER_IP, VIP = "10.1.0.2", "10.2.0.2", "10.100.0.1"
SETTINGS = Settings(enable_orig_src=False, ipv6_enabled=False)
CLIENT = workload("client", CLIENT_IP)
SERVER = workload("server", SERVER_IP, backs={"demo/web.demo": {80: 8080}})
WEB = service("web", VIP)
DENY_CLIENT = Policy(
    name="no-client",
    namespace="demo",
    scope=PolicyScope.NAMESPACE,
    action=Action.DENY,
    rules=(((Match(principals=(StringMatch(MatchKind.EXACT, "cluster.local/ns/demo/sa/client"),)),),),),
)


class Mesh(NamedTuple):
    client: Pod
    server: Pod
    near: PlayedWorker
    far: PlayedWorker

    async def connect(self, ip: str, port: int) -> socket.socket:
        return await trio.to_thread.run_sync(self.client.connect, ip, port)


def added(pod: Pod, name: str) -> PodAdded:
    return PodAdded(
        uid=name,
        name=name,
        namespace="demo",
        service_account=name,
        capture=CaptureMode.REDIRECT,
        netns_fd=os.dup(pod.fd),
        ips=(CLIENT_IP if name == "client" else SERVER_IP,),
    )


def redirect_output(pod: Pod) -> None:
    rule = "-p tcp ! -d 127.0.0.1/32 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001"
    pod.run(["iptables", "-t", "nat", "-A", "OUTPUT", *rule.split()])


@asynccontextmanager
async def mesh(topology: Topology, settings: Settings = SETTINGS) -> AsyncIterator[Mesh]:
    def build() -> tuple[Pod, Pod]:
        client = topology.pod("client", CLIENT_IP)
        server = topology.pod("server", SERVER_IP, node=topology.node("node2"))
        redirect_output(client)
        return client, server

    client, server = await trio.to_thread.run_sync(build)
    pki = MeshPki()
    async with AsyncExitStack() as stack:
        near = await stack.enter_async_context(open_worker(settings, pki))
        far = await stack.enter_async_context(open_worker(settings, pki))
        state = StateSlice(workloads=(CLIENT, SERVER), services=(WEB,))
        near.play(state, added(client, "client"), StateSynced())
        far.play(state, added(server, "server"), StateSynced())
        await near.heard(PodReady)
        await far.heard(PodReady)
        yield Mesh(client, server, near, far)


async def talk(sock: socket.socket, data: bytes) -> bytes:
    """Send, end, and read everything that comes back; a reset at any moment is a ConnectionResetError."""

    def exchange() -> bytes:
        sock.sendall(data)
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # reset since; the read says so
                raise
        got = bytearray()
        while piece := sock.recv(65536):
            got += piece
        return bytes(got)

    return await trio.to_thread.run_sync(exchange)


@asynccontextmanager
async def one_node(topology: Topology, settings: Settings = SETTINGS) -> AsyncIterator[Mesh]:
    client, server = await trio.to_thread.run_sync(
        lambda: (topology.pod("client", CLIENT_IP), topology.pod("server", SERVER_IP))
    )
    await trio.to_thread.run_sync(redirect_output, client)
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(open_worker(settings, MeshPki()))
        worker.play(
            StateSlice(workloads=(CLIENT, SERVER), services=(WEB,)),
            added(client, "client"),
            added(server, "server"),
            StateSynced(),
        )
        while sum(isinstance(message, PodReady) for message in worker.said) < 2:
            await trio.lowlevel.checkpoint()
        yield Mesh(client, server, worker, worker)


@asynccontextmanager
async def two_workers(
    topology: Topology, settings: Settings = SETTINGS, ends: Sequence[socket.socket] = ()
) -> AsyncIterator[Mesh]:
    """One node whose pods live in different workers, linked as the supervisor does it, or by these `ends`."""
    client, server = await trio.to_thread.run_sync(
        lambda: (topology.pod("client", CLIENT_IP), topology.pod("server", SERVER_IP))
    )
    await trio.to_thread.run_sync(redirect_output, client)
    pki = MeshPki()
    left, right = ends or socket_pair()
    async with AsyncExitStack() as stack:
        near = await stack.enter_async_context(open_worker(settings, pki, [(1, left)]))
        far = await stack.enter_async_context(open_worker(settings, pki, [(0, right)]))
        state = StateSlice(workloads=(CLIENT, SERVER), services=(WEB,))
        near.play(state, added(client, "client"), StateSynced())
        far.play(state, added(server, "server"), StateSynced())
        await near.heard(PodReady)
        await far.heard(PodReady)
        await trio.testing.wait_all_tasks_blocked()
        yield Mesh(client, server, near, far)
