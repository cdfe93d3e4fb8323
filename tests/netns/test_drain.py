"""Endings of a whole: drain with its deadline, a second start of nothing, and pods that go and leave nothing."""

from __future__ import annotations

import os
import socket

import msgspec
import pytest
import trio
from netns_builder import Topology
from path_mesh import (
    CLIENT_ID,
    CLIENT_IP,
    MARK,
    PATIENCE,
    SERVER_ID,
    SERVER_IP,
    SETTINGS,
    STRANGER_IP,
    Path,
    added,
    descriptors,
    is_reset,
    open_sockets,
    path,
    read_all,
    read_exactly,
    run,
    status,
    until,
)
from raw_peers import HboneClient, hbone_server
from worker_mesh import PlayedWorker

from ztunnel.core.model.identity import parse_identity
from ztunnel.core.wire import frames
from ztunnel.link.messages import (
    CertificateForgotten,
    Drain,
    Drained,
    PodFailed,
    PodGone,
    PodReady,
    PodRemoved,
)


async def drained(worker: PlayedWorker) -> Drained:
    with trio.fail_after(PATIENCE):
        return await worker.heard(Drained)


# ---- drain ----


@pytest.mark.parametrize("side", ["near", "far"])
async def test_drain_lets_a_connection_finish_and_takes_no_new_ones(topology: Topology, side: str) -> None:
    async with path(topology) as p:
        client, served = await p.pair(p.application())
        worker = p.near if side == "near" else p.far
        worker.play(Drain(PATIENCE))
        port = (CLIENT_IP, 15001) if side == "near" else (SERVER_IP, 15008)
        await until(lambda: _refuses(p, *port))
        await run(client.sendall, b"last words")
        client.shutdown(socket.SHUT_WR)
        assert await run(read_all, served) == b"last words"
        served.close()
        assert await run(read_all, client) == b""
        assert (await drained(worker)).cut == 0
        [flow] = [each for each in worker.flows if each.hbone_address]
        assert not flow.error


def _refuses(p: Path, ip: str, port: int) -> bool:
    try:
        p.client.connect(ip, port, mark=MARK).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("side", ["near", "far"])
async def test_what_is_left_at_the_deadline_is_reset_with_a_reason(topology: Topology, side: str) -> None:
    async with path(topology) as p:
        app = p.application()
        pairs = [await p.pair(app) for _ in range(3)]
        worker = p.near if side == "near" else p.far
        worker.play(Drain(0.1))
        assert (await drained(worker)).cut == 3
        for client, served in pairs:
            assert await run(is_reset, client)
            assert await run(is_reset, served)
        assert "closed at the drain deadline of 0.1 s" in (await worker.flow(3)).error
        assert (await p.far.flow(3)).error


async def test_drain_counts_plain_connections_too(topology: Topology) -> None:
    async with path(topology) as p:
        outbound, outbound_served = await p.pair(p.application(at=p.stranger), STRANGER_IP, 8080)
        app = p.application()
        inbound = await p.connect(SERVER_IP, 8080, at=p.stranger)
        inbound_served = await app.accept()
        p.near.play(Drain(0.05))
        p.far.play(Drain(0.05))
        assert (await drained(p.near)).cut == (await drained(p.far)).cut == 1
        for sock in (outbound, outbound_served, inbound, inbound_served):
            assert await run(is_reset, sock)


async def test_a_draining_server_says_goodbye_twice_and_serves_what_is_open(topology: Topology) -> None:
    async with path(topology, near=None) as p:
        app = p.application()
        with await run(lambda: HboneClient(p.client, SERVER_IP, p.pki.leaf(CLIENT_ID))) as peer:
            stream = await run(peer.open, f"{SERVER_IP}:8080")
            served = await app.accept()
            assert await run(peer.status, stream) == 200
            p.far.play(Drain(PATIENCE))
            assert await run(peer.goaway) == (2**31 - 1, 0)
            assert await run(peer.goaway) == (stream, 0)
            await run(lambda: peer.send_raw(frames.frame(frames.DATA, frames.END_STREAM, stream, b"last words")))
            assert await run(read_all, served) == b"last words"
            served.close()
            assert (await drained(p.far)).cut == 0
            assert not (await p.far.flow()).error


async def test_a_client_follows_a_draining_peer_with_another_tunnel(topology: Topology) -> None:
    async with path(topology, far=None) as p, hbone_server(p.server, p.pki.leaf(SERVER_ID)) as peer:
        first = await p.connect()
        await until(lambda: peer.applications)
        draining = peer.tunnels[0]
        draining.drain()
        draining.send_ping(peer.loop.now)
        await until(lambda: draining.ping_sent_at is None)
        second = await p.connect()
        await until(lambda: len(peer.applications) == 2)
        assert len(peer.tunnels) == 2
        for number, sock in enumerate((first, second)):
            await run(sock.sendall, b"hello")
            assert await run(read_exactly, peer.applications[number], 5) == b"hello"


# ---- pods ----


async def test_a_pod_that_goes_leaves_nothing(topology: Topology) -> None:
    async with path(topology) as p:
        p.far.play(added(p.stranger))
        await until(lambda: sum(isinstance(each, PodReady) for each in p.far.said) == 2)
        app = p.application()
        hbone, hbone_served = await p.pair(app)
        plain = await p.connect(SERVER_IP, 8080, at=p.stranger)
        plain_served = await app.accept()
        half_open = await run(lambda: p.client.connect(SERVER_IP, 15008, mark=MARK))
        with half_open:
            p.far.play(PodRemoved("server"), PodRemoved("stranger"))
            with trio.fail_after(PATIENCE):
                await p.far.heard(PodGone)
            for sock in (hbone, hbone_served, plain, plain_served):
                assert await run(is_reset, sock)
            assert await run(half_open.recv, 1) == b""
        flows = [await p.far.flow(number) for number in (1, 2)]
        assert all("the pod is gone" in flow.error for flow in flows)
        found = await status(p.far)
        assert (found["connections"], found["pods"], found["tunnels"]) == (0, 0, 0)
        assert await run(_refuses, p, SERVER_IP, 15008)
        p.near.play(PodRemoved("client"))
        with trio.fail_after(PATIENCE):
            await p.near.heard(PodGone)
        p.close()
        mine = {pod.fd for pod in (p.client, p.server, p.stranger)}
        for pod in mine:
            namespace = os.readlink(f"/proc/self/fd/{pod}")
            assert [int(fd) for fd, what in descriptors().items() if what == namespace and int(fd) not in mine] == []


@pytest.mark.parametrize("stage", ["dial", "tls", "certificate", "application", "plain", "accept"])
async def test_a_pod_that_goes_takes_what_is_under_way_with_it(topology: Topology, stage: str) -> None:
    """Set-ups that wait for somebody hold descriptors; none may outlive the pod."""
    patient = msgspec.structs.replace(SETTINGS, connect_timeout=60.0, tls_handshake_timeout=60.0)
    async with path(topology, near=patient, far=patient) as p:
        ports = {"dial": 15008, "application": 8080, "plain": 8080}
        if stage in ports:
            for pod in (p.server, p.stranger):
                await run(pod.run, ["iptables", "-A", "INPUT", "-p", "tcp", "--dport", str(ports[stage]), "-j", "DROP"])
        worker, name = (p.far, "server") if stage in ("application", "accept") else (p.near, "client")
        if stage == "certificate":
            p.near.issue = lambda identity: None
            p.near.play(*_forget(CLIENT_ID))
        if stage == "accept":
            p.far.issue = lambda identity: None
            p.far.play(*_forget(SERVER_ID))
        if stage == "tls":
            p.far.play(PodRemoved("server"))
            await p.far.heard(PodGone)
            silent = p.application(15008)
        await p.told()
        before = open_sockets()
        expected = {"dial": 3, "tls": 4, "certificate": 2, "application": 5, "plain": 3, "accept": 2}[stage]
        if stage == "accept":
            client = await run(lambda: p.client.connect(SERVER_IP, 15008, mark=MARK))
        else:
            client = await run(lambda: p.client.connect(STRANGER_IP if stage == "plain" else SERVER_IP, 8080))
        try:
            if stage == "tls":
                await silent.accept()
            await until(lambda: len(open_sockets() - before) == expected)
            worker.play(PodRemoved(name))
            with trio.fail_after(PATIENCE):
                await worker.heard(PodGone)
            await run(is_reset, client)
        finally:
            client.close()
        p.close()
        await until(lambda: not open_sockets() - before)
        assert (await status(worker))["connections"] == 0


async def test_a_pod_whose_ports_are_taken_is_refused_and_keeps_nothing(topology: Topology) -> None:
    strict = msgspec.structs.replace(SETTINGS, inpod_port_reuse=False)
    async with path(topology, far=strict) as p:
        taken = p.application(15006, at=p.stranger)
        before = sorted(descriptors().values())
        p.far.play(added(p.stranger))
        with trio.fail_after(PATIENCE):
            failed = await p.far.heard(PodFailed)
        assert "cannot listen on" in failed.why
        assert "15006" in failed.why
        await status(p.far)
        assert sorted(descriptors().values()) == before
        taken.close()


def _forget(identity: str) -> list[CertificateForgotten]:
    return [CertificateForgotten(parse_identity(identity))]
