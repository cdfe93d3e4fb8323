"""Istio's own ztunnel as the other end: ZTUNNEL_PEER names its executable. It skips without.

It runs in dedicated mode with a local file and gets its certificate from a CA of the mesh over Istio's RPC. "to": ours
opens tunnels to it; "from": it opens tunnels to ours. A reset becomes a FIN in ztunnel; the tests say what ours makes
of that.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from istio_ca import IstioCa
from netns_builder import Pod, Topology
from path_mesh import (
    CLIENT_IP,
    MARK,
    PATIENCE,
    SERVER_IP,
    SETTINGS,
    Application,
    path,
    read_all,
    read_exactly,
    reset,
    run,
    status,
    together,
    until,
)
from path_mesh import Path as Mesh
from two_pods import DENY_CLIENT
from worker_mesh import PlayedWorker

from ztunnel.link.messages import StateSlice

PEER = os.environ.get("ZTUNNEL_PEER", "")
WAYS = ["to", "from"]
MESH = "workloads:\n" + "".join(
    f"""- {{name: {name}, uid: {name}, namespace: demo, serviceAccount: {name}, trustDomain: cluster.local,
   protocol: HBONE, workloadIps: [{ip}], network: "", node: {name}, services: {{}}}}
"""
    for name, ip in (("client", CLIENT_IP), ("server", SERVER_IP))
)
DENY = """policies:
- name: no-client
  namespace: demo
  scope: Namespace
  action: Deny
  dryRun: false
  rules: [[[{principals: [!Exact cluster.local/ns/demo/sa/client]}]]]
"""
pytestmark = pytest.mark.skipif(not PEER, reason="needs ZTUNNEL_PEER, the executable of Istio's ztunnel")


class Interplay(NamedTuple):
    mesh: Mesh
    ours: PlayedWorker
    app: Application
    log: Path

    async def pair(self) -> tuple[socket.socket, socket.socket]:
        return await self.mesh.pair(self.app, SERVER_IP, 8080)


@asynccontextmanager
async def interplay(topology: Topology, directory: Path, way: str, *, policies: str = "") -> AsyncIterator[Interplay]:
    near, far = (SETTINGS, None) if way == "to" else (None, SETTINGS)
    async with path(topology, near=near, far=far) as mesh:
        pod = mesh.server if way == "to" else mesh.client
        with IstioCa(pod, mesh.pki, directory) as ca:
            async with ztunnel(pod, directory, ca.environ, policies):
                ours = mesh.near if way == "to" else mesh.far
                yield Interplay(mesh, ours, mesh.application(), directory / "ztunnel.log")


@asynccontextmanager
async def ztunnel(pod: Pod, directory: Path, authority: Mapping[str, str], policies: str) -> AsyncIterator[None]:
    """Ready; ends with the block. What it logged is added to a failure."""
    (directory / "mesh.yaml").write_text(MESH + policies)
    log = directory / "ztunnel.log"
    environ = {
        "PROXY_MODE": "dedicated",
        "PROXY_WORKLOAD_INFO": f"demo/{pod.name}/{pod.name}",
        "LOCAL_XDS_PATH": str(directory / "mesh.yaml"),
        "XDS_ADDRESS": "",
        "IPV6_ENABLED": "false",
        "ENABLE_ORIG_SRC": "false",
        "PACKET_MARK": str(MARK),
        **authority,
    }
    with log.open("wb") as output:
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        process = pod.popen([PEER, "proxy", "ztunnel"], env=environ, cwd=directory, **quiet)
    try:
        with trio.fail_after(PATIENCE):
            while not await run(_ready, pod):
                assert process.poll() is None, "ztunnel ended"
                await trio.sleep(0.01)  # it announces itself to nobody
        yield
    except Exception as error:
        error.add_note("ztunnel's log ends:\n" + "\n".join(log.read_text().splitlines()[-15:]))
        raise
    finally:
        process.kill()
        process.wait()


def _ready(pod: Pod) -> bool:
    try:
        with pod.connect("127.0.0.1", 15021) as sock:
            sock.sendall(b"GET /healthz/ready HTTP/1.1\r\nHost: ready\r\nConnection: close\r\n\r\n")
            return read_all(sock).startswith(b"HTTP/1.1 200")
    except ConnectionError:
        return False


@pytest.mark.parametrize("way", WAYS)
async def test_every_byte_arrives_in_order_both_ways_at_once(topology: Topology, tmp_path: Path, way: str) -> None:
    up, down = (hashlib.shake_128(name).digest(20_000_000) for name in (b"up", b"down"))
    got: dict[str, bytes] = {}
    async with interplay(topology, tmp_path, way) as i:
        client, served = await i.pair()
        await together(
            lambda: client.sendall(up),
            lambda: served.sendall(down),
            lambda: got.update(up=read_exactly(served, len(up))),
            lambda: got.update(down=read_exactly(client, len(down))),
        )
    assert got["up"] == up
    assert got["down"] == down


@pytest.mark.parametrize("way", WAYS)
async def test_both_sides_may_finish_sending_first(topology: Topology, tmp_path: Path, way: str) -> None:
    async with interplay(topology, tmp_path, way) as i:
        for number in (1, 2):
            first, second = await i.pair()
            if number == 2:
                first, second = second, first
            await run(first.sendall, b"question")
            first.shutdown(socket.SHUT_WR)
            assert await run(read_all, second) == b"question"
            await together(partial(_say, second), partial(_heard, first))
            assert (await i.ours.flow(number)).error == ""


@pytest.mark.parametrize("way", WAYS)
async def test_a_reset_on_our_side_ends_the_other_and_is_no_success(
    topology: Topology, tmp_path: Path, way: str
) -> None:
    """Ours sends RST_STREAM; ztunnel makes a FIN of it."""
    async with interplay(topology, tmp_path, way) as i:
        client, served = await i.pair()
        await _exchange(client, served)
        reset(client if way == "to" else served)
        assert await run(read_all, served if way == "to" else client) == b""
        assert (await i.ours.flow()).error == "the application's side reset the connection"


@pytest.mark.parametrize("way", WAYS)
async def test_a_reset_on_ztunnels_side_comes_as_the_end_it_is_said_to_be(
    topology: Topology, tmp_path: Path, way: str
) -> None:
    """ztunnel says END_STREAM, and nothing tells that from an orderly end."""
    async with interplay(topology, tmp_path, way) as i:
        client, served = await i.pair()
        await _exchange(client, served)
        broken, other = (served, client) if way == "to" else (client, served)
        reset(broken)
        assert await run(read_all, other) == b""
        other.close()
        await i.ours.flow()
        assert (await status(i.ours))["connections"] == 0


@pytest.mark.parametrize("way", WAYS)
async def test_fifty_connections_share_one_tunnel(topology: Topology, tmp_path: Path, way: str) -> None:
    async with interplay(topology, tmp_path, way) as i:
        pairs = [await i.pair() for _ in range(50)]
        for client, served in pairs:
            await _exchange(client, served)
        now = await status(i.ours)
        assert (now["connections"], now["tunnels"]) == (50, 1)


async def test_each_logs_who_the_other_is(topology: Topology, tmp_path: Path) -> None:
    async with interplay(topology, tmp_path, "to") as i:
        client, served = await i.pair()
        await _exchange(client, served)
        client.close()
        assert await run(read_all, served) == b""
        served.close()
        await i.ours.flow()
        await until(lambda: "connection complete" in i.log.read_text())
        line = next(line for line in i.log.read_text().splitlines() if "connection complete" in line)
    assert 'src.identity="spiffe://cluster.local/ns/demo/sa/client"' in line
    assert 'dst.identity="spiffe://cluster.local/ns/demo/sa/server"' in line
    assert 'direction="inbound"' in line


async def test_ours_is_refused_by_a_policy_of_ztunnel(topology: Topology, tmp_path: Path) -> None:
    async with interplay(topology, tmp_path, "to", policies=DENY) as i:
        client = await i.mesh.connect(SERVER_IP, 8080)
        assert await run(_is_over, client)
        assert "401" in (await i.ours.flow()).error


async def test_ztunnel_is_refused_by_a_policy_of_ours(topology: Topology, tmp_path: Path) -> None:
    async with interplay(topology, tmp_path, "from") as i:
        i.ours.play(StateSlice(policies=(DENY_CLIENT,)))
        client = await i.mesh.connect(SERVER_IP, 8080)
        assert await run(_is_over, client)
        assert "explicitly denied by: demo/no-client" in (await i.ours.flow()).error


async def _exchange(client: socket.socket, served: socket.socket) -> None:
    for source, target in ((client, served), (served, client)):
        await run(source.sendall, b"hello")
        assert await run(read_exactly, target, 5) == b"hello"


def _say(sock: socket.socket) -> None:
    sock.sendall(bytes(1_000_000))
    sock.shutdown(socket.SHUT_WR)


def _heard(sock: socket.socket) -> None:
    assert len(read_all(sock)) == 1_000_000


def _is_over(sock: socket.socket) -> bool:
    """Ended by the other side, in whatever way, without a byte."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
