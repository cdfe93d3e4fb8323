"""From samples to what is printed: medians, spreads, ratios and verdicts. Pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

TIE = 0.10
"""Ratios and campaigns that differ by less are the same: the machine moves them by as much."""

BETTER_PEER = "better peer"
"""What a goal is measured against: the peer that is best at this very metric."""
ITSELF = ""
"""A goal bounds the value, not a ratio."""


class Summary(NamedTuple):
    """What the rounds of one measurement gave."""

    median: float
    low: float
    high: float
    rounds: int


class Metric(NamedTuple):
    """A kind of number; `more` says that more of it is better, `compared` that a ratio to a peer's means something."""

    unit: str
    more: bool = False
    compared: bool = True


class Ratio(NamedTuple):
    """Our median divided by a peer's."""

    value: float
    peer: str

    @property
    def tie(self) -> bool:
        return abs(self.value - 1) < TIE


class Goal(NamedTuple):
    """A bound that the project sets itself."""

    relation: Literal[">=", "<="]
    bound: float
    against: str = BETTER_PEER
    """A peer, BETTER_PEER or ITSELF."""

    def met(self, value: float) -> bool:
        return value >= self.bound if self.relation == ">=" else value <= self.bound

    def __str__(self) -> str:
        whom = "" if self.against in (BETTER_PEER, ITSELF) else f" {self.against}'s"
        return f"{self.relation} {self.bound:g}{'' if self.against == ITSELF else 'x'}{whom}"


def summarize(samples: Sequence[float]) -> Summary:
    """Median, minimum and maximum of at least one sample."""
    return Summary(statistics.median(samples), min(samples), max(samples), len(samples))


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> float | None:
    """Ratio of the medians; None when one side has no samples or theirs is zero.

    Medians before the division: a ratio per round would weigh one disturbed round of the divisor without bound.
    """
    a, b = list(ours), list(theirs)
    if not a or not b or not statistics.median(b):
        return None
    return statistics.median(a) / statistics.median(b)


def ratio_to_better(ours: Sequence[float], peers: Mapping[str, Sequence[float]], *, more: bool) -> Ratio | None:
    """Ours to the peer that is best at it; None without samples of ours, or of any peer that are not zero."""
    found = [Ratio(value, peer) for peer, theirs in peers.items() if (value := ratio(ours, theirs)) is not None]
    if not found:
        return None
    # The better a peer is, the worse is our ratio to it.
    return min(found) if more else max(found)


def agree(one: float, other: float) -> bool:
    """Whether two campaigns found the same: neither is above the other by TIE."""
    low, high = sorted((one, other))
    return high <= low * (1 + TIE)
