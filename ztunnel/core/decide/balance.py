"""Which endpoint of a service takes a connection, at which port and address.

Randomness is an argument: `roll` is uniform in [0, 1) and the same roll always gives the same choice. Who asks,
and what lies between (waypoints, tunnels), is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from ztunnel.core.decide.view import View
from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Refusal
from ztunnel.core.model.service import BalanceMode, Endpoint, IpFamilies, Scope, Service
from ztunnel.core.model.workload import Workload


class Choice(msgspec.Struct, frozen=True):
    """The chosen endpoint and its target port."""

    workload: Workload
    port: int
    why: str
    certain: bool = True
    """Whether every roll chooses it."""


def choose(
    view: View, service: Service, port: int, *, source: Workload, roll: float, as_waypoint: bool = False
) -> Choice | Refusal:
    """The endpoint of `service` that takes this connection to the service's `port`.

    Locality preferences narrow the candidates, capacities weigh the draw. `as_waypoint` resolves a waypoint's own
    service: it need not list the port when the waypoint has an application tunnel.
    """
    candidates: list[tuple[Workload, int]] = []
    endpoints = view.endpoints(service)
    for endpoint in endpoints.values():
        workload = view.workload(endpoint.workload_uid)
        if workload is None or not _reachable(workload, source):
            continue
        target = _target_port(service, endpoint, workload, port, as_waypoint)
        if target:
            candidates.append((workload, target))
    if not candidates:
        return _no_upstream(service, _why_none(service, port, len(endpoints), as_waypoint))
    if service.load_balancer.mode in (BalanceMode.STRICT, BalanceMode.FAILOVER):
        candidates = _nearest(service, source, candidates)
        if not candidates:
            wanted = ", ".join(scope.value for scope in service.load_balancer.routing_preferences)
            return _no_upstream(service, f"no endpoint shares the source's {wanted}")
    drawn = draw([workload.capacity for workload, _ in candidates], roll)
    if drawn is None:
        return _no_upstream(service, "every endpoint has capacity 0")
    workload, target = candidates[drawn[0]]
    why = f"endpoint {workload.name} of {len(candidates)}"
    return Choice(workload, target, why, certain=len(candidates) == 1)


def draw(weights: Sequence[int], roll: float) -> tuple[int, float] | None:
    """The index that `roll` hits, each in proportion to its weight, and what is left of the roll.

    The rest is again uniform in [0, 1), so that one roll serves several draws in a row. None when no weight is
    above 0.
    """
    point = roll * sum(weights)
    last = None
    for index, weight in enumerate(weights):
        if weight <= 0:
            continue
        if point < weight:
            return index, point / weight
        point -= weight
        last = index
    return None if last is None else (last, 0.0)


def settle(
    workload: Workload, service: Service | None, port: int, *, source: Workload, wanted_ip: str
) -> Address | Refusal:
    """The address to reach `workload` at: `wanted_ip` if it is the workload's own, else one of the same family.

    `service` limits the families. Refuses workloads that need a network gateway or a DNS look-up.
    """
    if workload.network != source.network:
        return _refuse(
            f"{_name(workload)} is on network {workload.network!r}, the source on {source.network!r}: "
            "connections across networks are not supported yet"
        )
    if wanted_ip in workload.workload_ips:
        return Address(wanted_ip, port)
    ips = [ip for ip in workload.workload_ips if _family_allowed(ip, service)]
    if ips:
        v6 = ":" in wanted_ip
        return Address(next((ip for ip in ips if (":" in ip) == v6), ips[0]), port)
    if workload.hostname:
        return _refuse(
            f"{_name(workload)} has only the host name {workload.hostname}: resolving it is not supported yet"
        )
    return _refuse(f"{_name(workload)} has no address that its service allows")


def _reachable(workload: Workload, source: Workload) -> bool:
    """It has an address, or is on another network behind a gateway."""
    if workload.workload_ips or workload.hostname:
        return True
    return workload.network != source.network and workload.network_gateway is not None


def _target_port(service: Service, endpoint: Endpoint, workload: Workload, port: int, as_waypoint: bool) -> int:
    """The endpoint's own mapping, else the service's, else (waypoints) the port itself; 0 when there is none."""
    declared = service.ports.get(port)
    tunnel = workload.application_tunnel if as_waypoint else None
    if declared is None and tunnel is None:
        return 0
    return endpoint.ports.get(port) or declared or (port if tunnel is not None and tunnel.port else 0)


_SCOPES: dict[Scope, Callable[[Workload], str]] = {
    Scope.REGION: lambda workload: workload.locality.region,
    Scope.ZONE: lambda workload: workload.locality.zone,
    Scope.SUBZONE: lambda workload: workload.locality.subzone,
    Scope.NODE: lambda workload: workload.node,
    Scope.CLUSTER: lambda workload: workload.cluster_id,
    Scope.NETWORK: lambda workload: workload.network,
}


def _nearest(service: Service, source: Workload, candidates: list[tuple[Workload, int]]) -> list[tuple[Workload, int]]:
    """STRICT: those that match every preference. FAILOVER: those of the highest rank present."""
    preferences = service.load_balancer.routing_preferences
    ranked = [(_rank(preferences, source, candidate[0]), candidate) for candidate in candidates]
    if service.load_balancer.mode is BalanceMode.STRICT:
        needed = _rank(preferences, source, source)
    else:
        needed = max(rank for rank, _ in ranked)
    return [candidate for rank, candidate in ranked if rank == needed]


def _rank(preferences: Sequence[Scope], source: Workload, workload: Workload) -> int:
    """The number of leading preferences that match; empty equals empty.

    NETWORK in first place outweighs all others together, and its mismatch does not end the count: among remote
    endpoints the nearer ones still win.
    """
    rank = 0
    for position, scope in enumerate(preferences):
        matches = _SCOPES[scope](source) == _SCOPES[scope](workload)
        if position == 0 and scope is Scope.NETWORK:
            rank += len(preferences) if matches else 0
        elif matches:
            rank += 1
        else:
            break
    return rank


def _family_allowed(ip: str, service: Service | None) -> bool:
    families = service.ip_families if service else IpFamilies.AUTOMATIC
    if families is IpFamilies.IPV4_ONLY:
        return ":" not in ip
    return families is not IpFamilies.IPV6_ONLY or ":" in ip


def _why_none(service: Service, port: int, endpoints: int, as_waypoint: bool) -> str:
    if port not in service.ports and not as_waypoint:
        return f"the service has no port {port}"
    if not endpoints:
        return "it has no healthy endpoints"
    return f"none of its {endpoints} endpoints has an address and a target for port {port}"


def _name(workload: Workload) -> str:
    return f"workload {workload.namespace}/{workload.name}"


def _no_upstream(service: Service, reason: str) -> Refusal:
    return _refuse(f"no healthy upstream for {service.namespace}/{service.name}: {reason}")


def _refuse(why: str) -> Refusal:
    return Refusal("CONNECT", 503, why)
