"""Where a captured outbound connection goes: to a waypoint, to an endpoint in a tunnel or plainly, or straight on.

The decision in order: a loop to ourselves is refused; a service's waypoint takes its traffic; else an endpoint of
the service, or the workload with that address; a workload's waypoint takes traffic that named the workload; what
nobody knows passes straight through. A waypoint is never sent to itself.
"""

from __future__ import annotations

from ztunnel.core.decide import balance, gateway
from ztunnel.core.decide.view import View
from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Refusal, Route, RouteKind
from ztunnel.core.model.service import BalanceMode, Service
from ztunnel.core.model.workload import GatewayAddress, Protocol, Workload


def route(
    view: View,
    *,
    source: Workload,
    target: Address,
    network: str,
    roll: float,
    illegal_ports: frozenset[int],
    hbone_port: int = 15008,
) -> Route | Refusal:
    """The route of a connection from `source` to the original destination `target`.

    `network` is the agent's own, `roll` uniform in [0, 1), `illegal_ports` our listeners in the pod, `hbone_port`
    where peers of this kind accept tunnels.
    """
    if _is_own_listener(source, target, illegal_ports):
        return _refuse_loop(target)
    addressed = view.workload_at(network, target.ip)
    service = view.service_at(network, target.ip, source.namespace)
    if service is not None and addressed is None:
        waypoint, roll, certain = _service_waypoint(view, service, source, roll)
        if waypoint is not None:
            what = f"service {_name(service)}"
            return _through(view, waypoint, source, target, service, roll, what, certain=certain)

    if service is not None:
        if service.load_balancer.mode is BalanceMode.PASSTHROUGH:
            return _straight(target, addressed, service, f"service {_name(service)} asks for passthrough")
        choice = balance.choose(view, service, target.port, source=source, roll=roll)
        if isinstance(choice, Refusal):
            return choice
        workload, port, certain = choice.workload, choice.port, choice.certain
        what = f"service {_name(service)}: {choice.why}"
    elif addressed is not None:
        workload, port, certain = addressed, target.port, True
        what = f"workload {_name(addressed)}"
    else:
        return _straight(target, None, None, "unknown destination, passed through")

    address = balance.settle(workload, service, port, source=source, wanted_ip=target.ip)
    if isinstance(address, Refusal):
        return address
    if addressed is not None and workload.waypoint and not gateway.has_instance(view, workload.waypoint, source):
        return _through(view, workload.waypoint, source, target, service, roll, what, certain=certain)
    if _is_own_listener(source, address, illegal_ports):
        return _refuse_loop(address)
    return _direct(workload, service, address, hbone_port, what, certain=certain)


def _service_waypoint(
    view: View, service: Service, source: Workload, roll: float
) -> tuple[GatewayAddress | None, float, bool]:
    """The waypoint that takes this connection, if any, the rest of the roll, and whether there was no other.

    None for the waypoint itself.
    """
    weighted = service.weighted_waypoints
    drawn = balance.draw([each.weight for each in weighted], roll)
    if drawn is not None:
        index, roll = drawn
        waypoints = [each.destination for each in weighted]
        chosen: GatewayAddress | None = waypoints[index]
    else:
        chosen = service.waypoint
        waypoints = [chosen] if chosen else []
    if any(gateway.has_instance(view, each, source) for each in waypoints):
        return None, roll, False
    return chosen, roll, len(waypoints) == 1


def _through(
    view: View,
    waypoint: GatewayAddress,
    source: Workload,
    target: Address,
    service: Service | None,
    roll: float,
    what: str,
    *,
    certain: bool,
) -> Route | Refusal:
    """In a tunnel to the waypoint, which sees the original destination as the authority."""
    instance = gateway.resolve(view, waypoint, source=source, caller_ip=target.ip, roll=roll)
    if isinstance(instance, Refusal):
        return instance
    return Route(
        kind=RouteKind.HBONE,
        next_hop=instance.address,
        authority=str(target),
        target=target,
        identities=instance.identities,
        workload=instance.workload,
        service=service,
        why=f"{what} through waypoint {_name(instance.workload)}, HBONE",
        certain=certain and instance.certain,
    )


def _direct(
    workload: Workload, service: Service | None, address: Address, hbone_port: int, what: str, *, certain: bool
) -> Route:
    """To the workload itself, by the protocol it speaks."""
    if workload.protocol is Protocol.HBONE:
        return Route(
            kind=RouteKind.HBONE,
            next_hop=Address(address.ip, hbone_port),
            authority=str(address),
            target=address,
            identities=gateway.expected_identities(service, workload),
            workload=workload,
            service=service,
            why=f"{what}, HBONE",
            certain=certain,
        )
    return Route(
        kind=RouteKind.TCP,
        next_hop=address,
        target=address,
        workload=workload,
        service=service,
        why=f"{what}, plain TCP",
        certain=certain,
    )


def _straight(target: Address, workload: Workload | None, service: Service | None, why: str) -> Route:
    return Route(
        kind=RouteKind.PASSTHROUGH, next_hop=target, target=target, workload=workload, service=service, why=why
    )


def _is_own_listener(source: Workload, target: Address, illegal_ports: frozenset[int]) -> bool:
    return target.port in illegal_ports and (target.is_loopback or target.ip in source.workload_ips)


def _refuse_loop(target: Address) -> Refusal:
    return Refusal("CONNECT", 503, f"loop: {target} is this proxy's own listener")


def _name(thing: Workload | Service) -> str:
    return f"{thing.namespace}/{thing.name}"
