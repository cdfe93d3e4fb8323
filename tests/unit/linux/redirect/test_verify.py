"""Verification names each rule that is not as it should be."""

from __future__ import annotations

from ztunnel.linux.redirect.verify import differences

EXPECTED = {"ipv4 nat OUTPUT": ["-j ISTIO_OUTPUT"], "ipv4 nat ISTIO_OUTPUT": ["one", "two", "three"], "empty": []}


def told(actual: dict[str, list[str]]) -> list[str]:
    return [str(difference) for difference in differences(EXPECTED, actual)]


def test_what_is_equal_differs_in_nothing() -> None:
    assert told(dict(EXPECTED)) == []


def test_a_rule_that_is_missing() -> None:
    assert told({**EXPECTED, "ipv4 nat ISTIO_OUTPUT": ["one", "three"]}) == ["ipv4 nat ISTIO_OUTPUT: missing: two"]


def test_a_rule_that_is_there_twice() -> None:
    twice = {**EXPECTED, "ipv4 nat OUTPUT": ["-j ISTIO_OUTPUT", "-j ISTIO_OUTPUT"]}
    assert told(twice) == ["ipv4 nat OUTPUT: unexpected: -j ISTIO_OUTPUT"]


def test_rules_in_another_order() -> None:
    swapped = {**EXPECTED, "ipv4 nat ISTIO_OUTPUT": ["one", "three", "two"]}
    assert told(swapped) == ["ipv4 nat ISTIO_OUTPUT: in another order: three"]


def test_chains_that_are_missing_or_too_many() -> None:
    actual = {place: rules for place, rules in EXPECTED.items() if place != "empty"}
    assert told({**actual, "more": []}) == ["empty: missing: the chain", "more: unexpected: the chain"]


def test_nothing_at_all_is_told_rule_by_rule() -> None:
    assert len(told({})) == 5
