"""No hot operation has become dearer than its baseline; `./dev instructions` shows the same by hand."""

from __future__ import annotations

import pytest
from rich.console import Console

from benches.instructions import baseline
from benches.instructions.__main__ import table
from benches.instructions.callgrind import count
from benches.instructions.operations import HOT


@pytest.mark.timeout(1000)
@pytest.mark.usefixtures("valgrind")
def test_no_hot_operation_needs_a_tenth_more_instructions_than_its_baseline() -> None:
    before = baseline.load()
    if before is None:
        pytest.skip(f"no baseline for {baseline.build()}; `./dev instructions --update` makes one")
    counts = count("hot")
    Console(width=120).print(table(counts, before))
    assert list(counts) == [operation.name for operation in HOT]
    lines = baseline.compare(before, {name: each.own for name, each in counts.items()})
    problems = [f"{line.name} {line.problem}" for line in lines if line.problem]
    assert not problems, (
        f"{'; '.join(problems)}. Find what became dearer, or accept it: `./dev instructions --update`, and say why "
        "in the commit"
    )
