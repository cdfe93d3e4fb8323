"""A small mesh in few words: what tests of decisions and of the store are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ztunnel.core.model.address import NamespacedHostname, NetworkAddress
from ztunnel.core.model.policy import Action, Match, Policy, PolicyScope
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import GatewayAddress, Protocol, Workload
from ztunnel.link.messages import StateSlice
from ztunnel.worker.state.store import Store


def workload(name: str, *ips: str, backs: Mapping[str, Mapping[int, int]] | None = None, **fields: Any) -> Workload:
    """An HBONE pod of namespace demo, identity demo/<name>, that backs services by `name.demo` keys."""
    defaults = {
        "uid": f"cluster1//Pod/demo/{name}",
        "namespace": "demo",
        "service_account": name,
        "protocol": Protocol.HBONE,
        "workload_ips": ips,
        "services": dict(backs or {}),
    }
    return Workload(name=name, **{**defaults, **fields})


def service(name: str, *vips: str, ports: Mapping[int, int] | None = None, **fields: Any) -> Service:
    """A service of namespace demo on network ""; port 80 goes to 8080 unless told otherwise."""
    namespace = fields.pop("namespace", "demo")
    defaults = {
        "hostname": f"{name}.{namespace}",
        "vips": tuple(NetworkAddress("", vip) for vip in vips),
        "ports": {80: 8080} if ports is None else ports,
    }
    return Service(name=name, namespace=namespace, **{**defaults, **fields})


def gateway_at(ip: str, network: str = "") -> GatewayAddress:
    return GatewayAddress(NetworkAddress(network, ip), by_hostname=False)


def gateway_named(hostname: str, namespace: str = "demo") -> GatewayAddress:
    return GatewayAddress(NamespacedHostname(namespace, hostname), by_hostname=True)


def policy(name: str, action: Action, *matches: Match, **fields: Any) -> Policy:
    """One rule of one clause with these matches; no match at all is a policy without rules."""
    defaults = {"namespace": "demo", "scope": PolicyScope.NAMESPACE, "rules": ((matches,),) if matches else ()}
    return Policy(name=name, action=action, **{**defaults, **fields})


def mesh(*things: Workload | Service | Policy) -> Store:
    store = Store()
    store.apply(slice_of(*things))
    return store


def slice_of(*things: Workload | Service | Policy) -> StateSlice:
    return StateSlice(
        workloads=tuple(thing for thing in things if isinstance(thing, Workload)),
        services=tuple(thing for thing in things if isinstance(thing, Service)),
        policies=tuple(thing for thing in things if isinstance(thing, Policy)),
    )
