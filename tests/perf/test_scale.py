"""The cost of a connection does not depend on how many others, pods, peers and workloads there are."""

from __future__ import annotations

import pytest

from benches.instructions.callgrind import count
from benches.instructions.operations import CLAIMS

TOLERANCE = 0.15


@pytest.mark.timeout(1000)
@pytest.mark.usefixtures("valgrind")
def test_many_neighbours_make_nothing_dearer() -> None:
    counts = count("scale")
    dearer = {}
    for claim in CLAIMS:
        few, many = counts[claim.few.name].own, counts[claim.many.name].own
        print(f"{claim.few.name} {few:,}; {claim.many.name} {many:,} instructions ({many / few - 1:+.1%})")
        if many > few * (1 + TOLERANCE):
            dearer[claim.what] = f"{many / few - 1:+.1%}"
    assert not dearer
