"""Services: a host name and virtual addresses in front of workloads (reference: istio/ztunnel src/state/service.rs)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import msgspec

from ztunnel.core.model.address import NamespacedHostname, NetworkAddress
from ztunnel.core.model.workload import GatewayAddress, Health


class Scope(Enum):
    """What a routing preference compares."""

    REGION = "Region"
    ZONE = "Zone"
    SUBZONE = "Subzone"
    NODE = "Node"
    CLUSTER = "Cluster"
    NETWORK = "Network"


class BalanceMode(Enum):
    STANDARD = "Standard"
    STRICT = "Strict"
    FAILOVER = "Failover"
    PASSTHROUGH = "Passthrough"


class HealthPolicy(Enum):
    ONLY_HEALTHY = "OnlyHealthy"
    ALLOW_ALL = "AllowAll"


class IpFamilies(Enum):
    AUTOMATIC = "Automatic"
    IPV4_ONLY = "IPv4"
    IPV6_ONLY = "IPv6"
    DUAL = "Dual"


class Visibility(Enum):
    PUBLIC = "Public"
    NAMESPACE = "Namespace"


class LoadBalancer(msgspec.Struct, frozen=True, gc=False):
    routing_preferences: tuple[Scope, ...] = ()
    mode: BalanceMode = BalanceMode.STANDARD
    health_policy: HealthPolicy = HealthPolicy.ONLY_HEALTHY


class WeightedWaypoint(msgspec.Struct, frozen=True, gc=False):
    destination: GatewayAddress
    weight: int


class CidrVip(msgspec.Struct, frozen=True, gc=False):
    """A virtual address that is a whole prefix, e.g. of a ServiceEntry."""

    network: str
    ip: str
    length: int


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """A workload behind a service; `ports` maps service port to target port."""

    workload_uid: str
    ports: Mapping[int, int]
    status: Health = Health.HEALTHY


class Service(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Endpoints are not here: they come from workloads and live in the store."""

    name: str
    namespace: str
    hostname: str
    vips: tuple[NetworkAddress, ...] = ()
    cidr_vips: tuple[CidrVip, ...] = ()
    ports: Mapping[int, int] = {}
    """Service port to target port; 0 is a named port that each endpoint maps itself."""
    subject_alt_names: tuple[str, ...] = ()
    waypoint: GatewayAddress | None = None
    weighted_waypoints: tuple[WeightedWaypoint, ...] = ()
    load_balancer: LoadBalancer = LoadBalancer()
    ip_families: IpFamilies = IpFamilies.AUTOMATIC
    canonical: bool = False
    visibility: Visibility = Visibility.PUBLIC

    @property
    def key(self) -> NamespacedHostname:
        return NamespacedHostname(self.namespace, self.hostname)
