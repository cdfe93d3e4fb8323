"""Where a waypoint is, and whether a workload is one of its instances.

A waypoint is named by address or by host name, and is a service or a single workload. Both directions ask here:
outbound to reach it and not to send a waypoint to itself, inbound to know whether a tunnel for somebody else is
rightly ours.
"""

from __future__ import annotations

import msgspec

from ztunnel.core.decide import balance
from ztunnel.core.decide.view import View
from ztunnel.core.model.address import Address, NamespacedHostname
from ztunnel.core.model.connection import Refusal
from ztunnel.core.model.identity import Identity, parse_identity
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import GatewayAddress, Workload


class Gateway(msgspec.Struct, frozen=True):
    """A resolved instance: who it is, where it listens, and whom its certificate may name."""

    workload: Workload
    address: Address
    identities: tuple[Identity, ...]
    certain: bool = True
    """Whether every roll gives this instance."""


def resolve(view: View, gateway: GatewayAddress, *, source: Workload, caller_ip: str, roll: float) -> Gateway | Refusal:
    """One instance of the gateway. Its IP family follows the gateway's own address, else `caller_ip`."""
    destination = gateway.destination
    service, workload = _find(view, gateway, source.namespace)
    wanted_ip = caller_ip if isinstance(destination, NamespacedHostname) else destination.ip
    port = gateway.hbone_mtls_port
    certain = True
    if service is not None:
        choice = balance.choose(view, service, port, source=source, roll=roll, as_waypoint=True)
        if isinstance(choice, Refusal):
            return _unreachable(gateway, choice)
        workload, port, certain = choice.workload, choice.port, choice.certain
    if workload is None:
        return Refusal("CONNECT", 503, f"waypoint {destination} is not known")
    address = balance.settle(workload, service, port, source=source, wanted_ip=wanted_ip)
    if isinstance(address, Refusal):
        return _unreachable(gateway, address)
    return Gateway(workload, address, expected_identities(service, workload), certain)


def has_instance(view: View, gateway: GatewayAddress, workload: Workload) -> bool:
    """Is `workload` (one of) the gateway? Health does not matter here."""
    destination = gateway.destination
    if isinstance(destination, NamespacedHostname) and str(destination) in workload.services:
        return True
    service, instance = _find(view, gateway, workload.namespace)
    if service is not None:
        return str(service.key) in workload.services
    return instance is not None and instance.uid == workload.uid


def expected_identities(service: Service | None, workload: Workload) -> tuple[Identity, ...]:
    """Whom a certificate may name: the service's SANs and the workload itself. SANs of another form are skipped."""
    identities = []
    for name in service.subject_alt_names if service else ():
        try:
            identities.append(parse_identity(name))
        except ValueError:
            continue
    if workload.identity not in identities:
        identities.append(workload.identity)
    return tuple(identities)


def _find(view: View, gateway: GatewayAddress, client_namespace: str) -> tuple[Service | None, Workload | None]:
    destination = gateway.destination
    if isinstance(destination, NamespacedHostname):
        service = view.service(destination.namespace, destination.hostname)
        return service, None if service else view.workload_named(destination.namespace, destination.hostname)
    service = view.service_at(destination.network, destination.ip, client_namespace)
    return service, None if service else view.workload_at(destination.network, destination.ip)


def _unreachable(gateway: GatewayAddress, cause: Refusal) -> Refusal:
    return Refusal(cause.flag, cause.status, f"waypoint {gateway.destination}: {cause.why}")
