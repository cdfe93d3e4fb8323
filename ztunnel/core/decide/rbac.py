"""L4 authorization: which policies let a connection through, and the reason.

A policy is compiled once, when it arrives, into nested tuples of small predicates; a connection is then a walk
over those that apply to its destination. This module knows nothing of who applies which policy where.

The order of a decision: an enforced DENY that matches refuses; a policy that is listed on the workload but not
known refuses (nobody can say what it would have done); without enforced ALLOW policies everything else passes;
otherwise one ALLOW must match. Dry-run policies are evaluated and reported, and never change the outcome.

Whatever cannot be read (a CIDR that is none, a port out of range) never widens access:

=========  ==========================================  =============================================
action     in a positive list                          in a `not_` list
=========  ==========================================  =============================================
ALLOW      the entry never hits                        the whole match never matches
DENY       the whole list counts as hit                the exception is dropped
=========  ==========================================  =============================================
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from ipaddress import IPv4Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

import msgspec

from ztunnel.core.model.connection import Connection, Verdict
from ztunnel.core.model.policy import Action, Match, MatchKind, Policy, ServiceAccountMatch, StringMatch

NONE_ALLOWED = "allow policies exist, but none allowed"
"""Operators search their logs for this text and for `explicitly denied by: namespace/name`; never reword them."""

_V6_OFFSET = 1 << 32
_V4_MAPPED = 0xFFFF << 32


class Facts:
    """The attributes of one connection in the form that predicates compare; addresses are read when first needed."""

    def __init__(self, connection: Connection) -> None:
        identity = connection.identity
        self.namespace = identity.namespace if identity else ""
        self.principal = identity.principal if identity else None
        self.service_account = (identity.namespace, identity.service_account) if identity else None
        self.port = connection.destination.port
        self._connection = connection

    @cached_property
    def source(self) -> int:
        return _ip_number(self._connection.source.ip)

    @cached_property
    def destination(self) -> int:
        return _ip_number(self._connection.destination.ip)


Test = Callable[[Facts], bool]
Hit = Callable[[Any], bool]


class CompiledPolicy(msgspec.Struct, frozen=True, eq=False):
    """A policy made ready for `evaluate`; `problems` names every part that could not be read."""

    policy: Policy
    key: str
    action: Action
    dry_run: bool
    rules: tuple[tuple[tuple[tuple[Test, ...], ...], ...], ...]
    problems: tuple[str, ...] = ()

    def matches(self, facts: Facts) -> bool:
        """Any rule holds; a policy without rules never matches."""
        for rule in self.rules:  # noqa: SIM110, plain loops: this runs for every connection
            if _rule_holds(rule, facts):
                return True
        return False


class PolicyOutcome(msgspec.Struct, frozen=True):
    """How one policy sees a connection: the outcome of each of its rules."""

    key: str
    action: Action
    dry_run: bool
    matched: bool
    rules: tuple[bool, ...]
    problems: tuple[str, ...]


def evaluate(policies: Sequence[CompiledPolicy], unknown: Sequence[str], connection: Connection) -> Verdict:
    """May this connection pass? `policies` are those that apply, `unknown` the keys listed but not known."""
    if not policies and not unknown:
        return _NO_POLICIES
    facts = Facts(connection)
    notes: list[str] = []
    for policy in policies:
        if policy.action is Action.DENY and policy.matches(facts):
            if not policy.dry_run:
                return Verdict(
                    False, policy.key, f"explicitly denied by: {policy.key}{_caveat([policy])}", tuple(notes)
                )
            notes.append(f"dry run: would be denied by: {policy.key}{_caveat([policy])}")
    if unknown:
        names = ", ".join(unknown)
        return Verdict(False, unknown[0], f"listed on the workload but not known, so denied: {names}", tuple(notes))
    return _weigh_allows([policy for policy in policies if policy.action is Action.ALLOW], facts, notes)


def explain(policies: Sequence[CompiledPolicy], connection: Connection) -> tuple[PolicyOutcome, ...]:
    """Every policy's and rule's own outcome, also of those that `evaluate` would not have reached."""
    facts = Facts(connection)
    outcomes = []
    for policy in policies:
        rules = tuple(_rule_holds(rule, facts) for rule in policy.rules)
        outcomes.append(PolicyOutcome(policy.key, policy.action, policy.dry_run, any(rules), rules, policy.problems))
    return tuple(outcomes)


def compile_policy(policy: Policy) -> CompiledPolicy:
    """Never fails: what cannot be read is compiled so that it never widens access, and told in `problems`."""
    deny = policy.action is Action.DENY
    problems: list[str] = []
    rules = tuple(
        tuple(tuple(_compile_match(match, deny, problems) for match in clause) for clause in rule)
        for rule in policy.rules
    )
    return CompiledPolicy(policy, policy.key, policy.action, policy.dry_run, rules, tuple(problems))


# ---- evaluation ----

_NO_POLICIES = Verdict(True, "", "no policies apply")


def _weigh_allows(allows: list[CompiledPolicy], facts: Facts, notes: list[str]) -> Verdict:
    """The outcome when nothing denied: without enforced ALLOW policies yes, else one of them must match."""
    enforced = [policy for policy in allows if not policy.dry_run]
    allowed_by = next((policy for policy in enforced if policy.matches(facts)), None)
    if len(enforced) < len(allows):
        trials = [policy for policy in allows if policy.dry_run]
        hits = [policy.key for policy in trials if policy.matches(facts)]
        notes += [f"dry run: would be allowed by: {key}" for key in hits]
        if not hits and allowed_by is None:
            notes.append(f"dry run: would be denied, no dry-run allow policy matched{_caveat(trials)}")
    if allowed_by is not None:
        return Verdict(True, allowed_by.key, f"allowed by: {allowed_by.key}", tuple(notes))
    if not enforced:
        return Verdict(True, "", "no allow policies apply", tuple(notes))
    return Verdict(False, "", NONE_ALLOWED + _caveat(enforced), tuple(notes))


def _rule_holds(rule: tuple[tuple[tuple[Test, ...], ...], ...], facts: Facts) -> bool:
    """All clauses hold; a clause holds when it is empty or any of its matches does."""
    for clause in rule:
        if not clause:
            continue
        for match in clause:
            if _all_pass(match, facts):
                break
        else:
            return False
    return True


def _all_pass(tests: tuple[Test, ...], facts: Facts) -> bool:
    for test in tests:  # noqa: SIM110, as above
        if not test(facts):
            return False
    return True


def _caveat(policies: Sequence[CompiledPolicy]) -> str:
    """The unreadable parts of the policies behind a decision, in brackets; usually empty."""
    told = [f"{policy.key}: {problem}" for policy in policies for problem in policy.problems]
    return f" ({'; '.join(told)})" if told else ""


# ---- compilation ----


class _Kind(NamedTuple):
    """An attribute kind of Match: its field (and `not_` field), how its entries are prepared, what they compare."""

    field: str
    prepare: Callable[[Any], tuple[Hit, list[str]]]
    """Entries to a predicate of the readable ones, and the unreadable ones as text."""
    attribute: Callable[[Facts], Any]
    """None, the absence of an identity, never hits."""


def _compile_match(match: Match, deny: bool, problems: list[str]) -> tuple[Test, ...]:
    tests: list[Test] = []
    empty = True
    for kind in _KINDS:
        wanted, excluded = getattr(match, kind.field), getattr(match, f"not_{kind.field}")
        if wanted:
            empty = False
            hit, broken = kind.prepare(wanted)
            outcome = "taken as matching" if deny else "never matching"
            problems += [f"{kind.field} {text} cannot be read, {outcome}" for text in broken]
            if not (deny and broken):
                tests.append(_includes(hit, kind.attribute))
        if excluded:
            empty = False
            hit, broken = kind.prepare(excluded)
            outcome = "exception dropped" if deny else "never matching"
            problems += [f"not_{kind.field} {text} cannot be read, {outcome}" for text in broken]
            tests.append(_never if broken and not deny else _excludes(hit, kind.attribute))
    return (_never,) if empty else tuple(tests)


def _never(facts: Facts) -> bool:
    return False


def _includes(hit: Hit, attribute: Callable[[Facts], Any]) -> Test:
    def test(facts: Facts) -> bool:
        value = attribute(facts)
        return value is not None and hit(value)

    return test


def _excludes(hit: Hit, attribute: Callable[[Facts], Any]) -> Test:
    def test(facts: Facts) -> bool:
        value = attribute(facts)
        return value is None or not hit(value)

    return test


def _prepare_strings(entries: tuple[StringMatch, ...]) -> tuple[Hit, list[str]]:
    by_kind: dict[MatchKind, list[str]] = {kind: [] for kind in MatchKind}
    broken = []
    for entry in entries:
        if entry.kind in by_kind:
            by_kind[entry.kind].append(entry.value)
        else:
            broken.append(repr(entry))
    exact = frozenset(by_kind[MatchKind.EXACT])
    prefixes, suffixes = tuple(by_kind[MatchKind.PREFIX]), tuple(by_kind[MatchKind.SUFFIX])
    presence = bool(by_kind[MatchKind.PRESENCE])

    def hit(value: str) -> bool:
        return value in exact or (presence and value != "") or value.startswith(prefixes) or value.endswith(suffixes)

    return hit, broken


def _prepare_service_accounts(entries: tuple[ServiceAccountMatch, ...]) -> tuple[Hit, list[str]]:
    pairs = frozenset((entry.namespace, entry.service_account) for entry in entries)
    return pairs.__contains__, []


def _prepare_ports(entries: tuple[int, ...]) -> tuple[Hit, list[str]]:
    broken = [str(port) for port in entries if not 0 <= port <= 65535]
    return frozenset(entries).__contains__, broken


def _prepare_cidrs(entries: tuple[str, ...]) -> tuple[Hit, list[str]]:
    ranges, broken = [], []
    for text in entries:
        try:
            ranges.append(_cidr_range(text))
        except ValueError:
            broken.append(repr(text))
    starts: list[int] = []
    ends: list[int] = []
    for start, end in sorted(ranges):
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)

    def hit(number: int) -> bool:
        index = bisect_right(starts, number) - 1
        return index >= 0 and number <= ends[index]

    return hit, broken


def _cidr_range(text: str) -> tuple[int, int]:
    """First and last address of a CIDR (host bits may be set), numbered as `_ip_number` does."""
    network = ip_network(text, strict=False)
    first, last = int(network.network_address), int(network.broadcast_address)
    if isinstance(network, IPv6Network):
        if network.prefixlen >= 96 and network.network_address.ipv4_mapped is not None:
            return first - _V4_MAPPED, last - _V4_MAPPED
        return first + _V6_OFFSET, last + _V6_OFFSET
    return first, last


def _ip_number(ip: str) -> int:
    """Both families on one number line, IPv4 first, so that a range of one never holds an address of the other."""
    address = ip_address(ip)
    return int(address) if isinstance(address, IPv4Address) else int(address) + _V6_OFFSET


_KINDS = (
    _Kind("destination_ports", _prepare_ports, lambda facts: facts.port),
    _Kind("service_accounts", _prepare_service_accounts, lambda facts: facts.service_account),
    _Kind("principals", _prepare_strings, lambda facts: facts.principal),
    _Kind("namespaces", _prepare_strings, lambda facts: facts.namespace),
    _Kind("source_ips", _prepare_cidrs, lambda facts: facts.source),
    _Kind("destination_ips", _prepare_cidrs, lambda facts: facts.destination),
)
