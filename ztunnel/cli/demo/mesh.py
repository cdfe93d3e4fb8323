"""The demo's mesh as the agents read it: three workloads, one service, and a policy when it is wanted. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import yaml

from ztunnel.core.model.capture import CaptureMode

NAMESPACE = "demo"
PORT = 8080


class Member(NamedTuple):
    """A pod of the demo; its identity is the service account of the same name."""

    name: str
    node: str
    ip4: str
    ip6: str

    @property
    def identity(self) -> str:
        return f"spiffe://cluster.local/ns/{NAMESPACE}/sa/{self.name}"


CLIENT = Member("client", "node1", "10.1.0.2", "fd00:1::2")
VISITOR = Member("visitor", "node1", "10.1.0.3", "fd00:1::3")
SERVER = Member("server", "node2", "10.2.0.2", "fd00:2::2")
MEMBERS = (CLIENT, VISITOR, SERVER)
NODES = ("node1", "node2")

SERVICE_IP4 = "10.96.0.10"
SERVICE_IP6 = "fd00:96::10"
_SERVICE = f"{NAMESPACE}/server.{NAMESPACE}.svc"

DENY_CLIENT = {
    "name": "deny-client",
    "namespace": NAMESPACE,
    "scope": "Namespace",
    "action": "Deny",
    "rules": [[[{"principals": [{"Exact": CLIENT.identity.removeprefix("spiffe://")}]}]]],
}
DENY_KEY = f"{NAMESPACE}/deny-client"


def document(node: str, mode: CaptureMode, netns: dict[str, str], policies: Iterable[object] = ()) -> str:
    """The mesh file of a node's agent: the whole mesh, and this node's pods.

    `netns` is the path of each pod's namespace by its name.
    """
    mesh = {
        "workloads": [_workload(member) for member in MEMBERS],
        "services": [
            {
                "name": SERVER.name,
                "namespace": NAMESPACE,
                "hostname": f"server.{NAMESPACE}.svc",
                "vips": [f"/{SERVICE_IP4}", f"/{SERVICE_IP6}"],
                "ports": {PORT: PORT},
            }
        ],
        "policies": list(policies),
        "pods": [_pod(member, mode, netns[member.name]) for member in MEMBERS if member.node == node],
    }
    return yaml.safe_dump(mesh, sort_keys=False, default_flow_style=None, width=120)


def hosts() -> str:
    """/etc/hosts for what runs in the demo's pods."""
    names = {"localhost": ("127.0.0.1", "::1"), SERVER.name: (SERVICE_IP4, SERVICE_IP6)}
    names |= {member.name: (member.ip4, member.ip6) for member in (CLIENT, VISITOR)}
    return "".join(f"{ip}\t{name}\n" for name, ips in names.items() for ip in ips)


def _workload(member: Member) -> dict[str, object]:
    workload: dict[str, object] = {
        "name": member.name,
        "namespace": NAMESPACE,
        "serviceAccount": member.name,
        "workloadIps": [member.ip4, member.ip6],
        "protocol": "HBONE",
        "node": member.node,
    }
    if member is SERVER:
        workload["services"] = {_SERVICE: {PORT: PORT}}
    return workload


def _pod(member: Member, mode: CaptureMode, netns: str) -> dict[str, object]:
    """In node mode the agent stays outside: it knows the pod by the node's end of its link."""
    place = {"interface": f"p-{member.name}"} if mode is CaptureMode.NODE else {"netns": netns}
    return {"name": member.name, "workload": f"{NAMESPACE}/{member.name}", "capture": mode.value, **place}
