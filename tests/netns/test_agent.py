"""The agent as operators run it: a process with environment variables, in namespaces, on real traffic."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from pathlib import Path

import pytest
from agent_process import Agent, echo, wait_until
from mesh_text import CLIENT_IP, DENY, MESH, SERVER_IP, VIP
from netns_builder import Acceptor, Pod, Topology

from ztunnel.cli import run
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.netns import netns_id
from ztunnel.linux.redirect.apply import apply, present, remove
from ztunnel.linux.redirect.model import CaptureSpec


class World:
    """A client and a server on two nodes, a mesh file, and the agents that a test starts."""

    def __init__(self, topology: Topology, directory: Path) -> None:
        self.directory = directory
        self.client = topology.pod("client", CLIENT_IP)
        self.server = topology.pod("server", SERVER_IP, node=topology.node("node2"))
        self.mesh = directory / "mesh.yaml"
        self.mesh.write_text(MESH)

    def dedicated(self, pod: Pod, **environ: str) -> Agent:
        """What the issue promises: nothing but environment variables."""
        return Agent(
            pod,
            self.directory,
            PROXY_MODE="dedicated",
            PROXY_WORKLOAD_INFO=f"demo/{pod.name}/{pod.name}",
            LOCAL_XDS_PATH=str(self.mesh),
            IPV6_ENABLED="false",
            **environ,
        )

    def pair(self, **environ: str) -> tuple[Agent, Agent]:
        agents = self.dedicated(self.client, **environ), self.dedicated(self.server, **environ)
        for agent in agents:
            agent.wait_ready()
        return agents

    def through(self) -> socket.socket:
        """A connection of the client's application to the service."""
        return self.client.connect(VIP, 80, timeout=10)


@pytest.fixture
def world(topology: Topology, tmp_path: Path) -> World:
    return World(topology, tmp_path)


def assert_carried(near: Agent, far: Agent) -> None:
    """Both ends tell of one mTLS connection by the client's identity."""
    wait_until(lambda: near.access() and far.access(), lambda: near.log() + far.log())
    (outbound,), (inbound,) = near.access(), far.access()
    assert outbound["direction"] == "outbound"
    assert outbound["dst.addr"] == f"{SERVER_IP}:15008"
    assert inbound["direction"] == "inbound"
    assert inbound["src.identity"] == "spiffe://cluster.local/ns/demo/sa/client"
    assert "error" not in outbound
    assert "error" not in inbound


def test_two_dedicated_agents_with_rules_from_outside_carry_captured_traffic(world: World) -> None:
    for pod in (world.client, world.server):
        apply(CaptureSpec(mode=CaptureMode.REDIRECT, ipv6=False), pod.fd)
    near, far = world.pair(PACKET_MARK="1337", ENABLE_ORIG_SRC="true")
    with Acceptor(world.server, SERVER_IP, 8080) as app:
        assert echo(world.through(), b"through the mesh") == b"through the mesh"
    assert app.seen[0].peer.ip == CLIENT_IP
    assert_carried(near, far)
    assert [near.stop(), far.stop()] == [0, 0]
    assert present(world.client.fd) != {}, "rules from outside are not ours to remove"


@pytest.mark.parametrize("mode", ["redirect", "tproxy"])
def test_agents_that_are_asked_to_install_prove_and_remove_the_rules(world: World, mode: str) -> None:
    near, far = world.pair(CAPTURE_MODE=mode)
    with Acceptor(world.server, SERVER_IP, 8080):
        assert echo(world.through(), b"through the mesh") == b"through the mesh"
    assert_carried(near, far)
    assert near.dump()["workloadState"]["demo/client"]["state"] == "Up"
    assert [near.stop(), far.stop()] == [0, 0]
    assert present(world.client.fd) == present(world.server.fd) == {}


def test_what_an_operator_sees(world: World) -> None:
    near, far = world.pair(CAPTURE_MODE="redirect")
    with Acceptor(world.server, SERVER_IP, 8080, banner=b"hello"), world.through() as sock:
        assert sock.recv(5) == b"hello"
        (row,) = near.dump()["workloadState"]["demo/client"]["connections"]["outbound"]
        assert row["protocol"] == "HBONE"
        metrics = near.get(15020, "/metrics").text
    assert 'istio_tcp_connections_opened_total{reporter="source"' in metrics
    assert 'destination_service_name="web"' in metrics
    certificates = {entry["identity"]: entry["state"] for entry in near.dump()["certificates"]}
    assert certificates == {"spiffe://cluster.local/ns/demo/sa/client": "Available"}
    assert "error" in near.get(15000, "/logging?level=error", "POST").text
    assert near.get(15000, "/quitquitquit", "POST").status == 200
    assert near.wait() == 0
    assert far.stop() == 0


def test_kill_9_leaves_what_the_next_start_and_redirect_remove_clean(world: World) -> None:
    near, far = world.pair(CAPTURE_MODE="redirect")
    near.kill()
    far.kill()
    assert present(world.client.fd) != {}
    again = world.dedicated(world.client, CAPTURE_MODE="redirect")
    again.wait_ready()
    assert again.stop() == 0
    assert present(world.client.fd) == {}
    remove(world.server.fd)
    assert present(world.server.fd) == {}


def test_sigterm_lets_open_connections_finish_and_takes_no_new_ones(world: World) -> None:
    near, far = world.pair(CAPTURE_MODE="redirect")
    with Acceptor(world.server, SERVER_IP, 8080), world.through() as sock:
        sock.sendall(b"before")
        assert sock.recv(6) == b"before"
        near.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in near.log())
        with pytest.raises(ConnectionRefusedError):
            world.through()
        assert echo(sock, b"after") == b"after"
    assert near.wait() == 0
    assert far.stop() == 0
    assert all("error" not in line for line in near.access())


def test_a_second_sigterm_ends_at_once_with_a_reason_and_without_a_trace(world: World) -> None:
    near, far = world.pair(CAPTURE_MODE="redirect", CONNECTION_TERMINATION_DEADLINE="1h")
    with Acceptor(world.server, SERVER_IP, 8080, banner=b"hello"), world.through() as sock:
        assert sock.recv(5) == b"hello"
        near.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in near.log())
        near.process.send_signal(signal.SIGTERM)
        assert near.wait() == 0
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    (line,) = near.access()
    assert "drain" in line["error"]
    assert present(world.client.fd) == {}
    far.process.send_signal(signal.SIGTERM)
    far.process.send_signal(signal.SIGTERM)
    assert far.wait() == 0


def test_a_policy_in_the_file_is_in_force_without_a_restart_and_a_bad_file_is_not(world: World) -> None:
    near, far = world.pair(CAPTURE_MODE="redirect")
    with Acceptor(world.server, SERVER_IP, 8080, banner=b"hello"), world.through() as sock:
        assert sock.recv(5) == b"hello"
        world.mesh.write_text(MESH + "nonsense: [")
        wait_until(lambda: "the old state stays in force" in far.log(), far.log)
        world.mesh.write_text(MESH + DENY)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert [near.stop(), far.stop()] == [0, 0]


def test_a_bad_file_at_the_start_is_refused_with_every_line_and_exit_code_2(world: World) -> None:
    world.mesh.write_text("workloads: [{name: a}]\nwhat: []\n")
    agent = world.dedicated(world.client)
    assert agent.wait() == 2
    assert f"{world.mesh}:1:" in agent.log()
    assert f"{world.mesh}:2:" in agent.log()
    assert "Traceback" not in agent.log()


def test_pods_are_enrolled_and_unenrolled_on_a_shared_agent(
    world: World, topology: Topology, capsys: pytest.CaptureFixture[str]
) -> None:
    """One agent on its node serves both ends, of which it is told one after the other."""
    node = topology.nodes[0]
    agent = Agent(node, world.directory, LOCAL_XDS_PATH=str(world.mesh), IPV6_ENABLED="false", WORKERS="0")
    agent.wait_ready()
    at = ["--socket", str(world.directory / "enroll-node1.sock")]
    for pod, mode in ((world.client, "redirect"), (world.server, "tproxy")):
        who = ["--workload", f"demo/{pod.name}"]
        assert run(["enroll", "--netns", pod.path, "--capture", mode, *who, *at, "-o", "json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["up"] is True
    with Acceptor(world.server, SERVER_IP, 8080):
        assert echo(world.through(), b"through the mesh") == b"through the mesh"
    wait_until(lambda: len(agent.access()) == 2, agent.log)
    assert {line["direction"] for line in agent.access()} == {"outbound", "inbound"}
    assert len(namespaces_held(agent)) == 3
    for name in ("client", "server"):
        assert run(["unenroll", f"demo/{name}", *at]) == 0
    assert present(world.client.fd) == present(world.server.fd) == {}
    assert agent.dump()["workloadState"] == {}
    assert agent.dump()["certificates"] == []
    assert namespaces_held(agent) == {netns_id(node.fd)}
    assert run(["unenroll", "demo/client", *at]) == 2
    assert agent.stop() == 0


def test_a_pod_whose_namespace_goes_is_let_go(world: World, topology: Topology) -> None:
    node = topology.nodes[0]
    agent = Agent(node, world.directory, LOCAL_XDS_PATH=str(world.mesh), IPV6_ENABLED="false", WORKERS="0")
    agent.wait_ready()
    at = ["--socket", str(world.directory / "enroll-node1.sock")]
    assert run(["enroll", "--netns", world.client.path, "--workload", "demo/client", *at]) == 0
    topology.remove(world.client)
    wait_until(lambda: agent.dump()["workloadState"] == {}, agent.log)
    assert agent.stop() == 0


def test_pods_captured_in_their_nodes_namespace_have_nothing_installed_inside(world: World, topology: Topology) -> None:
    """Pods of the mesh file's list; each node's agent is told only of its own."""
    agents = []
    for node, pod in zip(topology.nodes, (world.client, world.server), strict=True):
        mesh = world.directory / f"{node.name}.yaml"
        place = f"interface: {pod.device}, netns: {pod.path}"
        mesh.write_text(f"{MESH}\npods: [{{name: it, workload: demo/{pod.name}, capture: node, {place}}}]\n")
        agents.append(Agent(node, world.directory, LOCAL_XDS_PATH=str(mesh), IPV6_ENABLED="false"))
    near, far = agents
    for agent in agents:
        agent.wait_ready()
    with Acceptor(world.server, SERVER_IP, 8080) as app:
        assert echo(world.through(), b"through the nodes") == b"through the nodes"
    assert app.seen[0].peer.ip == CLIENT_IP
    assert_carried(near, far)
    assert present(world.client.fd) == present(world.server.fd) == {}
    assert [near.stop(), far.stop()] == [0, 0]
    assert present(topology.nodes[0].fd) == present(topology.nodes[1].fd) == {}


@pytest.mark.parametrize("join", ["on", "off"])
def test_neighbours_captured_in_their_nodes_namespace_reach_each_other(
    topology: Topology, tmp_path: Path, join: str
) -> None:
    client, server = topology.pod("client", CLIENT_IP), topology.pod("server", SERVER_IP)
    pods = ", ".join(
        f"{{name: {pod.name}, workload: demo/{pod.name}, capture: node, interface: {pod.device}, netns: {pod.path}}}"
        for pod in (client, server)
    )
    mesh = tmp_path / "mesh.yaml"
    mesh.write_text(f"{MESH}\npods: [{pods}]\n")
    agent = Agent(topology.nodes[0], tmp_path, LOCAL_XDS_PATH=str(mesh), IPV6_ENABLED="false", SAME_NODE_JOIN=join)
    agent.wait_ready()
    with Acceptor(server, SERVER_IP, 8080) as app:
        assert echo(client.connect(VIP, 80, timeout=10), b"next door") == b"next door"
    assert app.seen[0].peer.ip == CLIENT_IP
    wait_until(lambda: len(agent.access()) == 2, agent.log)
    for line in agent.access():
        assert line["src.addr"].startswith(f"{CLIENT_IP}:")
        assert "error" not in line
        assert line["src.identity"] == "spiffe://cluster.local/ns/demo/sa/client"
    assert agent.stop() == 0
    assert present(topology.nodes[0].fd) == {}


def test_a_pod_whose_listeners_cannot_be_had_is_tried_again_and_costs_nothing(world: World, topology: Topology) -> None:
    agent = Agent(topology.nodes[0], world.directory, LOCAL_XDS_PATH=str(world.mesh), IPV6_ENABLED="false")
    agent.wait_ready()
    at = ["--socket", str(world.directory / "enroll-node1.sock")]
    with Acceptor(world.client, None, 15008):
        for _ in range(3):
            assert run(["enroll", "--netns", world.client.path, "--workload", "demo/client", *at]) == 2
    assert present(world.client.fd) == {}
    assert namespaces_held(agent) == {netns_id(topology.nodes[0].fd)}
    assert run(["enroll", "--netns", world.client.path, "--workload", "demo/client", *at]) == 0
    assert agent.stop() == 0


def test_an_agent_that_comes_second_leaves_the_rules_of_the_one_that_serves(world: World) -> None:
    first = world.dedicated(world.client, CAPTURE_MODE="tproxy")
    first.wait_ready()
    rules = present(world.client.fd)
    others = {"ADMIN_ADDR": "25000", "STATS_ADDR": "25020", "READINESS_ADDR": "25021"}
    second = world.dedicated(world.client, CAPTURE_MODE="tproxy", **others)
    wait_until(lambda: "another process holds the port" in second.log(), second.log)
    assert second.stop() == 0
    assert present(world.client.fd) == rules
    assert "another agent serves the same namespace" in second.log()
    assert first.stop() == 0
    assert present(world.client.fd) == {}


def namespaces_held(agent: Agent) -> set[tuple[int, int]]:
    """The network namespaces that the agent has descriptors of; its threads each keep their own."""
    found = set()
    for fd in Path(f"/proc/{agent.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(fd.readlink()).startswith("net:"):
                status = fd.stat()
                found.add((status.st_dev, status.st_ino))
    return found


def test_a_congestion_control_that_is_not_there_is_named(world: World) -> None:
    agent = world.dedicated(world.client, TCP_CONGESTION="carrier-pigeon")
    wait_until(lambda: "tcp_available_congestion_control" in agent.log(), agent.log)
    assert "cannot use congestion control 'carrier-pigeon'" in agent.log()
    agent.stop()
