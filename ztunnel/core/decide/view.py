"""What decisions may look up in the mesh. The worker's store implements it; tests use small ones of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ztunnel.core.model.policy import Policy
from ztunnel.core.model.service import Endpoint, Service
from ztunnel.core.model.workload import Workload


class View(Protocol):
    """O(1) look-ups; nothing here waits."""

    def workload(self, uid: str) -> Workload | None: ...

    def workload_at(self, network: str, ip: str) -> Workload | None:
        """Never a host-network workload: its address belongs to the node."""

    def workload_named(self, namespace: str, hostname: str) -> Workload | None:
        """The workload with this host name of its own (not a service's), e.g. a waypoint or gateway."""

    def service_at(self, network: str, ip: str, client_namespace: str) -> Service | None:
        """The best service with this virtual address that the client's namespace may see."""

    def service_named(self, hostname: str, client_namespace: str) -> Service | None:
        """The best service with this host name that the client's namespace may see."""

    def service(self, namespace: str, hostname: str) -> Service | None: ...

    def endpoints(self, service: Service) -> Mapping[str, Endpoint]:
        """Workload uid to endpoint; unhealthy ones are absent unless the service allows all."""

    def policies_for(self, workload: Workload) -> tuple[Sequence[Policy], Sequence[str]]:
        """The policies that apply, and the keys of those listed on the workload that are not known."""
