"""Reads the rules back and names exactly what is not as it should be.

Tools rewrite what they are given (127.0.0.1/32 or 127.0.0.1, 0xfff or 0x00000fff), each version in its own way. So
nothing is parsed here: the spec is applied to an empty namespace that exists just for that, and what the tool says
there is compared with what it says in the namespace in question.

Needs the right to make a namespace. Blocks: call it from a worker thread.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from ztunnel.linux.netns import bring_up_loopback, create_netns, in_netns
from ztunnel.linux.redirect.apply import apply, detect, fitting, present
from ztunnel.linux.redirect.model import Backend, CaptureSpec, Difference, Kind, Listing


def verify(spec: CaptureSpec, netns: int | None = None, backend: Backend | None = None) -> list[Difference]:
    """How the namespace differs from the spec; empty when it does not.

    Raises ConfigError for an impossible spec, PlatformError when a right or a tool is missing.
    """
    spec = fitting(spec, netns)
    expected = _expected(spec, backend or detect(netns))
    return differences(expected, present(netns))


def differences(expected: Listing, actual: Listing) -> list[Difference]:
    """Every rule that is missing, unexpected or in another order, place by place."""
    return [
        found
        for place in sorted(expected.keys() | actual.keys())
        for found in _in_place(place, expected.get(place), actual.get(place))
    ]


def _in_place(place: str, expected: list[str] | None, actual: list[str] | None) -> Iterator[Difference]:
    if expected == actual:
        return
    if actual is None and not expected:
        yield Difference(place, Kind.MISSING, "the chain")
    if expected is None and not actual:
        yield Difference(place, Kind.UNEXPECTED, "the chain")
    wanted, found = Counter(expected or ()), Counter(actual or ())
    for rule in (wanted - found).elements():
        yield Difference(place, Kind.MISSING, rule)
    for rule in (found - wanted).elements():
        yield Difference(place, Kind.UNEXPECTED, rule)
    if wanted == found and expected and actual:
        first = next(rule for rule, other in zip(actual, expected, strict=True) if rule != other)
        yield Difference(place, Kind.ORDER, first)


def _expected(spec: CaptureSpec, backend: Backend) -> Listing:
    scratch = create_netns()
    try:
        with in_netns(scratch):
            bring_up_loopback()
        apply(spec, scratch, backend)
        return present(scratch)
    finally:
        os.close(scratch)
