"""One local file (or inline text) to a Mesh, or every mistake in it.

Owns what spans the parts: names that must be unique, references that must resolve, endpoints that services name. A
reference that leads nowhere is refused here, so that nothing behind has to guess what it might have meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec

from ztunnel.control.mesh import decode
from ztunnel.control.mesh.decode import EndpointEntry, PodEntry, Read
from ztunnel.control.mesh.document import Cursor, read
from ztunnel.control.mesh.split import PARTS
from ztunnel.core.errors import ConfigError
from ztunnel.core.model.address import NamespacedHostname
from ztunnel.core.model.identity import DEFAULT_TRUST_DOMAIN, Identity
from ztunnel.core.model.policy import Policy
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import GatewayAddress, NetworkMode, Workload
from ztunnel.link.messages import CaptureMode
from ztunnel.runtime.slices import Steps, at_once


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """A network namespace that the agent serves, and what of its workload serving it depends on."""

    uid: str
    name: str
    workload_uid: str
    workload_name: str
    identity: Identity
    ips: tuple[str, ...] = ()
    netns: str = ""
    """Name (`ip netns`) or path; empty only in NODE mode."""
    capture: CaptureMode
    interface: str = ""
    """The node's interface towards the pod; NODE mode only."""


class Mesh(msgspec.Struct, frozen=True):
    """What a local file says."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Policy, ...] = ()
    pods: tuple[Pod, ...] = ()


class Place(Protocol):
    """Where something stands in the file; `Cursor` is one."""

    @property
    def line(self) -> int: ...
    def at(self, *keys: str) -> Place: ...
    def refuse(self, why: str) -> None: ...


class Placed(NamedTuple):
    """A decoded part and where it stands."""

    value: Any
    cursor: Place


def parse(
    text: str,
    name: str,
    *,
    trust_domain: str = DEFAULT_TRUST_DOMAIN,
    capture: CaptureMode = CaptureMode.REDIRECT,
) -> Mesh:
    """The mesh of `text`; `name` stands for it in messages.

    `trust_domain` and `capture` are what workloads and pods have that say nothing. Raises ConfigError whose
    `problems` name every mistake as `name:line: path: why`.
    """
    document, root = read(text, name)
    parts: dict[str, list[Placed]] = {part: [] for part in PARTS}
    if root is not None:
        parts = _parts(root, trust_domain)
    elif not document.problems:
        document.note(1, "", "is empty; a mesh with nothing in it is written {}")
    mesh = Mesh()
    if not document.problems:
        mesh = at_once(assemble(parts, capture))
    if document.problems:
        count = "1 problem" if len(document.problems) == 1 else f"{len(document.problems)} problems"
        raise ConfigError(f"{name} has {count}", problems=document.report(), hint="docs/mesh-file.md has the format")
    return mesh


def tables(trust_domain: str) -> dict[str, Read]:
    """How an item of each part is read."""
    return {
        "workloads": partial(decode.WORKLOAD.read, trust_domain=trust_domain),
        "services": decode.SERVICE.read,
        "policies": decode.POLICY.read,
        "pods": decode.POD.read,
    }


def _parts(root: Cursor, trust_domain: str) -> dict[str, list[Placed]]:
    readers = tables(trust_domain)
    parts: dict[str, list[Placed]] = {part: [] for part in PARTS}
    for key, value in root.entries():
        if key not in readers:
            value.refuse(f"unknown key; known are {', '.join(PARTS)}")
            continue
        for item in value.items():
            decoded = readers[key](item)
            if decoded is not None:
                parts[key].append(Placed(decoded, item))
    return parts


def assemble(parts: Mapping[str, list[Placed]], capture: CaptureMode) -> Steps[Mesh]:
    """The mesh of parts that are each right by themselves; problems are noted at the cursors."""
    workloads = yield from _unique(parts["workloads"], "uid", lambda w: w.uid)
    services = yield from _unique(parts["services"], "service", lambda s: str(s.service.key))
    policies = yield from _unique(parts["policies"], "policy", lambda p: p.key)
    yield from _check_addresses(parts["workloads"])
    for placed in parts["workloads"]:
        _check_workload(placed, services, policies)
        yield
    backed = yield from _merge_endpoints(parts["services"], workloads, services)
    merged: list[Workload] = []
    for uid, placed in workloads.items():
        ports = backed.get(uid)
        merged.append(placed.value if ports is None else msgspec.structs.replace(placed.value, services=ports))
        yield
    return Mesh(
        workloads=tuple(merged),
        services=tuple(placed.value.service for placed in services.values()),
        policies=tuple(placed.value for placed in policies.values()),
        pods=(yield from _pods(parts["pods"], merged, capture)),
    )


def _unique(placed: Iterable[Placed], what: str, key_of: Any) -> Steps[dict[str, Placed]]:
    found: dict[str, Placed] = {}
    for part in placed:
        key = key_of(part.value)
        if key in found:
            part.cursor.refuse(f"{what} {key} is already in line {found[key].cursor.line}")
        else:
            found[key] = part
        yield
    return found


def _check_addresses(placed: Iterable[Placed]) -> Steps[None]:
    """An address is one workload's, except the node's own, which host-network pods share."""
    owners: dict[tuple[str, str], Placed] = {}
    for part in placed:
        yield
        workload: Workload = part.value
        if workload.network_mode is NetworkMode.HOST_NETWORK:
            continue
        for ip in workload.workload_ips:
            owner = owners.setdefault((workload.network, ip), part)
            if owner is not part:
                part.cursor.refuse(f"address {workload.network}/{ip} is already that of {owner.value.name}")


def _check_workload(placed: Placed, services: Mapping[str, Placed], policies: Mapping[str, Placed]) -> None:
    workload: Workload = placed.value
    for key in workload.services:
        if key not in services:
            placed.cursor.at("services", key).refuse(f"{key} is no service of this file")
    for key in workload.authorization_policies:
        if key not in policies:
            placed.cursor.at("authorizationPolicies").refuse(f"{key} is no policy of this file")
    for field in ("waypoint", "network_gateway"):
        _check_gateway(placed.cursor, decode.camel(field), getattr(workload, field), services)


def _check_gateway(cursor: Place, field: str, gateway: GatewayAddress | None, services: Mapping[str, Placed]) -> None:
    if gateway is not None and isinstance(gateway.destination, NamespacedHostname):
        key = str(gateway.destination)
        if key not in services:
            cursor.at(field, "destination").refuse(f"{key} is no service of this file")


def _merge_endpoints(
    placed: Iterable[Placed], workloads: Mapping[str, Placed], services: Mapping[str, Placed]
) -> Steps[dict[str, dict[str, Mapping[int, int]]]]:
    """Uid to the full `services` map of each workload that a service names as an endpoint."""
    backed: dict[str, dict[str, Mapping[int, int]]] = {}
    for part in placed:
        service: Service = part.value.service
        _check_gateway(part.cursor, "waypoint", service.waypoint, services)
        for weighted in service.weighted_waypoints:
            _check_gateway(part.cursor, "weightedWaypoints", weighted.destination, services)
        endpoints: Mapping[str, EndpointEntry] = part.value.endpoints
        yield
        for endpoint in endpoints.values():
            yield
            uid, key = endpoint.workload_uid, str(service.key)
            if uid not in workloads:
                part.cursor.at("endpoints").refuse(f"{uid} is no workload of this file")
                continue
            workload: Workload = workloads[uid].value
            ports = service.ports if endpoint.port is None else endpoint.port
            if workload.services.get(key, ports) != ports:
                part.cursor.at("endpoints").refuse(f"{uid} itself has other ports for {key}")
            if endpoint.status not in (None, workload.status):
                part.cursor.at("endpoints").refuse(f"{uid} itself is {workload.status.value}; set its status there")
            backed.setdefault(uid, dict(workload.services))[key] = ports
    return backed


def _pods(placed: Sequence[Placed], workloads: Iterable[Workload], capture: CaptureMode) -> Steps[tuple[Pod, ...]]:
    by_uid: dict[str, Workload] = {}
    by_name: dict[str, list[Workload]] = {}
    for workload in workloads if placed else ():
        by_uid[workload.uid] = workload
        by_name.setdefault(f"{workload.namespace}/{workload.name}", []).append(workload)
        yield
    yield from _unique(placed, "pod", lambda entry: entry.uid or entry.name)
    yield from _unique([part for part in placed if part.value.netns], "netns", lambda entry: entry.netns)
    pods = []
    for part in placed:
        yield
        entry: PodEntry = part.value
        mode = entry.capture or capture
        found = [by_uid[entry.workload]] if entry.workload in by_uid else by_name.get(entry.workload, [])
        if len(found) != 1:
            what = "no workload of this file" if not found else "the name of several workloads: give the uid"
            part.cursor.at("workload").refuse(f"{entry.workload} is {what}")
        if mode is CaptureMode.NODE and not entry.interface:
            part.cursor.refuse("interface is missing: capture node needs the node's interface towards the pod")
        if mode is not CaptureMode.NODE and entry.interface:
            part.cursor.at("interface").refuse(f"only capture node has one, this pod's is {mode.value}")
        if mode is not CaptureMode.NODE and not entry.netns:
            part.cursor.refuse(f"netns is missing: capture {mode.value} happens in the pod's namespace")
        if found:
            pod = Pod(
                uid=entry.uid or entry.name,
                name=entry.name,
                workload_uid=found[0].uid,
                workload_name=found[0].name,
                identity=found[0].identity,
                ips=found[0].workload_ips,
                netns=entry.netns,
                capture=mode,
                interface=entry.interface,
            )
            pods.append(pod)
    return tuple(pods)
