"""Close fidelity over the whole path: FIN stays FIN each way, RST stays RST, an aborted transfer is no success."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from netns_builder import Topology
from path_mesh import (
    CLIENT_ID,
    SERVER_ID,
    SERVER_IP,
    STRANGER_IP,
    VIP,
    is_reset,
    path,
    read_all,
    read_exactly,
    reset,
    run,
    send_until_stuck,
    status,
    together,
    until,
)
from raw_peers import HboneClient, hbone_server
from worker_mesh import PlayedWorker

CARRIERS = ["hbone", "passthrough", "plaintext"]
"""In a tunnel; outbound to a destination that nobody knows; inbound from a client that is not in the mesh."""


class Conversation(NamedTuple):
    client: socket.socket
    app: socket.socket
    workers: list[PlayedWorker]

    async def endings(self) -> list[str]:
        """The error of each worker's flow; nothing is open any more."""
        errors = []
        for worker in self.workers:
            errors.append((await worker.flow()).error)
            assert (await status(worker))["connections"] == 0
        return errors


@asynccontextmanager
async def conversation(topology: Topology, carrier: str) -> AsyncIterator[Conversation]:
    async with path(topology) as p:
        if carrier == "hbone":
            client, app = await p.pair(p.application())
            workers = [p.near, p.far]
        elif carrier == "passthrough":
            client, app = await p.pair(p.application(at=p.stranger), STRANGER_IP, 8080)
            workers = [p.near]
        else:
            server = p.application()
            client = await p.connect(SERVER_IP, 8080, at=p.stranger)
            app = await server.accept()
            workers = [p.far]
        yield Conversation(client, app, workers)


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_client_that_has_finished_sending_still_receives(topology: Topology, carrier: str) -> None:
    async with conversation(topology, carrier) as c:
        await run(c.client.sendall, b"question")
        c.client.shutdown(socket.SHUT_WR)
        assert await run(read_all, c.app) == b"question"
        answer = bytes(1_000_000)
        await run(c.app.sendall, answer)
        c.app.close()
        assert await run(read_all, c.client) == answer
        assert not any(await c.endings())


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_an_application_that_has_finished_sending_still_receives(topology: Topology, carrier: str) -> None:
    async with conversation(topology, carrier) as c:
        c.app.shutdown(socket.SHUT_WR)
        assert await run(read_all, c.client) == b""
        await run(c.client.sendall, bytes(1_000_000))
        c.client.shutdown(socket.SHUT_WR)
        assert len(await run(read_all, c.app)) == 1_000_000
        assert not any(await c.endings())


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_reset_by_the_client_reaches_the_application(topology: Topology, carrier: str) -> None:
    async with conversation(topology, carrier) as c:
        await run(c.client.sendall, b"x")
        assert await run(c.app.recv, 1) == b"x"
        reset(c.client)
        assert await run(is_reset, c.app)
        assert all(await c.endings())


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_reset_by_the_application_reaches_the_client(topology: Topology, carrier: str) -> None:
    async with conversation(topology, carrier) as c:
        await run(c.client.sendall, b"x")
        assert await run(c.app.recv, 1) == b"x"
        reset(c.app)
        assert await run(is_reset, c.client)
        assert all(await c.endings())


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_reset_after_the_own_fin_is_still_a_reset(topology: Topology, carrier: str) -> None:
    async with conversation(topology, carrier) as c:
        c.client.shutdown(socket.SHUT_WR)
        assert await run(read_all, c.app) == b""
        reset(c.client)
        assert await run(_write_until_reset, c.app)
        assert all(await c.endings())


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_client_that_leaves_in_the_middle_of_an_answer_is_no_success(topology: Topology, carrier: str) -> None:
    async with conversation(topology, carrier) as c:
        await run(send_until_stuck, c.app, 64 << 20)
        c.client.close()
        assert await run(_write_until_reset, c.app)
        assert all(await c.endings())


@pytest.mark.parametrize("with_reset", [True, False], ids=["reset", "fin"])
async def test_a_peer_agent_that_dies_resets_its_clients(topology: Topology, with_reset: bool) -> None:
    async with path(topology, far=None) as p, hbone_server(p.server, p.pki.leaf(SERVER_ID)) as peer:
        client = await p.connect(VIP, 80)
        await run(client.sendall, b"x")
        await until(lambda: peer.applications)
        peer.die(with_reset=with_reset)
        assert await run(is_reset, client)
        assert "the tunnel is gone" in (await p.near.flow()).error
        assert (await status(p.near))["tunnels"] == 0


@pytest.mark.parametrize("with_reset", [True, False], ids=["reset", "fin"])
async def test_a_client_agent_that_dies_resets_the_application(topology: Topology, with_reset: bool) -> None:
    async with path(topology, near=None) as p:
        app = p.application()
        tunnel = await run(HboneClient, p.client, SERVER_IP, p.pki.leaf(CLIENT_ID))
        stream = await run(tunnel.open, f"{SERVER_IP}:8080")
        served = await app.accept()
        assert await run(tunnel.status, stream) == 200
        if with_reset:
            reset(tunnel.sock)
        else:
            tunnel.sock.close()
        assert await run(is_reset, served)
        assert (await p.far.flow()).error
        assert (await status(p.far))["tunnels"] == 0


async def test_a_stream_that_the_peer_resets_resets_only_its_own_application(topology: Topology) -> None:
    async with path(topology) as p:
        app = p.application()
        one, one_served = await p.pair(app)
        two, two_served = await p.pair(app)
        reset(one)
        assert await run(is_reset, one_served)
        await run(two.sendall, b"still here")
        assert await run(read_exactly, two_served, 10) == b"still here"
        assert (await status(p.near))["tunnels"] == 1


async def test_a_large_answer_followed_by_fin_is_complete(topology: Topology) -> None:
    async with path(topology) as p:
        client, served = await p.pair(p.application())
        client.shutdown(socket.SHUT_WR)

        def answer() -> None:
            served.sendall(bytes(9_000_000))
            served.close()

        got: list[bytes] = []

        def read() -> None:
            got.append(read_all(client))

        await together(answer, read)
        assert len(got[0]) == 9_000_000
        assert not (await p.near.flow()).error
        assert not (await p.far.flow()).error


def _write_until_reset(sock: socket.socket) -> bool:
    """Whether writing on fails with a reset; what is written meanwhile goes nowhere."""
    try:
        while True:
            sock.sendall(bytes(65536))
    except (ConnectionResetError, BrokenPipeError):
        return True
    except TimeoutError:
        return False
