"""Rules as iptables-restore text, and the text that leads from what is there to what is wanted.

`render` is what an operator would write by hand: it creates chains (-N) and so fails as a whole, changing nothing,
where they exist already. `transition` takes the present state into account: with --noflush iptables-restore adds a
jump again each time it is told to, so jumps found are deleted in the same transaction that adds them.

Each table is one transaction of the kernel. Rules of others in the same tables are not mentioned and so survive.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

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

BUILT_IN = {Chain.PREROUTING: "PREROUTING", Chain.OUTPUT: "OUTPUT"}
ISTIO = {Chain.PREROUTING: "ISTIO_PRERT", Chain.OUTPUT: "ISTIO_OUTPUT"}
OWN = {
    Chain.PREROUTING: "ZTUNNEL_PRERT",
    Chain.OUTPUT: "ZTUNNEL_OUTPUT",
    Chain.OUTBOUND: "ZTUNNEL_OUTBOUND",
    Chain.INBOUND: "ZTUNNEL_INBOUND",
}
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
"""The built-in chains of iptables."""
TABLES = ("mangle", "nat", "raw")
OURS = frozenset((*ISTIO.values(), *OWN.values()))


def render(ruleset: Ruleset, family: int) -> str:
    """Text for `iptables-restore --noflush` (family 4) or `ip6tables-restore --noflush` (family 6)."""
    names = ISTIO if ruleset.istio else OWN
    lines: list[str] = []
    for table in ruleset.tables:
        lines += [f"*{table.name}", *_create(table.of_family(family), names), "COMMIT"]
    return "\n".join(lines) + "\n"


def transition(present: Listing, ruleset: Ruleset | None, family: int) -> str:
    """Text that replaces whatever of ours is `present` by the ruleset (None: by nothing). Empty: nothing to do."""
    names = ISTIO if ruleset is None or ruleset.istio else OWN
    wanted = {table.name: table.of_family(family) for table in ruleset.tables} if ruleset else {}
    lines: list[str] = []
    for name in TABLES:
        steps = [*_destroy(present, f"ipv{family} {name} ")]
        if name in wanted:
            steps += _create(wanted[name], names)
        if steps:
            lines += [f"*{name}", *steps, "COMMIT"]
    return "\n".join(lines) + "\n" if lines else ""


def listing(saved: str, family: int) -> Listing:
    """What of ours iptables-save shows: in the tables that we use, our chains and the jumps of others into them."""
    found: Listing = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif table not in TABLES:
            continue
        elif line.startswith(":"):
            chain = line[1:].split()[0]
            if chain in OURS:
                found.setdefault(f"ipv{family} {table} {chain}", [])
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            if chain in OURS or _target(rule) in OURS:
                found.setdefault(f"ipv{family} {table} {chain}", []).append(rule)
    return found


def return_to(present: Listing, before: Listing, family: int) -> str:
    """Text that replaces whatever of ours is `present` by what a listing showed `before`."""
    lines: list[str] = []
    for name in TABLES:
        prefix = f"ipv{family} {name} "
        chains = {place.removeprefix(prefix): found for place, found in before.items() if place.startswith(prefix)}
        steps = [*_destroy(present, prefix), *(f"-N {chain}" for chain in chains if chain in OURS)]
        steps += [f"-A {chain} {rule}" for chain, found in chains.items() for rule in found]
        if steps:
            lines += [f"*{name}", *steps, "COMMIT"]
    return "\n".join(lines) + "\n" if lines else ""


def holds_others(listed: str) -> bool:
    """Whether a table of iptables-nft, in the words of `nft -s list table`, has anything that is not ours.

    Asked of nft, because iptables-save leaves out what was not made by iptables.
    """
    return any(not _is_ours(head, lines) for head, lines in _blocks(listed).items())


def empty_hooks(listed: str) -> list[str]:
    """The built-in chains, of those we use, that hold no rule and only accept; in the same words."""
    found = ((head.removeprefix("chain "), lines) for head, lines in _blocks(listed).items())
    return [name for name, lines in found if name in BUILT_IN.values() and len(lines) == 1 and _accepts(lines)]


def _blocks(listed: str) -> dict[str, list[str]]:
    """What a table has, each with its lines. nft indents by a tab for each level."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in listed.splitlines():
        if line.startswith("\t\t"):
            lines.append(line.strip())
        elif line.startswith("\t") and line != "\t}":
            lines = found.setdefault(line.strip().removesuffix(" {"), [])
    return found


def _is_ours(head: str, lines: Sequence[str]) -> bool:
    """Our chains, and built-in ones that only accept and jump to ours."""
    kind, _, name = head.partition(" ")
    if kind != "chain" or name not in HOOKS:
        return kind == "chain" and name in OURS
    return _accepts(lines) and all(rule.rpartition(" jump ")[2] in OURS for rule in lines[1:])


def _accepts(lines: Sequence[str]) -> bool:
    """Whether a chain begins as one of iptables does that nobody gave another policy."""
    return bool(lines) and lines[0].startswith("type ") and lines[0].endswith(" policy accept;")


def _create(table: Table, names: dict[Chain, str]) -> Iterator[str]:
    for chain in table.chains:
        yield f"-N {names[chain]}"
    for chain in table.chains:
        if chain.hooked:
            yield f"-A {BUILT_IN[chain]} -j {names[chain]}"
    for rule in table.rules:
        yield f"-A {names[rule.chain]} {' '.join(_words(rule, names))}"


def _destroy(present: Listing, prefix: str) -> Iterator[str]:
    chains = {place.removeprefix(prefix): found for place, found in present.items() if place.startswith(prefix)}
    for chain, found in chains.items():
        if chain not in OURS:
            yield from (f"-D {chain} {rule}" for rule in found)
    ours = [chain for chain in chains if chain in OURS]
    yield from (f"-F {chain}" for chain in ours)
    yield from (f"-X {chain}" for chain in ours)


def _target(rule: str) -> str:
    if not any(name in rule for name in OURS):
        return ""  # spares the words of thousands of rules
    words = shlex.split(rule)  # a comment may have our names, too
    return words[words.index("-j") + 1] if "-j" in words[:-1] else ""


def _words(rule: Rule, names: dict[Chain, str]) -> Iterator[str]:
    yield from _match(rule.match)
    yield from _action(rule.action, names)


def _match(match: Match) -> Iterator[str]:
    yield from _option("-s", match.source)
    yield from _option("-d", match.destination)
    yield from _option("-i", match.in_interface)
    yield from _option("-o", match.out_interface)
    yield from _option("-p", match.protocol)
    yield from _option("--sport", match.sport)
    yield from _option("--dport", match.dport)
    yield from _option("--mark", match.mark, "mark")
    yield from _option("--mark", match.connmark, "connmark")
    yield from _option("--ctdir", match.direction.upper(), "conntrack")
    yield from _option("--uid-owner", match.uid, "owner")


def _option(name: str, value: str, module: str = "") -> Iterator[str]:
    if value:
        if module:
            yield from ("-m", module)
        if value.startswith("!"):
            yield "!"
        yield from (name, value.removeprefix("!"))


def _action(action: Action, names: dict[Chain, str]) -> tuple[str, ...]:
    match action:
        case Accept():
            return ("-j", "ACCEPT")
        case Return():
            return ("-j", "RETURN")
        case Jump(chain):
            return ("-j", names[chain])
        case Redirect(port):
            return ("-j", "REDIRECT", "--to-ports", str(port))
        case Tproxy(port, mark):
            return ("-j", "TPROXY", "--on-port", str(port), "--tproxy-mark", mark)
        case SetMark(mark):
            return ("-j", "MARK", "--set-xmark", mark)
        case SetConnmark(mark):
            return ("-j", "CONNMARK", "--set-xmark", mark)
        case RestoreMark():
            return ("-j", "CONNMARK", "--restore-mark", "--nfmask", "0xffffffff", "--ctmask", "0xffffffff")
        case Zone(number):
            return ("-j", "CT", "--zone", str(number))
