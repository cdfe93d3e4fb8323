"""This project's agents, started with nothing but environment variables: one for each workload, or one for a node."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from benches import mesh
from benches.designs.base import Agents
from benches.designs.dedicated import ENVIRONMENT, MESH_FILE, READY_URL, start_pair
from benches.lab import Lab
from benches.mesh import Pod

CROWD_PODS = 100
"""Pods in all of the crowded nodes, the bench's own two among them."""
CROWD_STREAMS_PER_TUNNEL = 10


class _Ours:
    """What the variants have in common; `environment` is what differs from the product's defaults."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self._environment = dict(environment)
        self._executable = Path(sys.executable).with_name("ztunnel")

    @property
    def version(self) -> str:
        return metadata.version("ztunnel")

    def missing(self) -> str:
        return "" if self._executable.exists() else "the command is not installed beside this interpreter (./dev sync)"

    def _command(self) -> tuple[str, ...]:
        return (str(self._executable), "proxy", "ztunnel")

    def _authority(self, lab: Lab) -> dict[str, str]:
        return {"LOCAL_CA_PATH": str(lab.directory / "ca")}


class Dedicated(_Ours):
    """One agent for each workload, in its namespace; rules come from outside."""

    def start(self, lab: Lab) -> Agents:
        return start_pair(lab, self._command(), {**self._authority(lab), **self._environment})


class SameNode(_Ours):
    """One agent on one node serves both pods' namespaces and captures in them."""

    def start(self, lab: Lab) -> Agents:
        return (self._start_node(lab, "n", "a", [client(lab), server(lab)], mesh.pair()),)

    def _start_node(self, lab: Lab, node: str, log: str, pods: Sequence[Pod], workloads: str) -> int:
        lab.add(node)
        path = lab.directory / f"{node}-{MESH_FILE}"
        path.write_text(workloads + mesh.pods(pods))
        environment = {
            **ENVIRONMENT,
            "LOCAL_XDS_PATH": str(path),
            "ENROLL_UDS": str(lab.directory / f"{node}.sock"),
            **self._authority(lab),
            **self._environment,
        }
        pid = lab.spawn(node, log, self._command(), environment)
        lab.wait_answering(node, READY_URL, log)
        return pid


class CrowdedNodes(SameNode):
    """Two nodes with an agent each, and a hundred pods on both together; a tunnel carries ten streams at most."""

    def start(self, lab: Lab) -> Agents:
        others = [Pod(lab.namespace(f"p{number}"), f"crowd/crowd-{number}") for number in range(CROWD_PODS - 2)]
        for number in range(len(others)):
            lab.add_still(f"p{number}", mesh.crowd_address(number))
        workloads = mesh.pair() + mesh.crowd(len(others))
        half = len(others) // 2
        return (
            self._start_node(lab, "n", "a", [client(lab), *others[:half]], workloads),
            self._start_node(lab, "m", "b", [server(lab), *others[half:]], workloads),
        )


def client(lab: Lab) -> Pod:
    return Pod(lab.namespace("c"), "bench/client")


def server(lab: Lab) -> Pod:
    return Pod(lab.namespace("s"), "bench/server")
