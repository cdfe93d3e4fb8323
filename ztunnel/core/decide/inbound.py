"""Where an inbound connection is delivered inside its pod, and which service it is counted for.

A tunnel names its destination in the CONNECT authority. It must be meant for this pod: the pod's own address, or
something whose waypoint this pod is. Whether the peer may do so is authorization's business, after this.
"""

from __future__ import annotations

from ztunnel.core.decide import gateway
from ztunnel.core.decide.view import View
from ztunnel.core.model.address import Address, HostPort
from ztunnel.core.model.connection import Delivery, Refusal
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import TunnelProtocol, Workload


def deliver(
    view: View,
    *,
    own: Workload,
    local: Address,
    target: Address | HostPort,
    network: str,
    illegal_ports: frozenset[int],
    forwarded_host: str = "",
) -> Delivery | Refusal:
    """The delivery of a CONNECT to `target` on a tunnel whose peer connected to `local`.

    `forwarded_host` is the `host` of the request's Forwarded header; it only chooses the service for telemetry.
    Refusals carry 400 when the request is wrong and 503 when it cannot be fulfilled.
    """
    host, port = target
    service = None
    if isinstance(target, Address):
        ip = host if host in own.workload_ips else local.ip
        if host != ip and not _is_for_us(view, own, host, network):
            return _refuse(400, f"ip mismatch: {local.ip} != {host}")
    else:
        ip = local.ip
        service = view.service_named(host, own.namespace)
        if service is None:
            return _refuse(503, f"unknown hostname {host}")
        mapped = own.services.get(str(service.key), {}).get(port) or service.ports.get(port, 0)
        if not mapped:
            return _refuse(503, f"service {service.namespace}/{service.name} has no target for port {port}")
        port = mapped

    what = f"CONNECT {target}"
    tunnel = own.application_tunnel
    if tunnel is not None and tunnel.protocol is TunnelProtocol.PROXY:
        return _refuse(503, f"{own.namespace}/{own.name} expects the PROXY protocol, which is not supported yet")
    if tunnel is not None and tunnel.port:
        port, what = tunnel.port, f"{what}, application tunnel"
    destination = Address(ip, port)
    if port in illegal_ports:
        return _refuse(503, f"loop: {destination} is this proxy's own listener")
    if service is None:
        service = attribute(view, own=own, port=port, forwarded_host=forwarded_host)
    return Delivery(target=destination, workload=own, service=service, why=f"{what} to {destination}")


def deliver_plain(
    view: View, *, own: Workload, destination: Address, illegal_ports: frozenset[int]
) -> Delivery | Refusal:
    """The delivery of a captured plaintext connection: where it was going, except to our own listeners."""
    if destination.port in illegal_ports:
        return _refuse(503, f"loop: {destination} is this proxy's own listener")
    service = attribute(view, own=own, port=destination.port)
    return Delivery(target=destination, workload=own, service=service, why=f"plaintext to {destination}")


def attribute(view: View, *, own: Workload, port: int, forwarded_host: str = "") -> Service | None:
    """The service that a connection to `port` of this pod is counted for.

    The one the client says it meant, if this pod backs it; else the first (by name) that maps a port to this one.
    """
    services = []
    for key in sorted(own.services):
        service = view.service(*key.split("/", 1)) if "/" in key else None
        if service is not None:
            if service.hostname == forwarded_host:
                return service
            services.append((service, own.services[key]))
    for service, ports in services:
        targets = (ports.get(number) or declared for number, declared in service.ports.items())
        if port in ports.values() or port in targets:
            return service
    return None


def _is_for_us(view: View, own: Workload, ip: str, network: str) -> bool:
    """A tunnel for another address is ours when we are a tunnel's application, or the waypoint of that address."""
    if own.application_tunnel is not None:
        return True
    workload = view.workload_at(network, ip)
    if workload is not None:
        return workload.waypoint is not None and gateway.has_instance(view, workload.waypoint, own)
    service = view.service_at(network, ip, own.namespace)
    if service is None:
        return False
    waypoints = [weighted.destination for weighted in service.weighted_waypoints]
    if service.waypoint is not None:
        waypoints.append(service.waypoint)
    return any(gateway.has_instance(view, waypoint, own) for waypoint in waypoints)


def _refuse(status: int, why: str) -> Refusal:
    return Refusal("CONNECT", status, why)
