"""Envoy as the other end of HBONE: ours opens tunnels to it ("to"), and it opens tunnels to ours ("from").

Where Envoy does not carry what the application did, the test says what ours does right and what Envoy makes of it
(seen of 1.40).
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from envoy_peer import EnvoyPeer, envoy, envoy_files, errors, find_envoy
from mesh_pki import MeshPki
from netns_builder import Topology
from path_mesh import (
    CLIENT_ID,
    MARK,
    SERVER_ID,
    SERVER_IP,
    SETTINGS,
    VIP,
    Application,
    is_reset,
    path,
    read_all,
    read_exactly,
    reset,
    run,
    status,
    together,
)
from path_mesh import (
    Path as Mesh,
)
from two_pods import DENY_CLIENT
from worker_mesh import PlayedWorker

from benches.envoy_config import encapsulating, terminating
from ztunnel.link.messages import CertificateIssued, StateSlice

WAYS = ["to", "from"]
STRANGER_ID = "spiffe://cluster.local/ns/demo/sa/stranger"
FOREIGN_ID = "spiffe://other.domain/ns/demo/sa/client"
ENVOY_FRAME = 16 * 1024
Leaf = Callable[[MeshPki], CertificateIssued]


@pytest.fixture(autouse=True)
def installed() -> None:
    """Skips where there is no Envoy; in the middle of an async test the reason would be lost."""
    find_envoy()


class Interplay(NamedTuple):
    """One client and one application, one Envoy and one worker of ours between them."""

    mesh: Mesh
    peer: EnvoyPeer
    ours: PlayedWorker
    app: Application
    way: str

    async def pair(self) -> tuple[socket.socket, socket.socket]:
        return await self.mesh.pair(self.app, *self.address)

    async def connect(self) -> socket.socket:
        return await self.mesh.connect(*self.address)

    @property
    def address(self) -> tuple[str, int]:
        """A service for ours; Envoy knows no services here and asks for what the client dialled."""
        return (VIP, 80) if self.way == "to" else (SERVER_IP, 8080)

    async def stat(self, name: str) -> int:
        """A counter of the Envoy's HTTP/2 codec or TLS towards us."""
        stats = await self.peer.stats()
        if self.way == "from":
            return stats[f"cluster.hbone.{name}"]
        return stats[name if name.startswith("http2.") else f"listener.0.0.0.0_15008.{name}"]


@asynccontextmanager
async def interplay(
    topology: Topology,
    directory: Path,
    way: str,
    *,
    leaf: Leaf | None = None,
    expected: str = "",
) -> AsyncIterator[Interplay]:
    """`leaf` is what Envoy presents instead of its own, `expected` the identity it demands instead of ours."""
    near_is_ours = way == "to"
    near, far = (SETTINGS, None) if near_is_ours else (None, SETTINGS)
    async with path(topology, near=near, far=far) as mesh:
        if near_is_ours:
            files = envoy_files(directory, (leaf or _of(SERVER_ID))(mesh.pki))
            config = terminating(files, expected or CLIENT_ID, listen=15008, application=(SERVER_IP, 8080), mark=MARK)
        else:
            files = envoy_files(directory, (leaf or _of(CLIENT_ID))(mesh.pki))
            config = encapsulating(files, expected or SERVER_ID, listen=15001, next_hop=(SERVER_IP, 15008), mark=MARK)
        async with envoy(mesh.server if near_is_ours else mesh.client, config, directory) as peer:
            ours = mesh.near if near_is_ours else mesh.far
            yield Interplay(mesh, peer, ours, mesh.application(), way)


# ---- bytes ----


@pytest.mark.parametrize("way", WAYS)
async def test_every_byte_arrives_in_order_both_ways_at_once(topology: Topology, tmp_path: Path, way: str) -> None:
    async with interplay(topology, tmp_path, way) as i:
        for size in (1, 65_537, 100_000_000):
            await _both_ways(*await i.pair(), size)
        assert not errors(await i.peer.stats())
        assert [(await i.ours.flow(n)).bytes_received for n in (1, 2, 3)] == [1, 65_537, 100_000_000]


@pytest.mark.parametrize("way", WAYS)
async def test_tls_is_the_best_that_both_can(topology: Topology, tmp_path: Path, way: str) -> None:
    async with interplay(topology, tmp_path, way) as i:
        client, served = await i.pair()
        await _exchange(client, served)
        for fact in ("versions.TLSv1.3", "curves.X25519MLKEM768", "ciphers.TLS_AES_128_GCM_SHA256"):
            assert await i.stat(f"ssl.{fact}") == 1


async def test_frames_are_cut_to_what_envoy_takes(topology: Topology, tmp_path: Path) -> None:
    """Ours would send 1 MiB in a frame; Envoy announces nothing and so takes 16 KiB, and ends a connection for more."""
    async with interplay(topology, tmp_path, "to") as i:
        client, served = await i.pair()
        data = bytes(256 * ENVOY_FRAME + 1)
        await together(lambda: client.sendall(data), lambda: read_exactly(served, len(data)))
        await _exchange(client, served)
        assert not errors(await i.peer.stats())
        assert await i.stat("http2.rx_messaging_error") == 0


# ---- ends ----


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_has_finished_sending_still_receives(topology: Topology, tmp_path: Path, way: str) -> None:
    async with interplay(topology, tmp_path, way) as i:
        client, served = await i.pair()
        await run(client.sendall, b"question")
        client.shutdown(socket.SHUT_WR)
        assert await run(read_all, served) == b"question"
        await together(lambda: _say(served, 1_000_000), lambda: _expect(client, 1_000_000))
        assert (await i.ours.flow()).error == ""


async def test_from_envoy_an_application_that_has_finished_sending_still_receives(
    topology: Topology, tmp_path: Path
) -> None:
    async with interplay(topology, tmp_path, "from") as i:
        client, served = await i.pair()
        await run(client.sendall, b"x")
        assert await run(served.recv, 1) == b"x"
        served.shutdown(socket.SHUT_WR)
        assert await run(read_all, client) == b""
        await run(client.sendall, bytes(1_000_000))
        client.shutdown(socket.SHUT_WR)
        assert len(await run(read_all, served)) == 1_000_000
        assert (await i.ours.flow()).error == ""


async def test_to_envoy_an_application_that_has_finished_ends_the_tunnel_with_nothing_lost(
    topology: Topology, tmp_path: Path
) -> None:
    """Envoy follows its END_STREAM with a reset (NO_ERROR): what was sent is whole, the client cannot go on."""
    async with interplay(topology, tmp_path, "to") as i:
        client, served = await i.pair()
        await together(lambda: _say(served, 1_000_000), lambda: _expect(client, 1_000_000))
        assert (await i.ours.flow()).error == ""
        assert (await status(i.ours))["connections"] == 0
        assert await run(_cannot_write, client)


@pytest.mark.parametrize("way", WAYS)
async def test_a_reset_by_the_client_crosses_as_far_as_ours_carries_it(
    topology: Topology, tmp_path: Path, way: str
) -> None:
    async with interplay(topology, tmp_path, way) as i:
        client, served = await i.pair()
        await _exchange(client, served)
        reset(client)
        if way == "to":
            assert await run(read_all, served) == b""  # Envoy makes a FIN of our RST_STREAM
            assert await i.stat("http2.rx_reset") == 1
        else:
            assert await run(is_reset, served)
        assert "reset" in (await i.ours.flow()).error


@pytest.mark.parametrize("way", WAYS)
async def test_a_reset_by_the_application_crosses_as_far_as_ours_carries_it(
    topology: Topology, tmp_path: Path, way: str
) -> None:
    async with interplay(topology, tmp_path, way) as i:
        client, served = await i.pair()
        await _exchange(client, served)
        reset(served)
        if way == "to":
            assert await run(is_reset, client)
        else:
            assert await run(read_all, client) == b""  # Envoy makes a FIN of our RST_STREAM
            assert await i.stat("http2.rx_reset") == 1
        assert "reset" in (await i.ours.flow()).error


@pytest.mark.parametrize("way", WAYS)
async def test_the_neighbours_of_a_reset_stream_go_on(topology: Topology, tmp_path: Path, way: str) -> None:
    async with interplay(topology, tmp_path, way) as i:
        one, one_served = await i.pair()
        two, two_served = await i.pair()
        reset(one)
        await run(is_reset, one_served)
        await _exchange(two, two_served)
        assert (await status(i.ours))["tunnels"] == 1


# ---- many ----


@pytest.mark.parametrize("way", WAYS)
async def test_fifty_connections_share_one_tunnel(topology: Topology, tmp_path: Path, way: str) -> None:
    async with interplay(topology, tmp_path, way) as i:
        pairs = [await i.pair() for _ in range(50)]
        for number, (client, served) in enumerate(pairs):
            await run(client.sendall, bytes([number]) * 10_000)
            await run(served.sendall, bytes([number + 100]) * 10_000)
        for number, (client, served) in enumerate(pairs):
            assert await run(read_exactly, served, 10_000) == bytes([number]) * 10_000
            assert await run(read_exactly, client, 10_000) == bytes([number + 100]) * 10_000
        assert await status(i.ours) == {**await status(i.ours), "connections": 50, "tunnels": 1}
        assert await i.stat("http2.streams_active") == 50
        assert not errors(await i.peer.stats())


# ---- who ----


def _of(identity: str) -> Leaf:
    return lambda pki: pki.leaf(identity)


def _of_another_ca(identity: str) -> Leaf:
    """Its holder trusts the mesh, the mesh does not know its issuer."""
    return lambda pki: msgspec.structs.replace(MeshPki().leaf(identity), roots_pem=pki.roots_pem)


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        pytest.param(_of(STRANGER_ID), f"the peer is {STRANGER_ID}, expected {SERVER_ID}", id="identity"),
        pytest.param(_of_another_ca(SERVER_ID), "certificate", id="ca"),
    ],
)
async def test_ours_sends_nothing_to_an_envoy_that_is_not_whom_it_expects(
    topology: Topology, tmp_path: Path, leaf: Leaf, why: str
) -> None:
    async with interplay(topology, tmp_path, "to", leaf=leaf) as i:
        client = await i.connect()
        assert await run(_is_reset_with, client, b"secret")
        flow = await i.ours.flow()
        assert (flow.flag, flow.bytes_sent) == ("TLS_FAILURE", 0)
        assert why in flow.error
        assert (await i.peer.stats())["http.hbone.downstream_rq_total"] == 0


async def test_an_envoy_that_expects_somebody_else_refuses_ours(topology: Topology, tmp_path: Path) -> None:
    async with interplay(topology, tmp_path, "to", expected=STRANGER_ID) as i:
        client = await i.connect()
        assert await run(_is_reset_with, client, b"secret")
        assert (await i.ours.flow()).flag == "TLS_FAILURE"
        assert await i.stat("ssl.fail_verify_san") == 1


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        pytest.param(_of(FOREIGN_ID), f"the client is {FOREIGN_ID}, not of trust domain cluster.local", id="domain"),
        pytest.param(_of_another_ca(CLIENT_ID), "certificate", id="ca"),
    ],
)
async def test_ours_refuses_an_envoy_that_is_not_of_the_mesh(
    topology: Topology, tmp_path: Path, leaf: Leaf, why: str
) -> None:
    async with interplay(topology, tmp_path, "from", leaf=leaf) as i:
        client = await i.connect()
        assert await run(_is_over, client)
        flow = await i.ours.flow()
        assert flow.flag == "TLS_FAILURE"
        assert why in flow.error


async def test_an_envoy_that_expects_somebody_else_does_not_speak_to_ours(topology: Topology, tmp_path: Path) -> None:
    async with interplay(topology, tmp_path, "from", expected=STRANGER_ID) as i:
        client = await i.connect()
        assert await run(_is_over, client)
        assert await i.stat("ssl.fail_verify_san") >= 1
        assert (await i.ours.flow()).flag == "TLS_FAILURE"


async def test_a_policy_refuses_envoy_by_its_identity(topology: Topology, tmp_path: Path) -> None:
    async with interplay(topology, tmp_path, "from") as i:
        i.ours.play(StateSlice(policies=(DENY_CLIENT,)))
        client = await i.connect()
        assert await run(_is_over, client)
        flow = await i.ours.flow()
        assert flow.flag == "DENY"
        assert "explicitly denied by: demo/no-client" in flow.error
        assert await i.stat("http2.streams_active") == 0


# ---- small things ----


async def _exchange(client: socket.socket, served: socket.socket) -> None:
    for source, target in ((client, served), (served, client)):
        await run(source.sendall, b"hello")
        assert await run(read_exactly, target, 5) == b"hello"


def _say(sock: socket.socket, size: int) -> None:
    sock.sendall(bytes(size))
    sock.shutdown(socket.SHUT_WR)


def _expect(sock: socket.socket, size: int) -> None:
    assert len(read_all(sock)) == size


async def _both_ways(client: socket.socket, served: socket.socket, size: int) -> None:
    """Sends `size` bytes each way at once, and closes."""
    up, down = hashlib.shake_128(b"up").digest(size), hashlib.shake_128(b"down").digest(size)
    digests: dict[str, bytes] = {}
    await together(
        lambda: client.sendall(up),
        lambda: served.sendall(down),
        lambda: digests.update(up=_digest(served, size)),
        lambda: digests.update(down=_digest(client, size)),
    )
    assert digests == {"up": hashlib.sha256(up).digest(), "down": hashlib.sha256(down).digest()}
    client.close()
    served.close()


def _digest(sock: socket.socket, size: int) -> bytes:
    found = hashlib.sha256()
    while size and (piece := sock.recv(min(size, 1 << 18))):
        found.update(piece)
        size -= len(piece)
    return found.digest()


def _is_over(sock: socket.socket) -> bool:
    """Ended by the other side, in whatever way, without a byte."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def _is_reset_with(sock: socket.socket, words: bytes) -> bool:
    """Whether saying this ends in a reset, now or later."""
    try:
        sock.sendall(words)
    except ConnectionResetError:
        return True
    return is_reset(sock)


def _cannot_write(sock: socket.socket) -> bool:
    try:
        while True:
            sock.sendall(bytes(65536))
    except (ConnectionResetError, BrokenPipeError):
        return True
