"""From samples to what is printed: medians, spreads and ratios. Pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple


class Summary(NamedTuple):
    """What the rounds of one measurement gave."""

    median: float
    low: float
    high: float
    rounds: int


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


class Target(NamedTuple):
    """A bound on a ratio to the reference design."""

    relation: Literal[">=", "<="]
    bound: float

    def met(self, value: float) -> bool:
        return value >= self.bound if self.relation == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"
