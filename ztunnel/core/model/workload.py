"""Workloads: something with an identity that connections come from and go to.

Field names follow ztunnel's config_dump and local file (camelCase there; reference: istio/ztunnel
src/state/workload.rs and pkg/workloadapi/workload.proto).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from ztunnel.core.model.address import NamespacedHostname, NetworkAddress
from ztunnel.core.model.identity import DEFAULT_SERVICE_ACCOUNT, DEFAULT_TRUST_DOMAIN, Identity


class Protocol(Enum):
    """How the workload is reached: plain TCP, or HBONE on port 15008."""

    TCP = "TCP"
    HBONE = "HBONE"


class NetworkMode(Enum):
    STANDARD = "Standard"
    HOST_NETWORK = "HostNetwork"


class Health(Enum):
    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class TunnelProtocol(Enum):
    NONE = "NONE"
    PROXY = "PROXY"


class Locality(msgspec.Struct, frozen=True, gc=False):
    region: str = ""
    zone: str = ""
    subzone: str = ""


class ApplicationTunnel(msgspec.Struct, frozen=True, gc=False):
    """How an application that is itself a proxy wants its connections; port 0 keeps the port."""

    protocol: TunnelProtocol = TunnelProtocol.NONE
    port: int = 0


if TYPE_CHECKING:
    Destination = NetworkAddress | NamespacedHostname
else:
    Destination = tuple[str, str]  # what decoders see: they cannot tell one pair from the other


class GatewayAddress(msgspec.Struct, frozen=True, gc=False):
    """Where a waypoint or network gateway is: by address or by service host name."""

    destination: Destination
    by_hostname: bool
    hbone_mtls_port: int = 15008

    def __post_init__(self) -> None:
        if type(self.destination) is tuple:  # decoded
            kind = NamespacedHostname if self.by_hostname else NetworkAddress
            msgspec.structs.force_setattr(self, "destination", kind(*self.destination))


class Workload(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    uid: str
    name: str
    namespace: str = ""
    workload_ips: tuple[str, ...] = ()
    """Canonical addresses."""
    hostname: str = ""
    network: str = ""
    protocol: Protocol = Protocol.TCP
    network_mode: NetworkMode = NetworkMode.STANDARD
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    service_account: str = DEFAULT_SERVICE_ACCOUNT
    node: str = ""
    workload_name: str = ""
    workload_type: str = "pod"
    """deployment, cronjob, pod or job."""
    canonical_name: str = ""
    canonical_revision: str = ""
    native_tunnel: bool = False
    application_tunnel: ApplicationTunnel | None = None
    waypoint: GatewayAddress | None = None
    network_gateway: GatewayAddress | None = None
    authorization_policies: tuple[str, ...] = ()
    """`namespace/name` of the selector policies that apply."""
    status: Health = Health.HEALTHY
    cluster_id: str = "Kubernetes"
    locality: Locality = Locality()
    capacity: int = 1
    """Weight among a service's endpoints."""
    services: Mapping[str, Mapping[int, int]] = {}
    """`namespace/hostname` of each service it backs, to {service port: target port}."""

    @property
    def identity(self) -> Identity:
        return Identity(self.trust_domain, self.namespace, self.service_account)
