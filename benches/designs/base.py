"""What a compared design must be able to do."""

from __future__ import annotations

from typing import Protocol

from benches.lab import HBONE_PORT, OUTBOUND_PORT, Lab

CLIENT_ID = "spiffe://cluster.local/ns/bench/sa/client"
SERVER_ID = "spiffe://cluster.local/ns/bench/sa/server"

Agents = tuple[int, ...]
"""Process ids, the client's agent first; one alone serves both ends. Their descendants count as theirs."""


class Design(Protocol):
    """One product as a pair of agents, or as one for both. Constructed once per bench, started once per measurement."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def missing(self) -> str:
        """Why it cannot run here, or an empty string."""
        ...

    def start(self, lab: Lab) -> Agents:
        """Starts the agents, logs named `a` and `b`; BenchError when one does not come up."""
        ...


def wait_listening(lab: Lab, client: int, server: int) -> Agents:
    """Returns when the client's agent takes captured connections and the server's takes tunnels."""
    lab.wait_listening("c", OUTBOUND_PORT, client, "a")
    lab.wait_listening("s", HBONE_PORT, server, "b")
    return client, server
