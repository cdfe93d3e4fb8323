"""Pods in different worker processes: their connections are joined, and neither process's death leaves one hanging."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from agent_process import Agent, open_files, wait_until
from netns_builder import Pod, Topology

from ztunnel.linux.sockets import listen_tcp

CLIENT_IP, SERVER_IP = "10.1.0.2", "10.2.0.2"
MESH = f"""
workloads:
- {{name: client, uid: client, namespace: demo, serviceAccount: client, protocol: HBONE, workloadIps: [{CLIENT_IP}]}}
- {{name: server, uid: server, namespace: demo, serviceAccount: server, protocol: HBONE, workloadIps: [{SERVER_IP}]}}
pods:
"""
MB = 1 << 20
BULK = bytes(range(256)) * 4096 * 32
"""32 MB."""


class Node:
    """An agent with two workers, one for each pod, and the server's listening application."""

    def __init__(self, topology: Topology, directory: Path) -> None:
        self.client = topology.pod("client", CLIENT_IP)
        self.server = topology.pod("server", SERVER_IP)
        mesh = directory / "mesh.yaml"
        pods = "".join(
            f"- {{name: {pod.name}, workload: demo/{pod.name}, netns: {pod.path}, capture: redirect}}\n"
            for pod in (self.client, self.server)
        )
        mesh.write_text(MESH + pods)
        self.agent = Agent(topology.nodes[0], directory, LOCAL_XDS_PATH=str(mesh), IPV6_ENABLED="false", WORKERS="2")
        self.agent.wait_ready()
        self._listener = listen_tcp(ip=SERVER_IP, port=8080, netns=self.server.fd)
        self._listener.settimeout(3)

    def close(self) -> None:
        self._listener.close()

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Both applications' ends of a connection that works."""
        with ExitStack() as stack:
            near = stack.enter_context(self.client.connect(SERVER_IP, 8080, timeout=20))
            near.sendall(b"ping")
            far = stack.enter_context(self._listener.accept()[0])
            far.settimeout(20)
            assert far.recv(4) == b"ping"
            far.sendall(b"pong")
            assert near.recv(4) == b"pong"
            stack.pop_all()
            return near, far

    def worker_of(self, pod: Pod) -> int:
        """The process that holds the pod's namespace."""
        own = os.fstat(pod.fd)
        workers = [pid for name, pid in self.agent.children().items() if name.startswith("ztunnel-w")]
        (pid,) = [pid for pid in workers if any(os.path.samestat(own, each) for each in open_files(pid))]
        return pid

    def crossed(self) -> int:
        """Bytes that came into the server's pod over its network."""

        def read() -> int:
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
            return sum(int(line.split(":")[1].split()[0]) for line in lines if line.split(":")[0].strip() != "lo")

        return self.server.call(read)

    def is_joined(self) -> bool:
        """Whether a new connection's bytes stay off the network; they arrive whole either way."""
        try:
            near, far = self.pair()
        except OSError:
            return False
        before = self.crossed()
        with near, far:
            exchange(near, far)
            exchange(far, near)
        return self.crossed() - before < MB


def exchange(sender: socket.socket, receiver: socket.socket) -> None:
    speaking = threading.Thread(target=sender.sendall, args=(BULK,))
    speaking.start()
    heard = hashlib.sha256()
    left = len(BULK)
    while left:
        piece = receiver.recv(min(left, MB))
        assert piece, "the connection ended early"
        heard.update(piece)
        left -= len(piece)
    speaking.join()
    assert heard.digest() == hashlib.sha256(BULK).digest()


@pytest.fixture
def node(topology: Topology, tmp_path: Path) -> Iterator[Node]:
    made = Node(topology, tmp_path)
    yield made
    made.close()


def sent_bytes(node: Node) -> list[float]:
    """What both reporters count for what the client sent, connections that are open included."""
    lines = node.agent.get(15020, "/metrics").text.splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith("istio_tcp_received_bytes_total{")]


def test_pods_of_two_processes_are_joined_and_both_count_the_same(node: Node) -> None:
    assert node.worker_of(node.client) != node.worker_of(node.server)
    near, far = node.pair()
    before = node.crossed()
    with near, far:
        exchange(near, far)
        exchange(far, near)
        assert node.crossed() - before < MB
        assert set(sent_bytes(node)) == {len(BULK) + 4}
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        far.sendall(b"last")
        far.shutdown(socket.SHUT_WR)
        assert near.recv(10) == b"last"
    wait_until(lambda: len(node.agent.access()) == 2, node.agent.log)
    for line in node.agent.access():
        assert "error" not in line
        assert {line["bytes_sent"], line["bytes_recv"]} == {len(BULK) + 4, len(BULK) + 8}
    assert node.agent.stop() == 0


@pytest.mark.parametrize("whose", ["client", "server"])
def test_a_worker_that_dies_takes_its_half_of_a_join_along(node: Node, whose: str) -> None:
    near, far = node.pair()
    victim, survivor = (near, far) if whose == "client" else (far, near)
    with near, far:
        os.kill(node.worker_of(node.client if whose == "client" else node.server), signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            survivor.recv(1)
        with_end_or_reset(victim)
    wait_until(node.is_joined, node.agent.log)  # the next worker is linked as the first one was
    assert node.agent.stop() == 0


def with_end_or_reset(sock: socket.socket) -> None:
    """The kernel closes what a dead process had: with a reset or with an end, never not at all."""
    try:
        assert sock.recv(1) == b""
    except ConnectionResetError:
        return


def test_joins_need_no_control_half(node: Node) -> None:
    near, far = node.pair()
    with near, far:
        os.kill(node.agent.children()["ztunnel-ctl"], signal.SIGKILL)
        exchange(near, far)
        assert node.is_joined()
    wait_until(lambda: len(node.agent.children()) == 3, node.agent.log)
    node.agent.wait_ready()
    assert node.agent.stop() == 0
