"""Mesh files for agents that read one: the two workloads of the bench, pods, policies, and a crowd around them. Pure.

The crowd's workloads are written in YAML's flow style: a line each, a third of the time to parse.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from benches.lab import CLIENT_IP, SERVER_IP

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

POLICY = """\
policies:
- name: weather
  namespace: bench
  scope: Namespace
  action: Deny
  rules:
  - - - sourceIps: ["192.0.2.{number}/32"]
"""
"""Denies an address of a documentation range, so that every connection is looked at again and none is closed."""

LARGEST_CROWD = 1 << 24
POLICIES = 250


class Pod(NamedTuple):
    """A network namespace by its `ip netns` name, and the workload in it."""

    netns: str
    workload: str


def pair() -> str:
    """The client and the server; every mesh begins with them."""
    return "workloads:\n" + "".join(
        WORKLOAD.format(name=name, address=address) for name, address in (("client", CLIENT_IP), ("server", SERVER_IP))
    )


def crowd(count: int, *, changed: Iterable[int] = (), version: int = 0) -> str:
    """`count` more workloads, to be appended to `pair`; those numbered in `changed` carry the version `version`.

    ValueError when there are not enough addresses.
    """
    if count > LARGEST_CROWD:
        raise ValueError(f"{count} workloads do not fit into 11.0.0.0/8")
    revised = set(changed)
    return "".join(_neighbour(number, version if number in revised else 0) for number in range(count))


def _neighbour(number: int, version: int) -> str:
    return (
        f"- {{uid: crowd-{number}, name: crowd-{number}, namespace: crowd, workloadIps: [{crowd_address(number)}], "
        f"protocol: HBONE, canonicalRevision: v{version}}}\n"
    )


def crowd_address(number: int) -> str:
    return f"11.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def policy(number: int) -> str:
    """A policy that another `number` changes; to be appended last."""
    return POLICY.format(number=1 + number % POLICIES)


def pods(these: Iterable[Pod]) -> str:
    """What one agent serves, each captured by rules that the agent installs; to be appended last."""
    return "pods:\n" + "".join(
        f"- {{name: {pod.netns}, netns: {pod.netns}, workload: {pod.workload}, capture: redirect}}\n" for pod in these
    )


class Versions:
    """The same crowd again and again, each time with the next `changes` workloads changed and the rest as it was.

    A reader that misses a version finds the changes of both in the next one, as long as none comes round again.
    """

    def __init__(self, size: int, changes: int) -> None:
        if not 0 < changes <= size:
            raise ValueError(f"{changes} of {size} workloads cannot change")
        self._lines = [_neighbour(number, 0) for number in range(size)]
        self._changes = changes
        self._at = 0
        self.number = 0

    def next(self, *, workloads: bool, policies: bool) -> str:
        """The next file's text; with `workloads` they change, with `policies` the policy does."""
        self.number += 1
        if workloads:
            for _ in range(self._changes):
                self._lines[self._at] = _neighbour(self._at, self.number)
                self._at = (self._at + 1) % len(self._lines)
        text = pair() + "".join(self._lines)
        return text + policy(self.number if policies else 0)
