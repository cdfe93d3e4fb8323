"""All that the HTTP servers may know of the agent and do to it. Whoever composes the agent fills it in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from ztunnel.config.settings import Settings
from ztunnel.core.model.policy import Policy
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import Workload
from ztunnel.link.messages import OpenConnection


class MeshView(msgspec.Struct, frozen=True, kw_only=True):
    """The mesh at one moment."""

    workloads: Sequence[Workload] = ()
    services: Sequence[Service] = ()
    policies: Sequence[Policy] = ()


class PodView(msgspec.Struct, frozen=True, kw_only=True):
    """A pod that the agent serves."""

    uid: str
    name: str
    namespace: str
    service_account: str
    up: bool
    """False while its listeners could not be opened yet."""


class AdminSource(msgspec.Struct, frozen=True, kw_only=True):
    """Asynchronous ones may ask the workers and must answer in bounded time."""

    settings: Settings
    version: str
    crypto_provider: str
    """The TLS library and its version."""
    proxy_args: str = ""
    """The agent's command line, without the program."""

    mesh: Callable[[], Awaitable[MeshView]]
    static: Callable[[], Awaitable[MeshView]]
    """What the local file says, read anew."""
    certificates: Callable[[], Sequence[Mapping[str, Any]]]
    """Entries as config_dump has them; never a key."""
    pods: Callable[[], Sequence[PodView]]
    connections: Callable[[], Awaitable[Sequence[OpenConnection]]]
    """Open ones, of every worker."""

    metrics: Callable[[bool], Awaitable[bytes]]
    """Every sample; True asks for OpenMetrics, False for the older text."""
    pending: Callable[[], Sequence[str]]
    """What readiness still waits for; nothing: ready."""

    log_filter: Callable[[], str]
    change_log_filter: Callable[[str, bool], str]
    """Add directives, if True after a reset to those of the start; gives the new filter or raises ValueError."""
    quit: Callable[[], None]
    """Begin an orderly shutdown; returns at once."""
