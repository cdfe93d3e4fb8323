"""The mesh in the shapes of ztunnel's config_dump (reference 7.7, 8.5, 12.1), which istioctl reads.

Pure: values in, JSON-ready values out. Every list is made lazily, so that whoever writes a large dump can let others
run in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ztunnel.control.admin.source import MeshView, PodView
from ztunnel.core.model.connection import Direction
from ztunnel.core.model.policy import Match, MatchKind, Policy, StringMatch
from ztunnel.core.model.service import IpFamilies, LoadBalancer, Service
from ztunnel.core.model.workload import GatewayAddress, Locality, Workload
from ztunnel.link.messages import OpenConnection

Found = dict[str, dict[str, dict[str, Any]]]
Endpoints = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""`namespace/hostname` of a service to {workload uid: endpoint}; `Found` while it is being made."""


def workloads(mesh: MeshView) -> Iterator[dict[str, Any]]:
    for workload in sorted(mesh.workloads, key=lambda each: each.uid):
        yield workload_entry(workload)


def services(mesh: MeshView, endpoints: Endpoints) -> Iterator[dict[str, Any]]:
    for service in sorted(mesh.services, key=lambda each: (each.hostname, each.namespace)):
        yield service_entry(service, endpoints.get(str(service.key), {}))


def policies(mesh: MeshView) -> Iterator[dict[str, Any]]:
    for policy in sorted(mesh.policies, key=lambda each: each.key):
        yield policy_entry(policy)


def staged(mesh: MeshView, endpoints: Endpoints) -> dict[str, Any]:
    """Endpoints of services that are not known (yet)."""
    known = {str(service.key) for service in mesh.services}
    return {key: endpoints[key] for key in sorted(endpoints) if key not in known}


def endpoints_of(workloads: Iterable[Workload]) -> Endpoints:
    """What workloads say of the services they back, by service."""
    found: Found = {}
    add_endpoints(found, workloads)
    return found


def add_endpoints(found: Found, workloads: Iterable[Workload]) -> None:
    """As `endpoints_of`, for those who go through the workloads in pieces."""
    for workload in workloads:
        for key, ports in workload.services.items():
            entry = {"workloadUid": workload.uid, "port": _ports(ports), "status": workload.status.value}
            found.setdefault(key, {})[workload.uid] = entry


def workload_entry(workload: Workload) -> dict[str, Any]:
    always = {
        "workloadIps": list(workload.workload_ips),
        "protocol": workload.protocol.value,
        "networkMode": workload.network_mode.value,
        "uid": workload.uid,
        "name": workload.name,
        "namespace": workload.namespace,
        "trustDomain": workload.trust_domain,
        "serviceAccount": workload.service_account,
        "network": workload.network,
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type,
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "hostname": workload.hostname,
        "node": workload.node,
        "status": workload.status.value,
        "clusterId": workload.cluster_id,
        "locality": _locality(workload.locality),
        "capacity": workload.capacity,
    }
    tunnel = workload.application_tunnel
    sometimes = {
        "waypoint": _gateway(workload.waypoint),
        "networkGateway": _gateway(workload.network_gateway),
        "nativeTunnel": workload.native_tunnel,
        "applicationTunnel": {"protocol": tunnel.protocol.value, "port": tunnel.port or None} if tunnel else None,
        "authorizationPolicies": list(workload.authorization_policies),
        "services": {key: _ports(ports) for key, ports in workload.services.items()},
    }
    return always | {key: value for key, value in sometimes.items() if value}


def service_entry(service: Service, endpoints: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": [str(vip) for vip in service.vips],
        "ports": _ports(service.ports),
        "endpoints": dict(sorted(endpoints.items())),
        "subjectAltNames": list(service.subject_alt_names),
        "visibility": service.visibility.value,
    }
    sometimes = {
        "cidrVips": [f"{vip.network}/{vip.ip}/{vip.length}" for vip in service.cidr_vips],
        "waypoint": _gateway(service.waypoint),
        "weightedWaypoints": [
            {"destination": _gateway(each.destination), "weight": each.weight} for each in service.weighted_waypoints
        ],
        "loadBalancer": _load_balancer(service.load_balancer),
        "ipFamilies": None if service.ip_families is IpFamilies.AUTOMATIC else service.ip_families.value,
        "canonical": service.canonical,
    }
    return entry | {key: value for key, value in sometimes.items() if value}


def policy_entry(policy: Policy) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": policy.name,
        "namespace": policy.namespace,
        "scope": policy.scope.value,
        "action": policy.action.value,
        "rules": [[[_match(match) for match in clause] for clause in rule] for rule in policy.rules],
    }
    if policy.dry_run:
        entry["dryRun"] = True
    return entry


def workload_state(pods: Sequence[PodView], connections: Sequence[OpenConnection]) -> dict[str, Any]:
    """`workloadState`: each pod with its open connections; what istioctl does not know of them is ours."""
    state: dict[str, Any] = {
        pod.uid: {
            "state": "Up" if pod.up else "Pending",
            "connections": {"inbound": [], "outbound": []},
            "info": {"name": pod.name, "namespace": pod.namespace, "serviceAccount": pod.service_account},
        }
        for pod in sorted(pods, key=lambda each: each.uid)
    }
    for connection in connections:
        if connection.pod in state:
            side = "outbound" if connection.direction == Direction.OUTBOUND.value else "inbound"
            state[connection.pod]["connections"][side].append(_connection(connection))
    return state


def _connection(connection: OpenConnection) -> dict[str, Any]:
    return {
        "src": connection.source,
        "originalDst": connection.original_destination or None,
        "actualDst": connection.actual_destination,
        "protocol": connection.protocol,
        "id": connection.id,
        "opened": connection.opened,
        "bytesSent": connection.bytes_sent,
        "bytesReceived": connection.bytes_received,
        "why": connection.why,
    }


def _match(match: Match) -> dict[str, Any]:
    strings = {
        "namespaces": match.namespaces,
        "notNamespaces": match.not_namespaces,
        "principals": match.principals,
        "notPrincipals": match.not_principals,
    }
    entry: dict[str, Any] = {key: [_string_match(each) for each in values] for key, values in strings.items()}
    accounts = {"serviceAccounts": match.service_accounts, "notServiceAccounts": match.not_service_accounts}
    for key, names in accounts.items():
        entry[key] = [{"namespace": name.namespace, "serviceAccount": name.service_account} for name in names]
    entry["sourceIps"] = list(match.source_ips)
    entry["notSourceIps"] = list(match.not_source_ips)
    entry["destinationIps"] = list(match.destination_ips)
    entry["notDestinationIps"] = list(match.not_destination_ips)
    entry["destinationPorts"] = list(match.destination_ports)
    entry["notDestinationPorts"] = list(match.not_destination_ports)
    return {key: value for key, value in entry.items() if value}


def _string_match(match: StringMatch) -> dict[str, Any]:
    return {match.kind.value: [] if match.kind is MatchKind.PRESENCE else match.value}


def _gateway(gateway: GatewayAddress | None) -> dict[str, Any] | None:
    if gateway is None:
        return None
    return {"destination": str(gateway.destination), "hboneMtlsPort": gateway.hbone_mtls_port}


def _load_balancer(balancer: LoadBalancer) -> dict[str, Any] | None:
    if balancer == LoadBalancer():
        return None
    return {
        "routingPreferences": [scope.value for scope in balancer.routing_preferences],
        "mode": balancer.mode.value,
        "healthPolicy": balancer.health_policy.value,
    }


def _locality(locality: Locality) -> dict[str, str]:
    parts = {"region": locality.region, "zone": locality.zone, "subzone": locality.subzone}
    return {key: value for key, value in parts.items() if value}


def _ports(ports: Mapping[int, int]) -> dict[str, int]:
    return {str(port): target for port, target in ports.items()}
