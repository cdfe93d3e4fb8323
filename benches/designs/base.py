"""What a compared design must be able to do."""

from __future__ import annotations

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
        """Starts both agents, logs named `a` and `b`; BenchError when one does not come up."""
        ...


def wait_listening(lab: Lab, pair: Pair) -> Pair:
    """Returns when agent A takes captured connections and agent B takes tunnels."""
    lab.wait_listening("c", OUTBOUND_PORT, pair.client, "a")
    lab.wait_listening("s", HBONE_PORT, pair.server, "b")
    return pair
