"""Rules as text for `nft -f`, in private tables of the inet family.

`render` defines each table anew (add, flush, define) and is therefore idempotent by itself: nft applies a file as one
transaction. `transition` also removes those of our tables that are there and not wanted.

Istio's names for Istio's rules (cni/pkg/nftables), our own for the other modes.
"""

from __future__ import annotations

from collections.abc import Iterator

from ztunnel.linux.redirect.model import (
    Accept,
    Action,
    Chain,
    Jump,
    Listing,
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

_TYPES = {
    ("nat", Chain.PREROUTING): ("nat", -100),
    ("nat", Chain.OUTPUT): ("nat", -100),
    ("mangle", Chain.PREROUTING): ("filter", -150),
    ("mangle", Chain.OUTPUT): ("route", -150),
    ("raw", Chain.PREROUTING): ("filter", -300),
    ("raw", Chain.OUTPUT): ("filter", -300),
}
_PREFIXES = {True: ("istio-ambient", "istio"), False: ("ztunnel", "ztunnel")}
_NAMES = ("nat", "mangle", "raw")
TABLES = tuple(f"{prefix}-{name}" for prefix, _ in _PREFIXES.values() for name in _NAMES)
"""Every table that may be ours. Istio's host tables share names with its pods' tables: see `is_ours`."""


def render(ruleset: Ruleset) -> str:
    """Text for `nft -f`."""
    prefix, chain_prefix = _PREFIXES[ruleset.istio]
    lines: list[str] = []
    for table in sorted(ruleset.tables, key=lambda table: _NAMES.index(table.name)):
        lines += _define(table, f"inet {prefix}-{table.name}", chain_prefix)
    return "\n".join(lines) + "\n"


def transition(present: Listing, ruleset: Ruleset | None) -> str:
    """Text that replaces whatever of ours is `present` by the ruleset (None: by nothing). Empty: nothing to do."""
    tables = dict.fromkeys(place.split()[1] for place in present)
    removal = "".join(f"delete table inet {name}\n" for name in tables)
    return removal + (render(ruleset) if ruleset else "")


def listing(table: str, listed: str) -> Listing:
    """`nft -s list table` as places and rules; empty when the table is not one that we (or Istio in a pod) made."""
    found: Listing = {}
    rules: list[str] = []
    for line in listed.splitlines():
        words = line.strip()
        if words.startswith(("chain ", "set ", "map ")) and words.endswith("{"):
            rules = found.setdefault(f"nft {table} {words.split()[1]}", [])
        elif words not in ("", "}") and not words.startswith("table "):
            rules.append(words)
    return {f"nft {table}": [], **found} if is_ours(table, found) else {}


def is_ours(table: str, found: Listing) -> bool:
    """Istio's table of the node's health probes has the name of a pod's table, but not its chains."""
    return table.startswith("ztunnel-") or any(
        place.endswith((" istio-output", " istio-prerouting")) for place in found
    )


def _define(table: Table, where: str, prefix: str) -> Iterator[str]:
    yield f"add table {where}"
    yield f"flush table {where}"
    for chain in table.chains:
        if chain.hooked:
            kind, priority = _TYPES[table.name, chain]
            yield f"add chain {where} {chain.value} {{ type {kind} hook {chain.value} priority {priority} ; }}"
    for chain in table.chains:
        yield f"add chain {where} {prefix}-{chain.value}"
    for chain in table.chains:
        if chain.hooked:
            yield f"add rule {where} {chain.value} jump {prefix}-{chain.value}"
    for rule in table.rules:
        match = " ".join(_match(rule.match))
        start = f"add rule {where} {prefix}-{rule.chain.value} {match}{' ' if match else ''}"
        yield (
            start + f"counter {_action(rule, prefix)}"
            if not isinstance(rule.action, Jump)
            else start + _action(rule, prefix)
        )
        if isinstance(rule.action, Tproxy):
            yield f"{start}counter drop"


def _match(match: Match) -> Iterator[str]:
    if match.in_interface:
        yield f"iifname {_value(match.in_interface, quote=True)}"
    if match.out_interface:
        yield f"oifname {_value(match.out_interface, quote=True)}"
    if match.protocol and not (match.sport or match.dport):
        yield f"meta l4proto {match.protocol}"
    if match.source:
        yield f"{_ip(match)} saddr {_value(match.source)}"
    if match.destination:
        yield f"{_ip(match)} daddr {_value(match.destination)}"
    if match.sport:
        yield f"{match.protocol} sport {_value(match.sport)}"
    if match.dport:
        yield f"{match.protocol} dport {_value(match.dport)}"
    if match.mark:
        yield f"meta mark {_masked(match.mark)}"
    if match.connmark:
        yield f"ct mark {_masked(match.connmark)}"
    if match.direction:
        yield f"ct direction {match.direction}"
    if match.uid:
        yield f"meta skuid {match.uid}"


def _ip(match: Match) -> str:
    return "ip6" if match.family == 6 else "ip"


def _value(text: str, *, quote: bool = False) -> str:
    plain = text.removeprefix("!")
    plain = f'"{plain}"' if quote else plain
    return f"!= {plain}" if text.startswith("!") else plain


def _masked(mark: str) -> str:
    value, mask = mark.removeprefix("!").split("/")
    return f"& {mask} {'!=' if mark.startswith('!') else '=='} {value}"


def _assign(mark: str) -> str:
    """The expression that keeps the bits outside the mask."""
    value, mask = mark.split("/")
    return f"& {0xFFFFFFFF & ~int(mask, 0):#x} | {value}"


def _action(rule: Rule, prefix: str) -> str:
    action: Action = rule.action
    match action:
        case Accept():
            return "accept"
        case Return():
            return "return"
        case Jump(chain):
            return f"jump {prefix}-{chain.value}"
        case Redirect(port):
            return f"redirect to :{port}"
        case Tproxy(port, mark):
            family = {0: "", 4: "ip ", 6: "ip6 "}[rule.match.family]
            return f"tproxy {family}to :{port} meta mark set meta mark {_assign(mark)} accept"
        case SetMark(mark):
            return f"meta mark set meta mark {_assign(mark)}"
        case SetConnmark(mark):
            return f"ct mark set ct mark {_assign(mark)}"
        case RestoreMark():
            return "meta mark set ct mark"
        case Zone(number):
            return f"ct zone set {number}"
