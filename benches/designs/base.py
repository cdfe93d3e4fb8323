"""What a compared design must be able to do."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from benches.lab import HBONE_PORT, OUTBOUND_PORT, Lab

CLIENT_ID = "spiffe://cluster.local/ns/bench/sa/client"
SERVER_ID = "spiffe://cluster.local/ns/bench/sa/server"


class Pair(NamedTuple):
    """The process ids of the two agents; their descendants count as theirs."""

    client: int
    server: int


class Design(Protocol):
    """One product as a pair of agents. Constructed once per bench, started once per measurement."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def missing(self) -> str:
        """Why it cannot run here, or an empty string."""
        ...

    def start(self, lab: Lab) -> Pair:
        """Starts both agents; BenchError when one does not come up."""
        ...


def wait_ready(lab: Lab, pair: Pair) -> Pair:
    """Returns when agent A takes captured connections and agent B takes tunnels; the logs are `a` and `b`."""
    lab.wait_listening("c", OUTBOUND_PORT, pair.client, "a")
    lab.wait_listening("s", HBONE_PORT, pair.server, "b")
    return pair


def write_mesh(path: Path) -> None:
    """Both workloads in ztunnel's local file format, which ours reads too."""
    path.write_text(MESH)


MESH = """\
workloads:
- uid: bench//v1/Pod/bench/client
  name: client
  namespace: bench
  serviceAccount: client
  workloadIps: ["10.77.0.1"]
  protocol: HBONE
  node: client-node
  network: ""
  services: {}
- uid: bench//v1/Pod/bench/server
  name: server
  namespace: bench
  serviceAccount: server
  workloadIps: ["10.77.0.2"]
  protocol: HBONE
  node: server-node
  network: ""
  services: {}
"""


def dedicated_environment(mesh: Path, name: str) -> dict[str, str]:
    """What starts ztunnel's dedicated mode for workload `name`, beyond where its certificates come from."""
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PROXY_MODE": "dedicated",
        "PROXY_WORKLOAD_INFO": f"bench/{name}/{name}",
        "LOCAL_XDS_PATH": str(mesh),
        "XDS_ADDRESS": "",
        "IPV6_ENABLED": "false",
        "ENABLE_ORIG_SRC": "false",
        "PACKET_MARK": "1337",
    }
