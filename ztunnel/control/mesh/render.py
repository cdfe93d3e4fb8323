"""Workloads, services and policies in the shapes of ztunnel's config_dump, which istioctl and Kiali read.

Pure. Keys are camelCase, network addresses `network/ip`, port maps have text keys as JSON wants, and what is empty
by default is left out where ztunnel leaves it out (reference: istio/ztunnel src/state/{workload,service}.rs, rbac.rs).
Lists are made lazily, so that whoever writes a large dump can let others run in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from ztunnel.control.mesh.decode import camel
from ztunnel.core.model.policy import MatchKind, Policy, ServiceAccountMatch, StringMatch
from ztunnel.core.model.service import CidrVip, Endpoint, HealthPolicy, IpFamilies, LoadBalancer, Service
from ztunnel.core.model.workload import GatewayAddress, Health, Locality, Workload

Shape = dict[str, Any]
Endpoints = dict[str, dict[str, Endpoint]]
"""`namespace/hostname` to workload uid to endpoint."""


def workloads(found: Iterable[Workload]) -> Iterator[Shape]:
    """Sorted, as ztunnel sorts them; so are the two below."""
    for each in sorted(found, key=lambda w: w.uid):
        yield workload(each)


def services(found: Iterable[Service], behind: Endpoints) -> Iterator[Shape]:
    for each in sorted(found, key=lambda s: (s.hostname, s.namespace)):
        yield service(each, _shown(each, behind.get(str(each.key), {})))


def policies(found: Iterable[Policy]) -> Iterator[Shape]:
    for each in sorted(found, key=lambda p: p.key):
        yield policy(each)


def staged(known: Iterable[Service], behind: Endpoints) -> Iterator[tuple[str, Shape]]:
    """`stagedServices`: the endpoints of services that are not known (yet)."""
    for key in sorted(behind.keys() - {str(s.key) for s in known}):
        yield key, {uid: endpoint(e) for uid, e in sorted(behind[key].items())}


def static(found: Iterable[Workload], known: Iterable[Service], rules: Iterable[Policy]) -> Shape:
    """`staticConfig`: the local file in its own order, as lazy lists; workloads keep their port maps here."""
    return {
        "workloads": (
            workload(w) | {"services": {key: _ports(ports) for key, ports in w.services.items()}} for w in found
        ),
        "policies": (policy(p) for p in rules),
        "services": (service(s, {}) for s in known),
    }


def add_endpoints(behind: Endpoints, found: Iterable[Workload]) -> None:
    """Note which of these workloads back which services, healthy or not; the workloads may come in pieces."""
    for w in found:
        for key, ports in w.services.items():
            behind.setdefault(key, {})[w.uid] = Endpoint(w.uid, ports, w.status)


def workload(w: Workload) -> Shape:
    always: Shape = {
        "workloadIps": list(w.workload_ips),
        "protocol": w.protocol.value,
        "networkMode": w.network_mode.value,
        "name": w.name,
        "namespace": w.namespace,
        "status": w.status.value,
        "clusterId": w.cluster_id,
        "capacity": w.capacity,
    }
    return always | _unless_empty(
        waypoint=_gateway(w.waypoint),
        networkGateway=_gateway(w.network_gateway),
        uid=w.uid,
        trustDomain=w.trust_domain,
        serviceAccount=w.service_account,
        network=w.network,
        workloadName=w.workload_name,
        workloadType=w.workload_type,
        canonicalName=w.canonical_name,
        canonicalRevision=w.canonical_revision,
        hostname=w.hostname,
        node=w.node,
        nativeTunnel=w.native_tunnel,
        applicationTunnel=_tunnel(w),
        authorizationPolicies=list(w.authorization_policies),
        locality=msgspec.structs.asdict(w.locality) if w.locality != Locality() else None,
        services=list(w.services),
    )


def service(s: Service, behind: Mapping[str, Endpoint]) -> Shape:
    always: Shape = {
        "name": s.name,
        "namespace": s.namespace,
        "hostname": s.hostname,
        "vips": [str(vip) for vip in s.vips],
        "ports": _ports(s.ports),
        "endpoints": {uid: endpoint(e) for uid, e in sorted(behind.items())},
        "subjectAltNames": list(s.subject_alt_names),
        "canonical": s.canonical,
        "visibility": s.visibility.value,
    }
    return always | _unless_empty(
        cidrVips=[_cidr(vip) for vip in s.cidr_vips],
        waypoint=_gateway(s.waypoint),
        weightedWaypoints=[{"destination": _gateway(w.destination), "weight": w.weight} for w in s.weighted_waypoints],
        loadBalancer=_load_balancer(s.load_balancer),
        ipFamilies=s.ip_families.value if s.ip_families is not IpFamilies.AUTOMATIC else None,
    )


def endpoint(e: Endpoint) -> Shape:
    return {"workloadUid": e.workload_uid, "port": _ports(e.ports), "status": e.status.value}


def policy(p: Policy) -> Shape:
    return {
        "name": p.name,
        "namespace": p.namespace,
        "scope": p.scope.value,
        "action": p.action.value,
        "rules": [[[_match(match) for match in clause] for clause in rule] for rule in p.rules],
        "dryRun": p.dry_run,
    }


def _match(match: msgspec.Struct) -> Shape:
    return {
        camel(field): [_operand(value) for value in values]
        for field, values in msgspec.structs.asdict(match).items()
        if values
    }


def _operand(value: StringMatch | ServiceAccountMatch | str | int) -> object:
    if isinstance(value, StringMatch):
        return {value.kind.value: [] if value.kind is MatchKind.PRESENCE else value.value}
    if isinstance(value, ServiceAccountMatch):
        return {"namespace": value.namespace, "serviceAccount": value.service_account}
    return value


def _shown(s: Service, behind: Mapping[str, Endpoint]) -> Mapping[str, Endpoint]:
    """The endpoints that connections may be sent to."""
    if s.load_balancer.health_policy is HealthPolicy.ALLOW_ALL:
        return behind
    return {uid: e for uid, e in behind.items() if e.status is Health.HEALTHY}


def _unless_empty(**values: object) -> Shape:
    return {key: value for key, value in values.items() if value}


def _ports(ports: Mapping[int, int]) -> dict[str, int]:
    return {str(port): target for port, target in sorted(ports.items())}


def _gateway(gateway: GatewayAddress | None) -> Shape | None:
    if gateway is None:
        return None
    return {"destination": str(gateway.destination), "hboneMtlsPort": gateway.hbone_mtls_port}


def _tunnel(w: Workload) -> Shape | None:
    tunnel = w.application_tunnel
    return None if tunnel is None else {"protocol": tunnel.protocol.value, "port": tunnel.port or None}


def _cidr(vip: CidrVip) -> str:
    return f"{vip.network}/{vip.ip}/{vip.length}"


def _load_balancer(balancer: LoadBalancer) -> Shape | None:
    if balancer == LoadBalancer():
        return None
    return {
        "routingPreferences": [scope.value for scope in balancer.routing_preferences],
        "mode": balancer.mode.value,
        "healthPolicy": balancer.health_policy.value,
    }
