"""The probe says captured exactly when its connection arrives at the agent's listener."""

from __future__ import annotations

import pytest
from netns_builder import Acceptor, Topology

from ztunnel.core.model.capture import PROBE_BANNER, PROBE_PORT, CaptureMode
from ztunnel.linux.probe import probe_capture
from ztunnel.linux.redirect.apply import apply, remove
from ztunnel.linux.redirect.model import CaptureSpec

FAMILIES = [pytest.param(False, id="ipv4"), pytest.param(True, id="ipv6")]


@pytest.mark.parametrize("ipv6", FAMILIES)
@pytest.mark.parametrize("mode", [CaptureMode.REDIRECT, CaptureMode.TPROXY, CaptureMode.NODE])
def test_captured_and_not_captured(topology: Topology, mode: CaptureMode, ipv6: bool) -> None:
    pod = topology.pod("pod", "10.0.1.2", "fd00:1::2")
    place = pod.node if mode is CaptureMode.NODE else pod
    spec = CaptureSpec(mode=mode, pod_interfaces=(pod.device,), pod_ips=pod.addresses)
    with Acceptor(place, None, 15001, banner=PROBE_BANNER, transparent=True, mark=0x539):
        before = probe_capture(pod.fd, ipv6=ipv6, timeout=0.3)
        assert not before.captured
        apply(spec, place.fd)
        result = probe_capture(pod.fd, ipv6=ipv6)
        assert result.captured, result.why
        assert result.target.port == PROBE_PORT
        remove(place.fd)
        assert not probe_capture(pod.fd, ipv6=ipv6, timeout=0.3).captured


@pytest.mark.parametrize("ipv6", FAMILIES)
def test_rules_without_an_agent(topology: Topology, ipv6: bool) -> None:
    pod = topology.pod("pod", "10.0.1.2", "fd00:1::2")
    apply(CaptureSpec(mode=CaptureMode.REDIRECT), pod.fd)
    result = probe_capture(pod.fd, ipv6=ipv6)
    assert not result.captured
    assert "the agent does not listen" in result.why


def test_somebody_else_on_the_outbound_port(topology: Topology) -> None:
    pod = topology.pod("pod", "10.0.1.2")
    apply(CaptureSpec(mode=CaptureMode.REDIRECT), pod.fd)
    with Acceptor(pod, None, 15001, banner=b"220 smtp.example ESMTP\r\n"):
        result = probe_capture(pod.fd)
    assert not result.captured
    assert "somebody else answered" in result.why


@pytest.mark.parametrize("ipv6", FAMILIES)
def test_without_a_default_route_a_neighbour_is_the_target(topology: Topology, ipv6: bool) -> None:
    pod = topology.pod("pod", "10.0.1.2", "fd00:1::2")
    for family in ("-4", "-6"):
        pod.run(["ip", family, "route", "del", "default"])
    lonely = probe_capture(pod.fd, ipv6=ipv6, timeout=0.3)
    assert not lonely.captured
    assert f"no {'IPv6' if ipv6 else 'IPv4'} route" in lonely.why
    pod.run(["ip", "address", "add", "fd05::1/64" if ipv6 else "10.5.0.1/24", "dev", "eth0", *(["nodad"] * ipv6)])
    apply(CaptureSpec(mode=CaptureMode.REDIRECT), pod.fd)
    with Acceptor(pod, None, 15001, banner=PROBE_BANNER, mark=0x539):
        result = probe_capture(pod.fd, ipv6=ipv6)
    assert result.captured, result.why
    assert result.target.ip == ("fd05::ffff:ffff:ffff:ffff" if ipv6 else "10.5.0.254")
