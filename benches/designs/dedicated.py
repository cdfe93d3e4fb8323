"""The dedicated mode that ztunnel and ours share: the same environment, the same local file, the same readiness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benches import mesh
from benches.designs.base import Agents, wait_listening
from benches.lab import Lab

READY_URL = "http://127.0.0.1:15021/healthz/ready"
MESH_FILE = "mesh.yaml"

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "XDS_ADDRESS": "",
    "IPV6_ENABLED": "false",
    "PACKET_MARK": "1337",
}


def start_pair(lab: Lab, command: Sequence[str], extra: Mapping[str, str]) -> Agents:
    """Starts `command` once for each workload; `extra` is environment, at least where certificates come from.

    Everything else is the product's default, so that the numbers are those that a user gets.
    """
    lab.capture()
    path = lab.directory / MESH_FILE
    path.write_text(mesh.pair())
    shared = {
        **ENVIRONMENT,
        "PROXY_MODE": "dedicated",
        "ENABLE_ORIG_SRC": "false",
        "LOCAL_XDS_PATH": str(path),
        **extra,
    }
    client = lab.spawn("c", "a", command, {**shared, "PROXY_WORKLOAD_INFO": "bench/client/client"})
    server = lab.spawn("s", "b", command, {**shared, "PROXY_WORKLOAD_INFO": "bench/server/server"})
    agents = wait_listening(lab, client, server)
    lab.wait_answering("c", READY_URL, "a")
    lab.wait_answering("s", READY_URL, "b")
    return agents
