"""`ztunnel check` against the real kernel and tools: it proves what works and leaves nothing."""

from __future__ import annotations

import subprocess

import pytest
from netns_builder import Acceptor, Topology

from ztunnel.cli.check import capture_findings, netns_findings, port_findings
from ztunnel.core.model.capture import PROBE_BANNER, CaptureMode
from ztunnel.linux.redirect.apply import apply, present
from ztunnel.linux.redirect.model import CaptureSpec
from ztunnel.linux.sockets import listen_tcp


@pytest.mark.usefixtures("namespaces")
def test_the_rules_of_every_mode_are_tried_on_this_kernel_and_not_here() -> None:
    before = present()
    findings = list(capture_findings())
    assert [finding.text.split()[0] for finding in findings] == ["redirect", "tproxy", "node"]
    assert all(finding.ok for finding in findings), findings
    assert present() == before


def test_a_pod_without_rules_is_told_how_to_get_them(topology: Topology) -> None:
    path = f"/proc/self/fd/{topology.pod('pod', '10.0.1.2').fd}"
    opened, rules = netns_findings(path)
    assert opened.ok
    assert (rules.ok, rules.fix) == (False, f"ztunnel redirect apply --netns {path}")


def test_a_probe_in_each_family_tells_whether_the_agent_takes_the_pods_connections(topology: Topology) -> None:
    pod = topology.pod("pod", "10.0.1.2", "fd00:1::2")
    path = f"/proc/self/fd/{pod.fd}"
    apply(CaptureSpec(mode=CaptureMode.REDIRECT), pod.fd)
    _, _, *probes = netns_findings(path)
    assert [probe.text.split()[0] for probe in probes] == ["IPv4", "IPv6"]
    assert all("redirect verify" in probe.fix for probe in probes)
    with Acceptor(pod, None, 15001, banner=PROBE_BANNER):
        assert all(finding.ok for finding in netns_findings(path))


def test_a_family_without_a_route_is_not_probed(topology: Topology) -> None:
    pod = topology.pod("pod", "10.0.1.2")
    apply(CaptureSpec(mode=CaptureMode.REDIRECT), pod.fd)
    _, _, *probes = netns_findings(f"/proc/self/fd/{pod.fd}")
    assert [probe.text.split()[0] for probe in probes] == ["IPv4"]


def test_a_pod_without_a_default_route_is_probed_by_its_subnet(topology: Topology) -> None:
    pod = topology.pod("pod")
    commands = ("link add lan up type veth peer name far", "link set far up", "address add 10.9.0.2/24 dev lan")
    for command in commands:
        pod.call(subprocess.run, ["ip", *command.split()], check=True)
    apply(CaptureSpec(mode=CaptureMode.REDIRECT), pod.fd)
    with Acceptor(pod, None, 15001, banner=PROBE_BANNER):
        _, _, probe = netns_findings(f"/proc/self/fd/{pod.fd}")
    assert (probe.ok, probe.text.split()[0]) == (True, "IPv4")


def test_a_pod_without_any_route_is_said_not_to_be_proven(topology: Topology) -> None:
    pod = topology.pod("pod")
    apply(CaptureSpec(mode=CaptureMode.REDIRECT), pod.fd)
    _, _, probe = netns_findings(f"/proc/self/fd/{pod.fd}")
    assert not probe.ok
    assert "has no route" in probe.text


def test_the_capture_ports_are_looked_for_in_the_pod(topology: Topology) -> None:
    pod = topology.pod("pod", "10.0.1.2")
    path = f"/proc/self/fd/{pod.fd}"
    with listen_tcp(ip=None, port=15008, netns=pod.fd):
        taken = [finding.text for finding in port_findings(path) if f"in {path}" in finding.text and not finding.ok]
    assert [text.split()[0] for text in taken] == ["15008"]
    assert all(finding.ok for finding in port_findings(path) if f"in {path}" in finding.text)
