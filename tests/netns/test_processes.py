"""The agent as processes: each half goes on when the other one ends, and none outlives the one that stays."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import Agent, echo, wait_until
from mesh_text import CLIENT_IP, DENY, MESH, SERVER_IP, VIP
from netns_builder import Acceptor, Pod, Topology

from ztunnel.cli import run
from ztunnel.linux.redirect.apply import present

REOPENED_WITHIN = 5.0
"""Seconds; it takes a tenth of one where nothing else runs."""


class World:
    """One agent with two workers on a node, a client and a server that it serves, each in a worker of its own."""

    def __init__(self, topology: Topology, directory: Path) -> None:
        self.client = topology.pod("client", CLIENT_IP)
        self.server = topology.pod("server", SERVER_IP)
        self.mesh = directory / "mesh.yaml"
        self.write_mesh()
        self.agent = Agent(
            topology.nodes[0],
            directory,
            LOCAL_XDS_PATH=str(self.mesh),
            IPV6_ENABLED="false",
            WORKERS="2",
        )
        self.agent.wait_ready()
        self._enroll_socket = str(directory / "enroll-node1.sock")

    def write_mesh(self, *, pods: str = "client server", extra: str = "") -> None:
        rows = [
            f"- {{name: {pod.name}, workload: demo/{pod.name}, netns: {pod.path}, capture: redirect}}\n"
            for pod in (self.client, self.server)
            if pod.name in pods
        ]
        self.mesh.write_text(f"{MESH}{extra}pods:\n{''.join(rows)}" if rows else MESH + extra)

    def kill(self, name: str) -> None:
        os.kill(self.agent.children()[name], signal.SIGKILL)

    def wait_all_up(self) -> None:
        wait_until(lambda: self.agent.children().keys() == {"ztunnel-ctl", "ztunnel-w0", "ztunnel-w1"}, self.agent.log)
        self.agent.wait_ready()

    def through(self) -> socket.socket:
        return self.client.connect(VIP, 80, timeout=10)

    def enroll(self, pod: Pod) -> int:
        return run(["enroll", "--netns", pod.path, "--workload", f"demo/{pod.name}", "--socket", self._enroll_socket])


@pytest.fixture
def world(topology: Topology, tmp_path: Path) -> Iterator[World]:
    made = World(topology, tmp_path)
    with Acceptor(made.server, SERVER_IP, 8080):
        yield made


def exchange(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    return sock.recv(100)


def test_two_pods_are_spread_over_two_workers_and_seen_as_one_agent(world: World) -> None:
    assert world.agent.children().keys() == {"ztunnel-ctl", "ztunnel-w0", "ztunnel-w1"}
    with world.through() as sock:
        assert exchange(sock, b"hello") == b"hello"
        dump = world.agent.dump()["workloadState"]
        assert [row["protocol"] for row in dump["client"]["connections"]["outbound"]] == ["HBONE"]
        assert [row["protocol"] for row in dump["server"]["connections"]["inbound"]] == ["HBONE"]
        metrics = world.agent.get(15020, "/metrics").text
    assert "ztunnel_py_worker_pods 2.0" in metrics
    for reporter in ("source", "destination"):
        assert f'istio_tcp_connections_opened_total{{reporter="{reporter}"' in metrics
    wait_until(lambda: len(world.agent.access()) == 2, world.agent.log)
    assert world.agent.stop() == 0


def test_a_killed_worker_is_replaced_and_its_pods_are_opened_again(world: World) -> None:
    assert echo(world.through(), b"before") == b"before"
    for name in ("ztunnel-w0", "ztunnel-w1"):
        world.kill(name)
        began = time.monotonic()
        wait_until(lambda: answers(world), world.agent.log)
        assert time.monotonic() - began < REOPENED_WITHIN
    assert echo(world.through(), b"after") == b"after"
    world.wait_all_up()
    assert world.agent.stop() == 0
    assert present(world.client.fd) == present(world.server.fd) == {}


def refused(world: World) -> bool:
    try:
        world.through().close()
    except ConnectionRefusedError:
        return True
    return False


def answers(world: World) -> bool:
    try:
        return echo(world.through(), b"again") == b"again"
    except OSError:
        return False


def test_traffic_goes_on_while_the_control_half_is_killed_and_replaced(world: World) -> None:
    with world.through() as sock:
        assert exchange(sock, b"before") == b"before"
        os.kill(world.agent.children()["ztunnel-ctl"], signal.SIGSTOP)  # down for as long as we like
        assert exchange(sock, b"down") == b"down"
        assert echo(world.through(), b"new while down") == b"new while down"
        workers = world.agent.children()
        world.kill("ztunnel-ctl")
        assert exchange(sock, b"killed") == b"killed"
        world.wait_all_up()
        assert {name: pid for name, pid in world.agent.children().items() if name != "ztunnel-ctl"} == {
            name: pid for name, pid in workers.items() if name != "ztunnel-ctl"
        }
        assert exchange(sock, b"after") == b"after"
        world.write_mesh(extra=DENY)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    world.write_mesh()
    wait_until(lambda: answers(world), world.agent.log)
    assert world.agent.stop() == 0
    assert present(world.client.fd) == present(world.server.fd) == {}


def test_sighup_starts_the_control_half_as_a_new_program_and_touches_no_traffic(world: World) -> None:
    with world.through() as sock:
        assert exchange(sock, b"before") == b"before"
        before = world.agent.children()
        world.agent.process.send_signal(signal.SIGHUP)
        wait_until(lambda: world.agent.children().get("ztunnel-ctl", before["ztunnel-ctl"]) != before["ztunnel-ctl"])
        world.agent.wait_ready()
        after = world.agent.children()
        assert {before[name] == after[name] for name in ("ztunnel-w0", "ztunnel-w1")} == {True}
        assert exchange(sock, b"after") == b"after"
        world.write_mesh(extra=DENY)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert world.agent.stop() == 0


def test_enrolled_pods_survive_the_control_half_and_others_go_with_the_file(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.write_mesh(pods="server")
    wait_until(lambda: world.agent.dump()["workloadState"].keys() == {"server"}, world.agent.log)
    assert present(world.client.fd) == {}
    assert world.enroll(world.client) == 0
    assert echo(world.through(), b"enrolled") == b"enrolled"
    world.kill("ztunnel-ctl")
    world.wait_all_up()
    assert echo(world.through(), b"still") == b"still"
    world.kill("ztunnel-ctl")
    world.write_mesh(pods="none")
    wait_until(lambda: present(world.server.fd) == {}, world.agent.log)
    world.wait_all_up()
    wait_until(lambda: world.agent.dump()["workloadState"].keys() == {"demo/client"}, world.agent.log)
    assert world.agent.stop() == 0
    assert present(world.client.fd) == {}


def test_nothing_outlives_the_supervisor(world: World) -> None:
    children = world.agent.children().values()
    world.agent.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in children))


def test_sigterm_lets_connections_finish_in_every_worker_and_leaves_no_trace(world: World) -> None:
    with world.through() as sock:
        assert exchange(sock, b"before") == b"before"
        world.agent.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refused(world), world.agent.log)
        assert echo(sock, b"after") == b"after"
    assert world.agent.wait() == 0
    assert present(world.client.fd) == present(world.server.fd) == {}
    carried = [line for line in world.agent.access() if line["bytes_sent"] == len(b"before" + b"after")]
    assert ["error" in line for line in carried] == [False, False], "what was tried in between may have been cut"


def test_a_second_sigterm_ends_at_once(world: World) -> None:
    with world.through() as sock:
        assert exchange(sock, b"before") == b"before"
        for _ in range(2):
            world.agent.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "draining" in world.agent.log())
        began = time.monotonic()
        assert world.agent.wait() == 0
        assert time.monotonic() - began < REOPENED_WITHIN
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert present(world.client.fd) == {}


def test_what_keeps_the_control_half_from_starting_ends_the_agent_with_its_code(
    topology: Topology, tmp_path: Path
) -> None:
    mesh = tmp_path / "mesh.yaml"
    mesh.write_text("workloads: [{name: a}]\n")
    agent = Agent(topology.node("node1"), tmp_path, LOCAL_XDS_PATH=str(mesh), WORKERS="1")
    assert agent.wait() == 2
    assert f"{mesh}:1:" in agent.log()
    assert "Traceback" not in agent.log()
