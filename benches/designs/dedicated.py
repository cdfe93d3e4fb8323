"""The dedicated mode that ztunnel and ours share: the same environment, the same local file, the same readiness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benches.designs.base import Pair, wait_listening
from benches.lab import CLIENT_IP, SERVER_IP, Lab

READY_URL = "http://127.0.0.1:15021/healthz/ready"

WORKLOAD = """\
- uid: bench//v1/Pod/bench/{name}
  name: {name}
  namespace: bench
  serviceAccount: {name}
  workloadIps: ["{address}"]
  protocol: HBONE
  node: {name}-node
  network: ""
  services: {{}}
"""

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "PROXY_MODE": "dedicated",
    "XDS_ADDRESS": "",
    "IPV6_ENABLED": "false",
    "ENABLE_ORIG_SRC": "false",
    "PACKET_MARK": "1337",
}


def start_pair(lab: Lab, command: Sequence[str], authority: Mapping[str, str]) -> Pair:
    """Starts `command` once for each workload; `authority` is the environment that says where certificates come from.

    Everything else is the product's default, so that the numbers are those that a user gets.
    """
    mesh = lab.directory / "mesh.yaml"
    workloads = (("client", CLIENT_IP), ("server", SERVER_IP))
    mesh.write_text("workloads:\n" + "".join(WORKLOAD.format(name=n, address=a) for n, a in workloads))
    shared = {**ENVIRONMENT, "LOCAL_XDS_PATH": str(mesh), **authority}
    client = lab.spawn("c", "a", command, {**shared, "PROXY_WORKLOAD_INFO": "bench/client/client"})
    server = lab.spawn("s", "b", command, {**shared, "PROXY_WORKLOAD_INFO": "bench/server/server"})
    pair = wait_listening(lab, Pair(client, server))
    lab.wait_answering("c", READY_URL, "a")
    lab.wait_answering("s", READY_URL, "b")
    return pair
