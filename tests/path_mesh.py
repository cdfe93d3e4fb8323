"""Two nodes with a worker each and Istio's capture rules: the whole path, for tests of its contracts.

    async with path(topology) as p:
        app = p.application(8080)
        sock = await p.connect(VIP, 80)             captured by the client's worker
        served = await app.accept()                 what the server's worker dialled

    client (captured)  --  node1  --  node2  --  server (captured)
    stranger (not in the mesh)  --/

Sockets of tests block; `run` takes each call to a thread. Settings of either worker may be given, or None for no
worker at all, where `raw_peers` speaks in its place.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import trio
from mesh_pki import MeshPki
from mesh_samples import service, workload
from netns_builder import Namespace, Pod, Topology
from worker_mesh import PlayedWorker, open_worker

from ztunnel.config.settings import Settings
from ztunnel.core.model.capture import CaptureMode
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import Workload
from ztunnel.link.messages import PodAdded, PodReady, Question, StateSlice, StateSynced
from ztunnel.linux.redirect.apply import apply
from ztunnel.linux.redirect.model import CaptureSpec
from ztunnel.linux.sockets import listen_tcp
from ztunnel.worker.engine.tcp import abort_on_close

T = TypeVar("T")

MARK = 0x539
CLIENT_IP, SERVER_IP, STRANGER_IP, VIP = "10.1.0.2", "10.2.0.2", "10.3.0.2", "10.100.0.1"
CLIENT_IP6, SERVER_IP6, STRANGER_IP6, VIP6 = "fd00:1::2", "fd00:2::2", "fd00:3::2", "fd00:100::1"
CLIENT = workload("client", CLIENT_IP, CLIENT_IP6)
SERVER = workload("server", SERVER_IP, SERVER_IP6, backs={"demo/web.demo": {80: 8080}})
WEB = service("web", VIP, VIP6)
CLIENT_ID = "spiffe://cluster.local/ns/demo/sa/client"
SERVER_ID = "spiffe://cluster.local/ns/demo/sa/server"
SETTINGS = Settings(enable_orig_src=False)
PATIENCE = 10.0
"""Seconds until a test that has failed already gives up waiting."""


class Application:
    """A server whose connections the test holds in its own hands."""

    def __init__(self, namespace: Namespace, ip: str, port: int) -> None:
        self.listener = listen_tcp(ip=ip, port=port, netns=namespace.fd)
        self.listener.settimeout(PATIENCE)
        self.accepted: list[socket.socket] = []

    async def accept(self) -> socket.socket:
        sock, _ = await run(self.listener.accept)
        sock.settimeout(PATIENCE)
        self.accepted.append(sock)
        return sock

    def close(self) -> None:
        for sock in (*self.accepted, self.listener):
            sock.close()


class Path:
    def __init__(self, topology: Topology, client: Pod, server: Pod, stranger: Pod) -> None:
        self.topology = topology
        self.client = client
        self.server = server
        self.stranger = stranger
        self.pki = MeshPki()
        self.near: PlayedWorker
        self.far: PlayedWorker
        self.workers: list[PlayedWorker] = []
        self._owned: list[Application | socket.socket] = []

    def application(self, port: int = 8080, *, at: Pod | None = None, ip: str = "") -> Application:
        """A server in a pod; ends with the mesh."""
        pod = at or self.server
        app = Application(pod, ip or pod.ip4, port)
        self._owned.append(app)
        return app

    async def connect(self, ip: str = VIP, port: int = 80, *, at: Pod | None = None) -> socket.socket:
        """A connection of the client pod, or of another, after all that was played; ends with the mesh."""
        await self.told()
        sock = await run(lambda: (at or self.client).connect(ip, port, timeout=PATIENCE))
        self._owned.append(sock)
        return sock

    async def is_refused(self, ip: str = VIP, port: int = 80, *, at: Pod | None = None, say: bytes = b"") -> bool:
        """Whether a connection is reset, be it as soon as the handshake is over, and nothing comes back before."""
        try:
            sock = await self.connect(ip, port, at=at)
            if say:
                await run(sock.sendall, say)
            await run(sock.recv, 1)
        except (ConnectionResetError, BrokenPipeError):
            return True
        return False

    async def pair(self, app: Application, ip: str = VIP, port: int = 80) -> tuple[socket.socket, socket.socket]:
        """A client's connection and what the application accepted for it."""
        near = await self.connect(ip, port)
        return near, await app.accept()

    def play(self, **slice_fields: Any) -> None:
        """A change of the mesh, told to both workers."""
        for worker in self.workers:
            worker.play(StateSlice(**slice_fields))

    async def told(self) -> None:
        """Until the workers have taken in what was played to them."""
        for worker in self.workers:
            await status(worker)

    def close(self) -> None:
        for thing in self._owned:
            thing.close()


@asynccontextmanager
async def path(
    topology: Topology,
    *,
    near: Settings | None = SETTINGS,
    far: Settings | None = SETTINGS,
    workloads: Sequence[Workload] = (CLIENT, SERVER),
    services: Sequence[Service] = (WEB,),
) -> AsyncIterator[Path]:
    def build() -> Path:
        client = topology.pod("client", CLIENT_IP, CLIENT_IP6)
        server = topology.pod("server", SERVER_IP, SERVER_IP6, node=topology.node("node2"))
        for pod in (client, server):
            apply(CaptureSpec(mode=CaptureMode.REDIRECT), pod.fd)
        return Path(topology, client, server, topology.pod("stranger", STRANGER_IP, STRANGER_IP6))

    mesh = await run(build)
    state = StateSlice(workloads=tuple(workloads), services=tuple(services))
    async with AsyncExitStack() as stack:
        stack.callback(mesh.close)
        for pod, settings in ((mesh.client, near), (mesh.server, far)):
            if settings is None:
                continue
            worker = await stack.enter_async_context(open_worker(settings, mesh.pki))
            worker.play(state, added(pod), StateSynced())
            await worker.heard(PodReady)
            mesh.workers.append(worker)
            if pod is mesh.client:
                mesh.near = worker
            else:
                mesh.far = worker
        yield mesh


def added(pod: Pod) -> PodAdded:
    return PodAdded(
        uid=pod.name,
        name=pod.name,
        namespace="demo",
        service_account=pod.name,
        capture=CaptureMode.REDIRECT,
        netns_fd=os.dup(pod.fd),
        ips=pod.addresses,
    )


def descriptors() -> dict[str, str]:
    """What this process, and so every worker in it, has open; without the home that each thread keeps."""
    home = os.readlink("/proc/thread-self/ns/net")
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            what = os.readlink(f"/proc/self/fd/{fd}")
            if what != home:
                found[fd] = what
    return found


def open_sockets() -> set[str]:
    return {what for what in descriptors().values() if what.startswith("socket")}


# ---- what tests do with blocking sockets ----


async def run(call: Callable[..., T], *args: Any) -> T:
    """A blocking call, in a thread."""
    return await trio.to_thread.run_sync(lambda: call(*args))


async def together(*calls: Callable[[], object]) -> None:
    """Blocking calls, each in a thread of its own."""
    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(run, call)


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that announces itself to nobody."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.002)


async def status(worker: PlayedWorker) -> dict[str, int]:
    answer = await worker.ask(Question.STATUS)
    assert isinstance(answer, dict)
    return answer


async def open_connections(worker: PlayedWorker) -> Any:
    return await worker.ask(Question.CONNECTIONS)


def read_all(sock: socket.socket) -> bytes:
    """Until FIN. Raises ConnectionResetError when it is a reset."""
    got = bytearray()
    while piece := sock.recv(1 << 18):
        got += piece
    return bytes(got)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        piece = sock.recv(min(size - len(got), 1 << 18))
        if not piece:
            break
        got += piece
    return bytes(got)


def is_reset(sock: socket.socket) -> bool:
    """Whether the other side ends this connection by RST (and not by FIN), whatever came before."""
    try:
        read_all(sock)
    except ConnectionResetError:
        return True
    return False


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    abort_on_close(sock)
    sock.close()


def send_until_stuck(sock: socket.socket, limit: int, *, patience: float = 0.25) -> int:
    """Send until nothing is taken for `patience` seconds, or `limit` bytes are; how many were."""
    piece = memoryview(bytes(1 << 16))
    sock.settimeout(patience)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < limit:
            sent += sock.send(piece[: limit - sent])
    sock.settimeout(PATIENCE)
    return sent
