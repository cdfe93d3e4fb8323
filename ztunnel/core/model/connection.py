"""A connection as policies and decisions see it, and what was decided about it."""

from __future__ import annotations

from enum import Enum

import msgspec

from ztunnel.core.model.address import Address
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import Workload


class Direction(Enum):
    OUTBOUND = "outbound"
    INBOUND = "inbound"


class Connection(msgspec.Struct, frozen=True):
    """What authorization looks at: who (None without mTLS), from where, to where."""

    identity: Identity | None
    source: Address
    destination: Address


class RouteKind(Enum):
    """How bytes travel to the next hop."""

    HBONE = "hbone"
    TCP = "tcp"
    PASSTHROUGH = "passthrough"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Where an outbound connection goes, and why."""

    kind: RouteKind
    next_hop: Address
    """What the TCP connection is made to."""
    authority: str = ""
    """CONNECT `:authority`; empty unless HBONE."""
    target: Address
    """The actual destination beyond the next hop (`ip:port` of the pod), or the next hop itself."""
    identities: tuple[Identity, ...] = ()
    """Acceptable identities of the next hop; empty unless HBONE."""
    workload: Workload | None = None
    """The next hop's workload, where known."""
    service: Service | None = None
    """The service that was addressed, where known."""
    why: str
    certain: bool = True
    """Whether chance had no part in it: until the mesh changes, the same connection goes the same way."""


class Refusal(msgspec.Struct, frozen=True):
    """A connection that goes nowhere: Istio's response flag, the CONNECT status, and the reason."""

    flag: str
    status: int
    why: str


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """Where an inbound connection is delivered, and why."""

    target: Address
    workload: Workload
    service: Service | None = None
    why: str


class Verdict(msgspec.Struct, frozen=True):
    """An authorization decision: the deciding policy's key ("" if none), and why."""

    allowed: bool
    policy: str
    why: str
    dry_run: tuple[str, ...] = ()
    """What the dry-run policies would have done; a sentence each, for the log."""
