"""From what is asked for to the rules that do it. Pure; the packet's way through each mode is told here.

Common to all modes: packets of the agent carry its own mark and are never captured. A connection whose packets must
come back to the agent although they are addressed to somebody else (the agent speaks with a client's address to the
application) gets the connection mark; packets that go the other way get it back as packet mark, and a policy rule
sends these to table 100, where every address is local.

REDIRECT (in the pod): Istio's rules, in Istio's order (cni/pkg/iptables).
TPROXY (in the pod): a packet that the application sends gets the connection mark in OUTPUT, is thereby routed to lo and
meets the agent's transparent listener in PREROUTING; arriving packets meet theirs there too. "From the side that
opened" keeps answers out; a packet that came over lo keeps its mark and its route. The agent's own packets leave
OUTPUT first, else the connection's mark would replace theirs and PREROUTING would take them for the application's.
NODE (in the node): packets that enter from an enrolled pod's link meet the outbound listener, packets addressed to an
enrolled pod the inbound ones. The agent's own connections to and from pods get the connection mark in OUTPUT.
"""

from __future__ import annotations

from ipaddress import ip_network

from ztunnel.core.errors import ConfigError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.redirect.model import (
    CONNECTION_MARK,
    DNS_ZONE,
    Accept,
    Action,
    CaptureSpec,
    Chain,
    Jump,
    Match,
    Redirect,
    RestoreMark,
    Return,
    Rule,
    Ruleset,
    SetConnmark,
    SetMark,
    Table,
    Tproxy,
    Zone,
)

_LOOPBACK = {4: "127.0.0.1/32", 6: "::1/128"}
_PORTS = range(1, 65536)


def rules(spec: CaptureSpec) -> Ruleset:
    """The rules of a spec. Raises ConfigError with everything that is wrong with the spec."""
    problems = _problems(spec)
    if problems:
        raise ConfigError(f"capture cannot be set up: {'; '.join(problems)}", problems=tuple(problems))
    families = tuple(family for family, wanted in ((4, spec.ipv4), (6, spec.ipv6)) if wanted)
    if spec.mode is CaptureMode.REDIRECT:
        tables = _redirect(spec, families)
    elif spec.mode is CaptureMode.TPROXY:
        tables = _tproxy(spec, families)
    else:
        tables = [Table("mangle", _in_families(_node(spec, families), families))]
    return Ruleset(tuple(tables), families, istio=spec.mode is CaptureMode.REDIRECT)


def _redirect(spec: CaptureSpec, families: tuple[int, ...]) -> list[Table]:
    not_own = f"!{spec.own}"
    nat = [
        rule
        for name in spec.virtual_interfaces
        for rule in (
            _pre(Redirect(spec.outbound_port), in_interface=name, protocol="tcp"),
            _pre(Return(), in_interface=name, protocol="tcp"),
        )
    ]
    if spec.inbound:
        nat += [_pre(Accept(), source=_probe(spec, family), protocol="tcp") for family in families]
    nat += [_out(Accept(), destination=_probe(spec, family), protocol="tcp") for family in families]
    if spec.inbound:
        nat += _excluded_inbound(spec, Chain.PREROUTING)
        captured = {"protocol": "tcp", "dport": f"!{spec.hbone_port}", "mark": not_own}
        to_inbound = Redirect(spec.inbound_port)
        nat += [_pre(to_inbound, destination=f"!{_LOOPBACK[family]}", **captured) for family in families]
    nat += _excluded_outbound(spec, Chain.OUTPUT)
    if spec.dns:
        nat += _dns(spec, families)
    nat.append(_out(Accept(), protocol="tcp", mark=CONNECTION_MARK))
    nat += [_out(Accept(), out_interface="lo", destination=f"!{_LOOPBACK[family]}") for family in families]
    nat += [
        _out(Redirect(spec.outbound_port), protocol="tcp", destination=f"!{_LOOPBACK[family]}", mark=not_own)
        for family in families
    ]
    mangle = Table("mangle", (_mark_connection(spec, Chain.PREROUTING), _restore_mark()))
    tables = [mangle, Table("nat", _in_families(nat, families))]
    return [*tables, _dns_zones(spec)] if spec.dns else tables


def _tproxy(spec: CaptureSpec, families: tuple[int, ...]) -> list[Table]:
    not_own = f"!{spec.own}"
    to_outbound = Tproxy(spec.outbound_port, CONNECTION_MARK)
    looped = {"in_interface": "lo", "protocol": "tcp", "mark": CONNECTION_MARK, "direction": "original"}
    mangle = [
        _mark_connection(spec, Chain.PREROUTING),
        *(_pre(to_outbound, destination=f"!{_LOOPBACK[family]}", **looped) for family in families),
        *(
            _pre(to_outbound, in_interface=name, protocol="tcp", direction="original")
            for name in spec.virtual_interfaces
        ),
    ]
    if spec.inbound:
        mangle += [_pre(Return(), source=_probe(spec, family), protocol="tcp") for family in families]
        mangle += _excluded_inbound(spec, Chain.PREROUTING)
        mangle.append(
            _pre(
                Tproxy(spec.inbound_port, CONNECTION_MARK),
                in_interface="!lo",
                protocol="tcp",
                dport=f"!{spec.hbone_port}",
                mark=not_own,
                direction="original",
            )
        )
    mangle += [
        _out(Return(), mark=spec.own),
        _restore_mark(),
        _out(Return(), mark=CONNECTION_MARK),
        _out(Return(), direction="reply"),
        *(_out(Return(), destination=_probe(spec, family), protocol="tcp") for family in families),
        *_excluded_outbound(spec, Chain.OUTPUT),
        _out(Return(), out_interface="lo"),
    ]
    if spec.dns:
        mangle.append(_out(Return(), protocol="tcp", dport="53"))
    mangle.append(_out(SetMark(CONNECTION_MARK), protocol="tcp", mark=not_own))
    tables = [Table("mangle", _in_families(mangle, families))]
    if not spec.dns:
        return tables
    nat = [*_excluded_outbound(spec, Chain.OUTPUT), *_dns(spec, families)]
    return [*tables, Table("nat", _in_families(nat, families)), _dns_zones(spec)]


def _node(spec: CaptureSpec, families: tuple[int, ...]) -> list[Rule]:
    enter = [
        Rule(Chain.PREROUTING, Match(in_interface=n, protocol="tcp"), Jump(Chain.OUTBOUND)) for n in spec.pod_interfaces
    ]
    if spec.inbound:
        enter += [_pre(Jump(Chain.INBOUND), destination=_network(ip), protocol="tcp") for ip in spec.pod_ips]
    inbound = [Rule(Chain.INBOUND, Match(source=_probe(spec, family)), Return()) for family in families]
    return [
        _pre(SetMark(CONNECTION_MARK), connmark=CONNECTION_MARK, direction="reply"),
        _pre(Return(), direction="reply"),
        _pre(Return(), mark=spec.own),
        *enter,
        *_excluded_outbound(spec, Chain.OUTBOUND),
        Rule(Chain.OUTBOUND, Match(protocol="tcp"), Tproxy(spec.outbound_port, CONNECTION_MARK)),
        *inbound,
        *_excluded_inbound(spec, Chain.INBOUND),
        Rule(
            Chain.INBOUND,
            Match(protocol="tcp", dport=str(spec.hbone_port)),
            Tproxy(spec.hbone_port, CONNECTION_MARK),
        ),
        Rule(Chain.INBOUND, Match(protocol="tcp"), Tproxy(spec.inbound_port, CONNECTION_MARK)),
        _mark_connection(spec, Chain.OUTPUT),
        *_to_neighbours(spec),
    ]


def _to_neighbours(spec: CaptureSpec) -> list[Rule]:
    """Tunnels between pods of one node begin and end at this agent: they turn round over lo, there and back."""
    if not spec.inbound:
        return []
    there = {"protocol": "tcp", "dport": str(spec.hbone_port), "mark": spec.own}
    back = {"protocol": "tcp", "sport": str(spec.hbone_port), "mark": spec.own, "direction": "reply"}
    return [
        _out(SetMark(CONNECTION_MARK), destination=_network(ip), **match)
        for match in (there, back)
        for ip in spec.pod_ips
    ]


def _mark_connection(spec: CaptureSpec, chain: Chain) -> Rule:
    return Rule(chain, Match(mark=spec.own), SetConnmark(CONNECTION_MARK))


def _restore_mark() -> Rule:
    return _out(RestoreMark(), connmark=CONNECTION_MARK)


def _dns(spec: CaptureSpec, families: tuple[int, ...]) -> list[Rule]:
    to_dns, not_own = Redirect(spec.dns_port), f"!{spec.own}"
    return [
        _out(to_dns, out_interface="!lo", protocol="udp", dport="53", mark=not_own),
        *(
            _out(to_dns, protocol="tcp", dport="53", destination=f"!{_LOOPBACK[family]}", mark=not_own)
            for family in families
        ),
    ]


def _dns_zones(spec: CaptureSpec) -> Table:
    """The agent's own queries are tracked apart, so that their answers do not meet the application's."""
    return Table(
        "raw",
        (
            _out(Zone(DNS_ZONE), protocol="udp", dport="53", mark=spec.own),
            _pre(Zone(DNS_ZONE), protocol="udp", sport="53", mark=f"!{spec.own}"),
        ),
    )


def _excluded_outbound(spec: CaptureSpec, chain: Chain) -> list[Rule]:
    protocols = ("tcp", "udp") if spec.dns else ("tcp",)
    matches = [Match(uid=str(uid)) for uid in spec.exclude_uids]
    matches += [Match(destination=_network(cidr)) for cidr in spec.exclude_outbound_cidrs]
    matches += [Match(protocol=name, dport=str(port)) for port in spec.exclude_outbound_ports for name in protocols]
    return [Rule(chain, match, Return()) for match in matches]


def _excluded_inbound(spec: CaptureSpec, chain: Chain) -> list[Rule]:
    matches = [Match(source=_network(cidr)) for cidr in spec.exclude_inbound_cidrs]
    matches += [Match(protocol="tcp", dport=str(port)) for port in spec.exclude_inbound_ports]
    return [Rule(chain, match, Return()) for match in matches]


def _probe(spec: CaptureSpec, family: int) -> str:
    return spec.probe_source4 if family == 4 else spec.probe_source6


def _pre(action: Action, **match: str) -> Rule:
    return Rule(Chain.PREROUTING, Match(**match), action)


def _out(action: Action, **match: str) -> Rule:
    return Rule(Chain.OUTPUT, Match(**match), action)


def _in_families(found: list[Rule], families: tuple[int, ...]) -> tuple[Rule, ...]:
    """Without the rules of a family that is off (exclusions and pods may name addresses of both)."""
    return tuple(rule for rule in found if rule.match.family in (0, *families))


def _network(text: str) -> str:
    return str(ip_network(text, strict=False))


def _problems(spec: CaptureSpec) -> list[str]:
    found = []
    if spec.mode is CaptureMode.NONE:
        found.append("mode none has no rules")
    if not (spec.ipv4 or spec.ipv6):
        found.append("neither IPv4 nor IPv6 is wanted")
    for name in ("exclude_outbound_ports", "exclude_inbound_ports"):
        found += [f"{name}: {port} is not a port" for port in getattr(spec, name) if port not in _PORTS]
    for name in ("exclude_outbound_cidrs", "exclude_inbound_cidrs", "pod_ips"):
        found += [f"{name}: {problem}" for problem in map(_cidr_problem, getattr(spec, name)) if problem]
    for name in ("virtual_interfaces", "pod_interfaces"):
        found += [f"{name}: {text!r} is not an interface's name" for text in getattr(spec, name) if not _is_link(text)]
    if spec.mark & ~spec.mark_mask or not spec.mark:
        found.append(f"mark {spec.mark:#x} does not fit the mask {spec.mark_mask:#x}")
    value, mask = (int(number, 0) for number in CONNECTION_MARK.split("/"))
    if spec.mark & mask == value:
        found.append(f"mark {spec.mark:#x} is that of captured connections ({CONNECTION_MARK})")
    if spec.mode is CaptureMode.NODE and spec.dns:
        found.append("DNS capture does not exist in node mode; use redirect or tproxy")
    if spec.mode is CaptureMode.NODE and spec.exclude_uids:
        found.append("uids cannot be excluded in node mode, the node does not see them; use redirect or tproxy")
    return found


def _cidr_problem(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError as error:
        return str(error)
    return ""


def _is_link(text: str) -> bool:
    """A name that the kernel takes and that no tool could read as something else."""
    return 0 < len(text) <= 15 and all(c.isalnum() or c in "-_.:@" for c in text) and text[0] not in "-@"
