"""The tables from the local file's keys to the model: workloads, services, policies, pods.

The format is ztunnel's own (camelCase, unknown keys refused), with these liberties: `services` of a workload may be
missing, string matches may be a tag (`!Exact x`) or a mapping (`Exact: x`), and `pods` is ours. A struct is a table
of keys; a key is read by a function from a cursor to a value, None meaning that the cursor noted a problem.

References between the parts are `localfile`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple, TypeVar

import msgspec

from ztunnel.config.forms import canonical_cidr
from ztunnel.control.mesh.document import Cursor
from ztunnel.core.model.address import NamespacedHostname, NetworkAddress, canonical_ip
from ztunnel.core.model.policy import Action, Match, MatchKind, Policy, PolicyScope, ServiceAccountMatch, StringMatch
from ztunnel.core.model.service import (
    BalanceMode,
    CidrVip,
    HealthPolicy,
    IpFamilies,
    LoadBalancer,
    Scope,
    Service,
    Visibility,
    WeightedWaypoint,
)
from ztunnel.core.model.workload import (
    ApplicationTunnel,
    GatewayAddress,
    Health,
    Locality,
    NetworkMode,
    Protocol,
    TunnelProtocol,
    Workload,
)
from ztunnel.link.messages import CaptureMode

T = TypeVar("T")
E = TypeVar("E", bound=Enum)
Read = Callable[[Cursor], Any]

_CAMEL = re.compile(r"_(\w)")
WORKLOAD_TYPES = ("deployment", "cronjob", "pod", "job")


class EndpointEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A workload that a service names as its endpoint; no `port` map means the service's own."""

    workload_uid: str = ""
    port: Mapping[int, int] | None = None
    status: Health | None = None


class ServiceEntry(NamedTuple):
    service: Service
    endpoints: Mapping[str, EndpointEntry]


class PodEntry(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    workload: str
    """`namespace/name`, or the workload's uid."""
    netns: str = ""
    capture: CaptureMode | None = None
    uid: str = ""
    interface: str = ""


class Key(NamedTuple):
    read: Read
    required: bool = False
    null: bool = False
    """Null is read too, instead of being the same as a missing key."""


class Table:
    """The keys of a mapping and the struct they fill; a key that is missing or null leaves the struct's default."""

    def __init__(self, make: Callable[..., Any], keys: Mapping[str, Key]) -> None:
        self.make = make
        self.keys = keys
        self._fields = {name: (_snake(name), key) for name, key in keys.items()}
        self._required = tuple(name for name, key in keys.items() if key.required)

    def read(self, cursor: Cursor, **defaults: object) -> Any | None:
        """The struct, or None when anything in it is wrong."""
        before = len(cursor.document.problems)
        if not cursor.is_mapping:
            cursor.refuse("must be a mapping")
            return None
        values = dict(defaults)
        present = set()
        for name, value in cursor.entries():
            is_null = value.is_null
            if not is_null:
                present.add(name)
            if name not in self._fields:
                value.refuse(self._unknown(name))
                continue
            field, key = self._fields[name]
            if key.null or not is_null:
                values[field] = key.read(value)
        for name in self._required:
            if name not in present:
                cursor.refuse(f"{name} is missing")
        return self.make(**values) if len(cursor.document.problems) == before else None

    def _unknown(self, name: str) -> str:
        from difflib import get_close_matches  # here and not above: a mesh without mistakes does not need it

        close = get_close_matches(name, self.keys, n=1)
        known = f"did you mean {close[0]}?" if close else f"known are {', '.join(self.keys)}"
        return f"unknown key; {known}"


def _snake(name: str) -> str:
    return re.sub(r"([A-Z])", lambda match: "_" + match.group(1).lower(), name)


def camel(name: str) -> str:
    return _CAMEL.sub(lambda match: match.group(1).upper(), name)


# ---- values ----


def text(cursor: Cursor) -> str | None:
    return cursor.text()


def name(cursor: Cursor) -> str | None:
    value = cursor.text()
    if value == "":
        cursor.refuse("must not be empty")
    return value


def boolean(cursor: Cursor) -> bool | None:
    return cursor.boolean()


def port(cursor: Cursor) -> int | None:
    return cursor.integer(0, 65535)


def count(cursor: Cursor) -> int | None:
    return cursor.integer(0, 2**32 - 1)


def tuple_of(read: Read) -> Read:
    return lambda cursor: tuple(read(item) for item in cursor.items())


def some(read: Read) -> Read:
    """A list with at least one element, for lists that restrict: an empty one would match anything."""

    def read_list(cursor: Cursor) -> tuple[Any, ...]:
        if cursor.is_empty:
            cursor.refuse("must not be empty: it would match anything; leave the key out to mean that")
        return tuple(read(item) for item in cursor.items())

    return read_list


def member(kind: type[E]) -> Read:
    """A value of an enum; Presence and the like are written as they are, so case counts."""

    choices = {choice.value: choice for choice in kind}

    def read(cursor: Cursor) -> E | None:
        value = cursor.text()
        if value is None:
            return None
        if value in choices:
            return choices[value]
        cursor.refuse(f"must be one of {', '.join(choices)}, not {value!r}")
        return None

    return read


def one_of(*choices: str) -> Read:
    def read(cursor: Cursor) -> str | None:
        value = cursor.text()
        if value is not None and value not in choices:
            cursor.refuse(f"must be one of {', '.join(choices)}, not {value!r}")
        return value

    return read


def parsed(parse: Callable[[str], object]) -> Read:
    return lambda cursor: cursor.parsed(parse)


def port_map(cursor: Cursor) -> dict[int, int]:
    """`80: 8080`; the keys of JSON (`"80": 8080`) are numbers too."""
    ports: dict[int, int] = {}
    for key, value in cursor.entries():
        target = port(value)
        if not (key.isascii() and key.isdigit() and int(key) <= 65535):
            value.refuse(f"{key!r} is no port")
        elif target is not None:
            ports[int(key)] = target
    return ports


def service_ports(cursor: Cursor) -> dict[str, dict[int, int]]:
    """`namespace/hostname` to port map."""
    services = {}
    for key, value in cursor.entries():
        if key.count("/") != 1 or key.startswith("/") or key.endswith("/"):
            value.refuse(f"{key!r} is not namespace/hostname")
        services[key] = port_map(value)
    return services


def network_address(value: str) -> NetworkAddress:
    network, slash, ip = value.partition("/")
    if not slash:
        raise ValueError(f"must be network/ip, not {value!r} (the empty network is written /{value})")
    try:
        return NetworkAddress(network, canonical_ip(ip))
    except ValueError:
        raise ValueError(f"{ip!r} is not an IP address") from None


def cidr_vip(value: str) -> CidrVip:
    network, slash, prefix = value.partition("/")
    if not slash or "/" not in prefix:
        raise ValueError(f"must be network/ip/length, not {value!r}")
    ip, _, length = canonical_cidr(prefix).partition("/")
    return CidrVip(network, ip, int(length))


def destination(value: str) -> NetworkAddress | NamespacedHostname:
    """`network/ip`, else `namespace/hostname`."""
    first, slash, second = value.partition("/")
    if not slash or not second:
        raise ValueError(f"must be network/ip or namespace/hostname, not {value!r}")
    try:
        return NetworkAddress(first, canonical_ip(second))
    except ValueError:
        return NamespacedHostname(first, second)


def string_match(cursor: Cursor) -> StringMatch | None:
    """`!Exact x` or `Exact: x`; presence carries an empty list, or nothing."""
    kind, value = cursor.own_tag, cursor
    if not kind:
        entries = cursor.entries() if cursor.is_mapping else []
        if len(entries) != 1:
            cursor.refuse("must be one of Exact, Prefix, Suffix, Presence with its value, e.g. Exact: x")
            return None
        kind, value = entries[0]
    if kind not in [choice.value for choice in MatchKind]:
        cursor.refuse(f"{kind!r} is none of Exact, Prefix, Suffix, Presence")
        return None
    if kind == MatchKind.PRESENCE.value:
        if not value.is_empty:
            value.refuse("Presence takes no value: write Presence: []")
        return StringMatch(MatchKind.PRESENCE)
    operand = value.tagged_text() if value is cursor else value.text()
    if operand == "":
        value.refuse("must not be empty; any value at all is written Presence: []")
    return None if operand is None else StringMatch(MatchKind(kind), operand)


def rules(cursor: Cursor) -> tuple[tuple[tuple[Match | None, ...], ...], ...]:
    return tuple(
        tuple(tuple(MATCH.read(match) for match in clause.items()) for clause in rule.items())
        for rule in cursor.items()
    )


def _workload(*, name: str, namespace: str, uid: str = "", **rest: Any) -> Workload:
    """A workload without uid gets the one that Istio would give a pod of this name."""
    cluster = rest.get("cluster_id", "Kubernetes")
    return Workload(name=name, namespace=namespace, uid=uid or f"{cluster}//Pod/{namespace}/{name}", **rest)


def _service(*, endpoints: dict[str, EndpointEntry] | None = None, **rest: Any) -> ServiceEntry:
    return ServiceEntry(Service(**rest), endpoints or {})


def _gateway(destination: NetworkAddress | NamespacedHostname, hbone_mtls_port: int = 15008) -> GatewayAddress:
    return GatewayAddress(destination, isinstance(destination, NamespacedHostname), hbone_mtls_port)


def _weighted(destination: GatewayAddress, weight: int = 1) -> WeightedWaypoint:
    return WeightedWaypoint(destination, weight)


def _endpoints(cursor: Cursor) -> dict[str, EndpointEntry | None]:
    return {key: ENDPOINT.read(value, workload_uid=key) for key, value in cursor.entries()}


# ---- tables ----

GATEWAY = Table(_gateway, {"destination": Key(parsed(destination), True), "hboneMtlsPort": Key(port)})
WEIGHTED = Table(_weighted, {"destination": Key(GATEWAY.read, True), "weight": Key(count)})
TUNNEL = Table(ApplicationTunnel, {"protocol": Key(member(TunnelProtocol), True), "port": Key(port)})
LOCALITY = Table(Locality, {"region": Key(text), "zone": Key(text), "subzone": Key(text)})
ENDPOINT = Table(EndpointEntry, {"workloadUid": Key(name), "port": Key(port_map), "status": Key(member(Health))})
LOAD_BALANCER = Table(
    LoadBalancer,
    {
        "routingPreferences": Key(tuple_of(member(Scope))),
        "mode": Key(member(BalanceMode)),
        "healthPolicy": Key(member(HealthPolicy)),
    },
)
WORKLOAD = Table(
    _workload,
    {
        "uid": Key(name),
        "name": Key(name, True),
        "namespace": Key(name, True),
        "workloadIps": Key(tuple_of(parsed(canonical_ip))),
        "hostname": Key(text),
        "network": Key(text),
        "protocol": Key(member(Protocol)),
        "networkMode": Key(member(NetworkMode)),
        "trustDomain": Key(name),
        "serviceAccount": Key(name),
        "node": Key(text),
        "workloadName": Key(text),
        "workloadType": Key(one_of(*WORKLOAD_TYPES)),
        "canonicalName": Key(text),
        "canonicalRevision": Key(text),
        "nativeTunnel": Key(boolean),
        "applicationTunnel": Key(TUNNEL.read),
        "waypoint": Key(GATEWAY.read),
        "networkGateway": Key(GATEWAY.read),
        "authorizationPolicies": Key(tuple_of(name)),
        "status": Key(member(Health)),
        "clusterId": Key(text),
        "locality": Key(LOCALITY.read),
        "capacity": Key(count),
        "services": Key(service_ports),
    },
)
SERVICE = Table(
    _service,
    {
        "name": Key(name, True),
        "namespace": Key(name, True),
        "hostname": Key(name, True),
        "vips": Key(tuple_of(parsed(network_address))),
        "cidrVips": Key(tuple_of(parsed(cidr_vip))),
        "ports": Key(port_map),
        "endpoints": Key(_endpoints),
        "subjectAltNames": Key(tuple_of(name)),
        "waypoint": Key(GATEWAY.read),
        "weightedWaypoints": Key(tuple_of(WEIGHTED.read)),
        "loadBalancer": Key(LOAD_BALANCER.read),
        "ipFamilies": Key(member(IpFamilies)),
        "canonical": Key(boolean),
        "visibility": Key(member(Visibility)),
    },
)
SERVICE_ACCOUNT = Table(ServiceAccountMatch, {"namespace": Key(name, True), "serviceAccount": Key(name, True)})
MATCH = Table(
    Match,
    {
        camel(prefix + field): Key(some(read), null=True)
        for field, read in (
            ("namespaces", string_match),
            ("principals", string_match),
            ("service_accounts", SERVICE_ACCOUNT.read),
            ("source_ips", parsed(canonical_cidr)),
            ("destination_ips", parsed(canonical_cidr)),
            ("destination_ports", port),
        )
        for prefix in ("", "not_")
    },
)
POLICY = Table(
    Policy,
    {
        "name": Key(name, True),
        "namespace": Key(name, True),
        "scope": Key(member(PolicyScope), True),
        "action": Key(member(Action), True),
        "rules": Key(rules),
        "dryRun": Key(boolean),
    },
)
POD = Table(
    PodEntry,
    {
        "name": Key(name, True),
        "workload": Key(name, True),
        "netns": Key(name),
        "capture": Key(member(CaptureMode)),
        "uid": Key(name),
        "interface": Key(name),
    },
)
