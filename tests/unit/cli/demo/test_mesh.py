"""The demo's mesh is one that agents read."""

from __future__ import annotations

import pytest

from ztunnel.cli.demo import mesh
from ztunnel.control.mesh.localfile import parse
from ztunnel.core.model.capture import CaptureMode

NETNS = {member.name: f"/proc/1/fd/{number}" for number, member in enumerate(mesh.MEMBERS, 3)}
CAPTURED = [CaptureMode.REDIRECT, CaptureMode.TPROXY, CaptureMode.NODE]


@pytest.mark.parametrize("mode", CAPTURED)
def test_each_node_has_the_whole_mesh_and_its_own_pods(mode: CaptureMode) -> None:
    meshes = {node: parse(mesh.document(node, mode, NETNS), "mesh") for node in mesh.NODES}
    assert meshes["node1"].workloads == meshes["node2"].workloads
    assert {node: [pod.name for pod in found.pods] for node, found in meshes.items()} == {
        "node1": ["client", "visitor"],
        "node2": ["server"],
    }
    assert {pod.capture for found in meshes.values() for pod in found.pods} == {mode}


def test_identities_and_the_service_are_what_the_beats_expect() -> None:
    found = parse(mesh.document("node1", CaptureMode.REDIRECT, NETNS), "mesh")
    assert [str(workload.identity) for workload in found.workloads] == [member.identity for member in mesh.MEMBERS]
    assert {vip.ip for vip in found.services[0].vips} == {mesh.SERVICE_IP4, mesh.SERVICE_IP6}
    server = next(workload for workload in found.workloads if workload.name == "server")
    assert server.services == {str(found.services[0].key): {mesh.PORT: mesh.PORT}}


def test_the_policy_is_known_by_the_name_that_the_beats_look_for() -> None:
    found = parse(mesh.document("node2", CaptureMode.REDIRECT, NETNS, [mesh.DENY_CLIENT]), "mesh")
    assert [policy.key for policy in found.policies] == [mesh.DENY_KEY]


def test_names_in_the_pods_lead_to_the_service_and_not_around_it() -> None:
    names = [line.split("\t") for line in mesh.hosts().splitlines()]
    assert [ip for ip, name in names if name == "server"] == [mesh.SERVICE_IP4, mesh.SERVICE_IP6]
