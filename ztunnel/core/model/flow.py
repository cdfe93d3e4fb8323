"""What is left of a connection when it is over: one Flow each, also for those refused before they began.

Access log, metrics, `show`, and `observe` are views of flows. What many flows have in common (who talks to whom,
how) is an Edge, numbered once and referred to, so that a flow stays small.
"""

from __future__ import annotations

import msgspec

from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Direction


class Party(msgspec.Struct, frozen=True):
    """One end of an edge, as metrics and the access log name it; empty text is unknown."""

    name: str = ""
    """The pod's (workload's own) name: `src.workload` in the access log."""
    workload: str = ""
    """The owner's name: `source_workload` in the metrics."""
    namespace: str = ""
    identity: str = ""
    """SPIFFE URI. Source: as authenticated. Destination: of the next hop."""
    canonical_name: str = ""
    canonical_revision: str = ""
    cluster: str = ""
    region: str = ""
    zone: str = ""


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """Who talks to whom through what: the labels of Istio's TCP metrics."""

    direction: Direction
    source: Party
    destination: Party
    service_hostname: str = ""
    service_name: str = ""
    service_namespace: str = ""
    mutual_tls: bool = False


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """One finished (or refused) connection."""

    id: int
    """Unique in this worker; also the id in `show connections`."""
    edge: int
    """Number of the Edge, or -1 for a connection refused before its parties were known (early deny)."""
    direction: Direction
    source: Address
    destination: Address | None
    """Outbound: the next hop; inbound: the address the peer connected to. None when it could not be recovered."""
    hbone_address: str = ""
    """CONNECT authority."""
    started: float
    """Seconds since the epoch."""
    duration: float
    """Seconds."""
    bytes_sent: int = 0
    """Towards the destination (outbound); back to the client (inbound): ztunnel's per-reporter view."""
    bytes_received: int = 0
    flag: str = "-"
    error: str = ""
    """Empty for success."""
    why: str = ""
    """The reason of the decision (route, delivery or refusal)."""
