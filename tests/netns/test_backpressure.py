"""Back-pressure end to end: a slow reader stops its sender, at a bounded cost, and nobody else."""

from __future__ import annotations

import socket
from functools import partial

import pytest
from netns_builder import Topology
from path_mesh import (
    SETTINGS,
    STRANGER_IP,
    VIP,
    open_connections,
    path,
    read_all,
    read_exactly,
    run,
    send_until_stuck,
    status,
    together,
)

WINDOW = SETTINGS.http2_stream_window_size
KERNEL = 24 << 20
"""What socket buffers along the way may hold at most (tcp_rmem and tcp_wmem of four sockets), generously."""


async def test_an_application_that_does_not_read_stops_its_client(topology: Topology) -> None:
    async with path(topology) as p:
        client, served = await p.pair(p.application())
        taken = await run(send_until_stuck, client, 256 << 20)
        [carried] = await open_connections(p.near)
        assert carried.bytes_sent <= WINDOW + KERNEL
        assert taken < 256 << 20
        client.shutdown(socket.SHUT_WR)
        assert len(await run(read_all, served)) == taken, "everything arrives once it is read"
        served.close()
        assert not (await p.near.flow()).error


async def test_a_client_that_does_not_read_stops_its_application(topology: Topology) -> None:
    async with path(topology) as p:
        client, served = await p.pair(p.application())
        taken = await run(send_until_stuck, served, 256 << 20)
        [carried] = await open_connections(p.far)
        assert carried.bytes_sent <= WINDOW + KERNEL
        served.close()
        assert len(await run(read_all, client)) == taken
        client.close()
        assert not (await p.far.flow()).error


async def test_the_stream_window_bounds_what_waits_in_the_agents(topology: Topology) -> None:
    async with path(topology) as p:
        client, served = await p.pair(p.application())
        served.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await run(send_until_stuck, client, 256 << 20)
        [sent], [delivered] = await open_connections(p.near), await open_connections(p.far)
        assert sent.bytes_sent - delivered.bytes_received <= WINDOW


@pytest.mark.parametrize("direction", ["out", "in"])
async def test_plain_connections_stop_their_senders_too(topology: Topology, direction: str) -> None:
    async with path(topology) as p:
        client, served = await p.pair(p.application(at=p.stranger), STRANGER_IP, 8080)
        sender, reader = (client, served) if direction == "out" else (served, client)
        taken = await run(send_until_stuck, sender, 256 << 20)
        assert taken < 256 << 20
        sender.shutdown(socket.SHUT_WR)
        assert len(await run(read_all, reader)) == taken


async def test_stalled_streams_do_not_stall_their_neighbours(topology: Topology) -> None:
    """Ten full stream windows exceed the connection's window more than twice."""
    async with path(topology) as p:
        app = p.application()
        stalled = [(await p.pair(app))[0] for _ in range(10)]
        await together(*(partial(send_until_stuck, sock, 64 << 20) for sock in stalled))
        lively, served = await p.pair(app)
        assert (await status(p.near))["tunnels"] == 1
        for _ in range(3):
            await run(lively.sendall, b"q" * 100_000)
            assert len(await run(read_exactly, served, 100_000)) == 100_000
            await run(served.sendall, b"a" * 100_000)
            assert len(await run(read_exactly, lively, 100_000)) == 100_000


async def test_a_stalled_client_does_not_stall_its_neighbours(topology: Topology) -> None:
    async with path(topology) as p:
        app = p.application()
        stalled = [(await p.pair(app))[1] for _ in range(5)]
        await together(*(partial(send_until_stuck, sock, 64 << 20) for sock in stalled))
        lively, served = await p.pair(app, VIP, 80)
        await run(served.sendall, b"a" * 100_000)
        assert len(await run(read_exactly, lively, 100_000)) == 100_000
