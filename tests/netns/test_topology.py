"""The builder builds what it says, in both address families, and leaves nothing."""

from __future__ import annotations

import os

import pytest
from netns_builder import Acceptor, Leftovers, Topology

from ztunnel.core.errors import PlatformError


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_pods_reach_each_other_with_their_own_addresses(topology: Topology, family: int, nodes: int) -> None:
    client = topology.pod("client", "10.0.1.2", "fd00:1::2")
    home = client.node if nodes == 1 else topology.node("node2")
    server = topology.pod("server", "10.0.2.2", "fd00:2::2", node=home)
    with Acceptor(server, None, 80, banner=b"hello") as app:
        with client.connect(server.addresses[family], 80) as sock:
            assert sock.recv(5) == b"hello"
        assert [seen.peer.ip for seen in app.seen] == [client.addresses[family]]


def test_nodes_reach_pods_and_pods_nodes(topology: Topology) -> None:
    one, two = topology.node("one"), topology.node("two")
    pod = topology.pod("pod", "10.0.1.2", "fd00:1::2", node=one)
    with Acceptor(pod, None, 80) as app, one.connect(pod.ip4, 80), two.connect(pod.ip6, 80):
        pass
    assert {seen.peer.ip for seen in app.seen} <= {one.ip4, two.ip6}
    with Acceptor(two, None, 80), pod.connect(two.ip4, 80), pod.connect(two.ip6, 80):
        pass


def test_the_congestion_control_is_on_the_default_routes() -> None:
    with Topology(congctl="reno") as topology:
        pod = topology.pod("pod", "10.0.1.2", "fd00:1::2")
        for family in ("-4", "-6"):
            routes = pod.run(["ip", family, "route", "show", "default"]).stdout
            assert "congctl reno" in routes


def test_everything_goes_with_the_topology() -> None:
    before = Leftovers()
    with Topology() as topology:
        pod = topology.pod("pod", "10.0.1.2")
        name = f"zt-pod-{os.getpid()}"
        topology.publish(pod, name)
        sleeper = pod.popen(["sleep", "1000"])
        found = " ".join(before.found())
        assert f"namespace {name}" in found
        assert f"child {sleeper.pid}" in found
    assert before.found() == []
    assert sleeper.returncode is not None


def test_a_removed_pod_is_gone(topology: Topology) -> None:
    pod = topology.pod("pod", "10.0.1.2")
    other = topology.pod("other", "10.0.1.3")
    topology.remove(pod)
    assert pod.device not in other.node.run(["ip", "link"]).stdout
    with pytest.raises(OSError):
        other.connect("10.0.1.2", 80, timeout=1)


def test_a_command_that_fails_says_what_and_where(topology: Topology) -> None:
    pod = topology.pod("pod", "10.0.1.2")
    with pytest.raises(PlatformError, match=r"ip link show nope in pod ended with 1: .*nope"):
        pod.run(["ip", "link", "show", "nope"])
    assert pod.run(["ip", "link", "show", "nope"], check=False).returncode == 1
