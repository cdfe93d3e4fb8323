"""ENABLE_ORIG_SRC under Istio's capture rules: applications see their client's address, or on request their own."""

from __future__ import annotations

import msgspec
import pytest
from mesh_samples import service, workload
from netns_builder import Acceptor, Topology
from path_mesh import (
    CLIENT,
    CLIENT_IP,
    CLIENT_IP6,
    SERVER,
    SERVER_IP,
    SERVER_IP6,
    SETTINGS,
    STRANGER_IP,
    STRANGER_IP6,
    VIP,
    VIP6,
    WEB,
    Path,
    added,
    path,
    read_exactly,
    run,
    until,
)

from ztunnel.core.model.capture import CaptureMode
from ztunnel.link.messages import PodReady
from ztunnel.linux.redirect.apply import apply
from ztunnel.linux.redirect.model import CaptureSpec

PRESERVING = msgspec.structs.replace(SETTINGS, enable_orig_src=True)
WHERE_POSSIBLE = msgspec.structs.replace(SETTINGS, enable_orig_src=None)

CLIENTS = {
    "hbone4": (VIP, 80, CLIENT_IP),
    "hbone6": (VIP6, 80, CLIENT_IP6),
    "plain4": (SERVER_IP, 8080, STRANGER_IP),
    "plain6": (SERVER_IP6, 8080, STRANGER_IP6),
}


async def source_seen(p: Path, client: str, size: int = 300_000) -> str:
    """The address that the application sees, after bytes went both ways."""
    ip, port, _ = CLIENTS[client]
    with Acceptor(p.server, None, 8080, banner=b"welcome") as app:
        sock = await p.connect(ip, port, at=p.stranger if client.startswith("plain") else p.client)
        assert await run(read_exactly, sock, 7) == b"welcome"
        await run(sock.sendall, bytes(size))
        assert len(await run(read_exactly, sock, size)) == size
        sock.close()
        return app.seen[0].peer.ip


@pytest.mark.parametrize("settings", [PRESERVING, WHERE_POSSIBLE], ids=["required", "where possible"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_the_application_sees_its_client(topology: Topology, client: str, settings: object) -> None:
    async with path(topology, near=settings, far=settings) as p:  # type: ignore[arg-type]
        assert await source_seen(p, client) == CLIENTS[client][2]
        assert not (await p.far.flow()).error


@pytest.mark.parametrize("client", CLIENTS)
async def test_without_it_the_application_sees_its_own_pod(topology: Topology, client: str) -> None:
    async with path(topology) as p:
        assert await source_seen(p, client) == (SERVER_IP6 if client.endswith("6") else SERVER_IP)


@pytest.mark.parametrize("settings", [PRESERVING, SETTINGS], ids=["preserving", "not preserving"])
async def test_a_pod_may_be_its_own_service(topology: Topology, settings: object) -> None:
    itself = msgspec.structs.replace(CLIENT, services={"demo/own.demo": {80: 8080}})
    own = service("own", "10.100.0.7")
    async with path(
        topology,
        near=settings,  # type: ignore[arg-type]
        far=None,
        workloads=(itself, SERVER),
        services=(WEB, own),
    ) as p:
        with Acceptor(p.client, None, 8080, banner=b"myself") as app:
            sock = await p.connect("10.100.0.7", 80)
            assert await run(read_exactly, sock, 6) == b"myself"
            sock.close()
            assert app.seen[0].peer.ip == CLIENT_IP
            flows = [await p.near.flow(number) for number in (1, 2)]
    assert not any(flow.error for flow in flows)


async def test_pods_of_one_worker_see_each_other(topology: Topology) -> None:
    """Both ends in one worker, where the bytes take a shorter way."""
    stranger = workload("stranger", STRANGER_IP, backs={"demo/near.demo": {80: 8080}})
    near = service("near", "10.100.0.8")
    async with path(
        topology, near=PRESERVING, far=None, workloads=(CLIENT, SERVER, stranger), services=(WEB, near)
    ) as p:
        await run(lambda: apply(CaptureSpec(mode=CaptureMode.REDIRECT), p.stranger.fd))
        p.near.play(added(p.stranger))
        await until(lambda: sum(isinstance(each, PodReady) for each in p.near.said) == 2)
        with Acceptor(p.stranger, None, 8080, banner=b"neighbour") as app:
            sock = await p.connect("10.100.0.8", 80)
            assert await run(read_exactly, sock, 9) == b"neighbour"
            sock.close()
            assert app.seen[0].peer.ip == CLIENT_IP
            flows = [await p.near.flow(number) for number in (1, 2)]
    assert not any(flow.error for flow in flows)
    assert {flow.hbone_address for flow in flows} == {f"{STRANGER_IP}:8080"}
