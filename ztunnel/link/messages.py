"""Every message that crosses between the control half and a worker, or between two workers of one agent.

One ordered stream each way. Messages are frozen values; what a message says is complete in itself, so that a
recorded stream can be played into a worker and nothing else is needed. `VERSION` changes when an old peer could
misread a new message.

A file descriptor travels as an int that the receiver owns: in memory it is handed over as it is, over a Unix
socket the channel replaces it (SCM_RIGHTS).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec

from ztunnel.core.model.capture import CaptureMode as CaptureMode
from ztunnel.core.model.flow import Edge, Flow
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.policy import Policy
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import Workload

VERSION = 1


class Priority(Enum):
    """How urgent a certificate is."""

    NOW = 0
    """A connection waits for it."""
    WARMUP = 1
    """A pod was added; no connection waits yet."""


# ---- down: control to worker ----


class PodAdded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Open the listeners of a pod. Answered by PodReady or PodFailed; twice the same is once."""

    uid: str
    """The enroller's or CNI's id, not the workload's uid."""
    name: str
    namespace: str
    service_account: str
    capture: CaptureMode
    netns_fd: int | None = None
    """The pod's network namespace; None is the agent's own."""
    ips: tuple[str, ...] = ()
    """Known addresses of the pod; needed in NODE mode, where the source address names the pod."""
    memo: bytes = b""
    """The control half's own notes. A worker keeps them and gives them to the next control half (Serving)."""


class PodRemoved(msgspec.Struct, frozen=True, tag=True):
    """Close listeners and connections of the pod at once. Answered by PodGone."""

    uid: str


class StateSlice(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A small part of a change of the mesh; applied before the next slice, upserts before removals."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Policy, ...] = ()
    removed_workloads: tuple[str, ...] = ()
    """Workload uids."""
    removed_services: tuple[str, ...] = ()
    """`namespace/hostname`."""
    removed_policies: tuple[str, ...] = ()
    """`namespace/name`."""
    last: bool = True
    """False while more slices of the same change follow; policies are re-evaluated after the last."""


class Resync(msgspec.Struct, frozen=True, tag=True):
    """The slices from here to StateSynced are the whole state: what they do not contain is gone then, not before."""


class StateSynced(msgspec.Struct, frozen=True, tag=True):
    """A full state has been sent: listeners may accept."""


class CertificateIssued(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A certificate for an identity; replaces the earlier one for new handshakes, open ones are untouched."""

    identity: Identity
    chain_pem: bytes
    """Leaf first, then intermediates."""
    key_pem: bytes
    roots_pem: bytes
    not_before: float
    not_after: float
    """Seconds since the epoch."""

    def __repr__(self) -> str:
        return f"CertificateIssued({self.identity}, key redacted)"


class CertificateFailed(msgspec.Struct, frozen=True, tag=True):
    identity: Identity
    why: str


class CertificateForgotten(msgspec.Struct, frozen=True, tag=True):
    identity: Identity


class LogFilter(msgspec.Struct, frozen=True, tag=True):
    """A RUST_LOG style filter that is now in force."""

    spec: str


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Stop accepting, GOAWAY, close what is left after `deadline` seconds. Answered by Drained."""

    deadline: float


class Question(Enum):
    CONNECTIONS = "connections"
    """Answer: list of OpenConnection."""
    COUNTERS = "counters"
    """Answer: Counters with the byte counts of open connections brought up to date."""
    STATUS = "status"
    """Answer: dict of numbers about the worker itself (loop, pool, tunnels)."""


class Ask(msgspec.Struct, frozen=True, tag=True):
    id: int
    question: Question


# ---- up: worker to control ----


class Serving(msgspec.Struct, frozen=True, tag=True):
    """The first message of a worker on every link: what it serves already, without descriptors.

    A worker outlives the control half. A new one learns from it which pods there are and sends the state (Resync).
    """

    pods: tuple[PodAdded, ...]


class PodReady(msgspec.Struct, frozen=True, tag=True):
    """All listeners of the pod are bound."""

    uid: str


class PodFailed(msgspec.Struct, frozen=True, tag=True):
    uid: str
    why: str


class PodGone(msgspec.Struct, frozen=True, tag=True):
    uid: str


class CertificateWanted(msgspec.Struct, frozen=True, tag=True):
    identity: Identity
    priority: Priority


class EdgeDefined(msgspec.Struct, frozen=True, tag=True):
    """Sent before the first message that uses the number; numbers are the worker's own and never reused."""

    number: int
    edge: Edge


class Counters(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What changed since the last Counters: per edge, connections opened and bytes of connections still open.

    The bytes that a Flow carries are totals of the connection; the channel's receiver subtracts what earlier
    Counters already told of it with the help of `open_bytes`.
    """

    opened: Mapping[int, int] = {}
    """Edge number to connections opened since."""
    open_bytes: Mapping[int, tuple[int, int]] = {}
    """Edge number to (sent, received) totals of the connections open now."""
    sockets: Mapping[str, int] = {}
    """Accepted sockets open now, by direction value."""


class Flows(msgspec.Struct, frozen=True, tag=True):
    """Finished connections, oldest first."""

    flows: tuple[Flow, ...]


class OpenConnection(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `show connections`."""

    id: int
    pod: str
    """Uid of the pod whose listener took it."""
    edge: int
    direction: str
    protocol: str
    """HBONE or TCP."""
    source: str
    original_destination: str
    actual_destination: str
    opened: float
    bytes_sent: int
    bytes_received: int
    why: str


class Answer(msgspec.Struct, frozen=True, tag=True):
    id: int
    body: Any


class Drained(msgspec.Struct, frozen=True, tag=True):
    """Nothing is left open; `cut` connections were closed at the deadline."""

    cut: int


# ---- sideways: between two workers of one agent, whose pods may talk to each other ----


class PodAddresses(msgspec.Struct, frozen=True, tag=True):
    """All addresses of the sender's pods; the latest message counts."""

    ips: tuple[str, ...]


class JoinOffered(msgspec.Struct, frozen=True, tag=True):
    """The sender serves the request that carries `token`; here is its application's socket. See JoinAnswered."""

    id: int
    """The sender's own number; messages of both sides use it."""
    token: str
    sock_fd: int | None


class JoinAnswered(msgspec.Struct, frozen=True, tag=True):
    """Whether the sender carries the bytes from now on, from its application's socket to the one that was offered."""

    id: int
    taken: bool


class JoinCut(msgspec.Struct, frozen=True, tag=True):
    """The offered end's leash is over: reset both applications. Answered by JoinEnded."""

    id: int
    why: str
    flag: str


class JoinEnded(msgspec.Struct, frozen=True, tag=True):
    """The last word on a join that was taken: its byte counts, and its error unless both directions ended with FIN."""

    id: int
    bytes_up: int
    """From the client's application to the server's."""
    bytes_down: int
    error: str
    flag: str


class JoinCountsWanted(msgspec.Struct, frozen=True, tag=True):
    """Answered by JoinCounts."""


class JoinCounts(msgspec.Struct, frozen=True, tag=True):
    """Bytes (up, down) so far of every open join that the sender carries for the receiver, by id."""

    counts: Mapping[int, tuple[int, int]]


Down = (
    PodAdded
    | PodRemoved
    | StateSlice
    | Resync
    | StateSynced
    | CertificateIssued
    | CertificateFailed
    | CertificateForgotten
    | LogFilter
    | Drain
    | Ask
)
Up = Serving | PodReady | PodFailed | PodGone | CertificateWanted | EdgeDefined | Counters | Flows | Answer | Drained
Sideways = PodAddresses | JoinOffered | JoinAnswered | JoinCut | JoinEnded | JoinCountsWanted | JoinCounts
