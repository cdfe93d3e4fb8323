"""Authorization: every matcher, the order of the decision, dry run, and that nothing unreadable widens access."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_samples import policy

from ztunnel.core.decide.rbac import compile_policy, evaluate, explain
from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Connection, Verdict
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.policy import (
    Action,
    Match,
    MatchKind,
    Policy,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
)

CLIENT = Identity("cluster.local", "demo", "client")
WITH_MTLS = Connection(CLIENT, Address("10.1.0.5", 33000), Address("10.1.0.9", 8080))
PLAIN = Connection(None, Address("10.1.0.5", 33000), Address("10.1.0.9", 8080))
OVER_V6 = Connection(CLIENT, Address("fd00::5", 33000), Address("fd00::9", 8080))
HIT = Match(destination_ports=(8080,))
MISS = Match(destination_ports=(9999,))


def exact(value: str) -> tuple[StringMatch, ...]:
    return (StringMatch(MatchKind.EXACT, value),)


def prefix(value: str) -> tuple[StringMatch, ...]:
    return (StringMatch(MatchKind.PREFIX, value),)


def suffix(value: str) -> tuple[StringMatch, ...]:
    return (StringMatch(MatchKind.SUFFIX, value),)


PRESENT = (StringMatch(MatchKind.PRESENCE),)


def judge(*policies: Policy, connection: Connection = WITH_MTLS, unknown: tuple[str, ...] = ()) -> Verdict:
    return evaluate([compile_policy(each) for each in policies], unknown, connection)


def matches(match: Match, connection: Connection = WITH_MTLS) -> bool:
    """Seen from both actions, which must agree when everything is readable."""
    allowed = judge(policy("p", Action.ALLOW, match), connection=connection).allowed
    denied = not judge(policy("p", Action.DENY, match), connection=connection).allowed
    assert allowed == denied
    return allowed


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (Match(), False),
        (Match(destination_ports=(8080, 9090)), True),
        (Match(destination_ports=(80,)), False),
        (Match(not_destination_ports=(8080,)), False),
        (Match(not_destination_ports=(80,)), True),
        (Match(destination_ports=(8080,), not_destination_ports=(8080,)), False),
        (Match(source_ips=("10.0.0.0/8",)), True),
        (Match(source_ips=("10.1.0.5/32",)), True),
        (Match(source_ips=("10.1.0.6/31",)), False),
        (Match(source_ips=("10.2.0.0/16", "10.1.0.0/24")), True),
        (Match(source_ips=("10.0.0.0/8", "10.0.1.0/24")), True),
        (Match(source_ips=("::/0",)), False),
        (Match(source_ips=("0.0.0.0/0",)), True),
        (Match(source_ips=("::ffff:10.1.0.0/112",)), True),
        (Match(not_source_ips=("10.1.0.0/24",)), False),
        (Match(not_source_ips=("192.168.0.0/16",)), True),
        (Match(destination_ips=("10.1.0.9/32",)), True),
        (Match(destination_ips=("10.1.0.5/32",)), False),
        (Match(not_destination_ips=("10.1.0.9/32",)), False),
        (Match(namespaces=exact("demo")), True),
        (Match(namespaces=exact("other")), False),
        (Match(namespaces=exact("other") + exact("demo")), True),
        (Match(namespaces=prefix("de")), True),
        (Match(namespaces=suffix("mo")), True),
        (Match(namespaces=PRESENT), True),
        (Match(not_namespaces=exact("demo")), False),
        (Match(not_namespaces=exact("other")), True),
        (Match(principals=exact("cluster.local/ns/demo/sa/client")), True),
        (Match(principals=exact("spiffe://cluster.local/ns/demo/sa/client")), False),
        (Match(principals=prefix("cluster.local/")), True),
        (Match(principals=suffix("/sa/client")), True),
        (Match(principals=suffix("/sa/server")), False),
        (Match(principals=PRESENT), True),
        (Match(not_principals=PRESENT), False),
        (Match(service_accounts=(ServiceAccountMatch("demo", "client"),)), True),
        (Match(service_accounts=(ServiceAccountMatch("other", "client"),)), False),
        (Match(service_accounts=(ServiceAccountMatch("demo", "server"),)), False),
        (Match(not_service_accounts=(ServiceAccountMatch("demo", "client"),)), False),
        (Match(namespaces=exact("demo"), destination_ports=(8080,)), True),
        (Match(namespaces=exact("demo"), destination_ports=(80,)), False),
    ],
)
def test_each_attribute_kind(match: Match, expected: bool) -> None:
    assert matches(match) is expected


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (Match(principals=PRESENT), False),
        (Match(principals=prefix("")), False),
        (Match(not_principals=PRESENT), True),
        (Match(namespaces=PRESENT), False),
        (Match(namespaces=exact("demo")), False),
        (Match(not_namespaces=exact("demo")), True),
        (Match(service_accounts=(ServiceAccountMatch("", ""),)), False),
        (Match(not_service_accounts=(ServiceAccountMatch("demo", "client"),)), True),
        (HIT, True),
    ],
)
def test_a_connection_without_identity_never_matches_a_positive_identity_attribute(
    match: Match, expected: bool
) -> None:
    assert matches(match, PLAIN) is expected


@pytest.mark.parametrize(
    ("cidr", "expected"),
    [("fd00::/64", True), ("::/0", True), ("0.0.0.0/0", False), ("fd00::6/127", False), ("fd01::/16", False)],
)
def test_ipv6_sources(cidr: str, expected: bool) -> None:
    assert matches(Match(source_ips=(cidr,)), OVER_V6) is expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((), False),
        (((),), True),
        ((((),),), True),
        ((((Match(),),),), False),
        ((((MISS, HIT),),), True),
        ((((HIT,), (MISS,)),), False),
        ((((HIT,), (HIT,)),), True),
        ((((HIT,), ()),), True),
        ((((MISS,),), ((HIT,),)), True),
    ],
    ids=[
        "no rules never match",
        "a rule without clauses matches",
        "a clause without matches holds",
        "an empty match does not match",
        "matches of a clause are an OR",
        "clauses of a rule are an AND",
        "all clauses hold",
        "an empty clause does not count",
        "rules are an OR",
    ],
)
def test_nesting(rules: Any, expected: bool) -> None:
    assert judge(policy("p", Action.ALLOW, rules=rules)).allowed is expected


ALLOW_HIT = policy("allow-hit", Action.ALLOW, HIT)
ALLOW_MISS = policy("allow-miss", Action.ALLOW, MISS)
DENY_HIT = policy("deny-hit", Action.DENY, HIT)
DENY_MISS = policy("deny-miss", Action.DENY, MISS)


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ((), Verdict(True, "", "no policies apply")),
        ((DENY_MISS,), Verdict(True, "", "no allow policies apply")),
        ((ALLOW_HIT,), Verdict(True, "demo/allow-hit", "allowed by: demo/allow-hit")),
        ((ALLOW_MISS,), Verdict(False, "", "allow policies exist, but none allowed")),
        ((ALLOW_MISS, ALLOW_HIT), Verdict(True, "demo/allow-hit", "allowed by: demo/allow-hit")),
        ((ALLOW_HIT, DENY_HIT), Verdict(False, "demo/deny-hit", "explicitly denied by: demo/deny-hit")),
        ((ALLOW_HIT, DENY_MISS), Verdict(True, "demo/allow-hit", "allowed by: demo/allow-hit")),
    ],
)
def test_order_of_the_decision(policies: tuple[Policy, ...], expected: Verdict) -> None:
    assert judge(*policies) == expected


def test_a_listed_but_unknown_policy_denies_and_is_named() -> None:
    verdict = judge(ALLOW_HIT, unknown=("demo/gone", "demo/lost"))
    assert verdict == Verdict(
        False, "demo/gone", "listed on the workload but not known, so denied: demo/gone, demo/lost"
    )


def test_a_known_denial_is_reported_before_an_unknown_policy() -> None:
    assert judge(DENY_HIT, unknown=("demo/gone",)).why == "explicitly denied by: demo/deny-hit"


def test_strict_peer_authentication_denies_plaintext_only() -> None:
    strict = policy("strict", Action.DENY, Match(not_principals=PRESENT))
    assert judge(strict).allowed
    assert judge(strict, connection=PLAIN).why == "explicitly denied by: demo/strict"


DRY_DENY = policy("dry-deny", Action.DENY, HIT, dry_run=True)
DRY_ALLOW_HIT = policy("dry-allow", Action.ALLOW, HIT, dry_run=True)
DRY_ALLOW_MISS = policy("dry-miss", Action.ALLOW, MISS, dry_run=True)


@pytest.mark.parametrize(
    ("policies", "allowed", "notes"),
    [
        ((DRY_DENY,), True, ("dry run: would be denied by: demo/dry-deny",)),
        ((DRY_ALLOW_HIT,), True, ("dry run: would be allowed by: demo/dry-allow",)),
        ((DRY_ALLOW_MISS,), True, ("dry run: would be denied, no dry-run allow policy matched",)),
        ((DRY_ALLOW_MISS, ALLOW_HIT), True, ()),
        ((DRY_ALLOW_HIT, ALLOW_MISS), False, ("dry run: would be allowed by: demo/dry-allow",)),
        ((DRY_DENY, DENY_HIT), False, ("dry run: would be denied by: demo/dry-deny",)),
    ],
)
def test_dry_run_is_told_and_never_enforced(
    policies: tuple[Policy, ...], allowed: bool, notes: tuple[str, ...]
) -> None:
    verdict = judge(*policies)
    assert verdict.allowed is allowed
    assert verdict.dry_run == notes


UNREADABLE = "10.0.0.0/99"


@pytest.mark.parametrize(
    "match",
    [
        Match(source_ips=(UNREADABLE,)),
        Match(not_source_ips=(UNREADABLE,)),
        Match(not_source_ips=(UNREADABLE, "192.168.0.0/16")),
        Match(destination_ips=("nonsense",), destination_ports=(8080,)),
        Match(destination_ports=(70000,)),
        Match(not_destination_ports=(-1,)),
        Match(principals=(StringMatch("Regex", ".*"),)),  # type: ignore[arg-type]
    ],
)
def test_an_unreadable_part_never_matches_in_allow_and_always_in_deny(match: Match) -> None:
    allow = judge(policy("p", Action.ALLOW, match))
    deny = judge(policy("p", Action.DENY, match))
    assert not allow.allowed
    assert not deny.allowed
    assert allow.why.startswith("allow policies exist, but none allowed (demo/p: ")
    assert deny.why.startswith("explicitly denied by: demo/p (demo/p: ")
    assert "cannot be read" in allow.why
    assert "cannot be read" in deny.why


def test_the_readable_rest_of_an_allow_list_still_counts() -> None:
    assert judge(policy("p", Action.ALLOW, Match(source_ips=(UNREADABLE, "10.0.0.0/8")))).allowed


def test_the_other_kinds_of_a_broken_deny_still_narrow_it() -> None:
    assert judge(policy("p", Action.DENY, Match(source_ips=(UNREADABLE,), destination_ports=(9999,)))).allowed


def test_explain_gives_the_outcome_of_every_rule() -> None:
    two_rules = policy("two", Action.ALLOW, rules=(((MISS,),), ((HIT,),)))
    outcomes = explain([compile_policy(DENY_MISS), compile_policy(two_rules)], WITH_MTLS)
    assert [(each.key, each.matched, each.rules) for each in outcomes] == [
        ("demo/deny-miss", False, (False,)),
        ("demo/two", True, (False, True)),
    ]


# ---- properties ----

STRINGS = st.builds(StringMatch, st.sampled_from(list(MatchKind)), st.sampled_from(["", "demo", "de", "mo", "x"]))
CIDRS = st.sampled_from(["10.0.0.0/8", "10.1.0.5/32", "10.1.0.4/30", "fd00::/16", "0.0.0.0/0", "::/0", UNREADABLE, "?"])
PORTS = st.sampled_from([80, 8080, 70000])
ACCOUNTS = st.builds(ServiceAccountMatch, st.sampled_from(["demo", "x"]), st.sampled_from(["client", "x"]))


def lists(entries: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(entries, max_size=2).map(tuple)


FIELDS = {
    field: entries
    for kind, entries in {
        "namespaces": STRINGS,
        "principals": STRINGS,
        "service_accounts": ACCOUNTS,
        "source_ips": CIDRS,
        "destination_ips": CIDRS,
        "destination_ports": PORTS,
    }.items()
    for field in (kind, f"not_{kind}")
}
MATCHES = st.fixed_dictionaries({}, optional={field: lists(entries) for field, entries in FIELDS.items()}).map(
    lambda fields: Match(**fields)
)
POLICIES = st.builds(
    Policy,
    name=st.sampled_from(["a", "b", "c"]),
    namespace=st.just("demo"),
    scope=st.just(PolicyScope.NAMESPACE),
    action=st.sampled_from(list(Action)),
    rules=lists(lists(lists(MATCHES))),
    dry_run=st.booleans(),
)
CONNECTIONS = st.sampled_from([WITH_MTLS, PLAIN, OVER_V6])


@given(MATCHES, CONNECTIONS)
def test_a_denying_match_covers_at_least_what_an_allowing_one_does(match: Match, connection: Connection) -> None:
    allowed = judge(policy("p", Action.ALLOW, match), connection=connection).allowed
    denied = not judge(policy("p", Action.DENY, match), connection=connection).allowed
    assert denied or not allowed


@given(st.lists(POLICIES, max_size=4), CONNECTIONS)
def test_one_more_deny_policy_never_opens_and_one_more_allow_policy_never_denies_what_an_allow_let_in(
    policies: list[Policy], connection: Connection
) -> None:
    before = judge(*policies, connection=connection)
    with_deny = judge(*policies, DENY_HIT, connection=connection)
    assert before.allowed or not with_deny.allowed
    with_allow = judge(*policies, ALLOW_MISS, connection=connection)
    if before.policy and before.allowed:
        assert with_allow.allowed


@given(st.lists(POLICIES, max_size=4), CONNECTIONS)
def test_dry_run_policies_change_nothing(policies: list[Policy], connection: Connection) -> None:
    enforced = [each for each in policies if not each.dry_run]
    with_trials, without = judge(*policies, connection=connection), judge(*enforced, connection=connection)
    assert (with_trials.allowed, with_trials.policy) == (without.allowed, without.policy)


@given(st.lists(POLICIES, max_size=4), CONNECTIONS)
def test_any_unknown_policy_denies(policies: list[Policy], connection: Connection) -> None:
    assert not judge(*policies, connection=connection, unknown=("demo/gone",)).allowed
