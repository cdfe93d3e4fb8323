"""What a dump of callgrind says is read right, and the gate closes when an operation becomes dearer."""

from __future__ import annotations

from pathlib import Path

import pytest

from benches.instructions import baseline
from benches.instructions.callgrind import Count, read_dump

DUMP = """\
# callgrind format
version: 1
part: 1
positions: line
events: Ir
summary: 1117

ob=/usr/bin/python3.11
fl=???
fn=PyNumber_Add
0 100
cob=/site-packages/cryptography/hazmat/bindings/_rust.abi3.so
cfn=SSL_read
calls=1 0
0 1010
0 7

ob=/site-packages/cryptography/hazmat/bindings/_rust.abi3.so
fn=SSL_read
0 1000
cob=/lib/libc.so.6
cfn=memcpy
calls=2 0
0 10

ob=/lib/libc.so.6
fn=memcpy
12 10

totals: 1117
"""


def test_own_costs_are_told_from_those_of_the_cryptography_library_and_calls_count_once() -> None:
    assert read_dump(DUMP.splitlines()) == Count(own=100 + 7 + 10, crypto=1000)


@pytest.mark.parametrize(
    ("before", "now", "problem"),
    [
        (1000, 1100, ""),
        (1000, 1101, "needs +10.1% instructions"),
        (1000, 10, ""),
        (None, 1000, "has no baseline"),
        (1000, None, "is in the baseline, but no longer counted"),
    ],
)
def test_more_than_a_tenth_is_a_problem(before: int | None, now: int | None, problem: str) -> None:
    assert baseline.Difference("an operation", before, now).problem == problem


def test_every_operation_of_either_side_is_compared() -> None:
    assert baseline.compare({"a": 1, "gone": 2}, {"a": 1, "new": 3}) == [
        ("a", 1, 1),
        ("new", None, 3),
        ("gone", 2, None),
    ]


def test_an_update_replaces_one_build_and_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "baseline.json"
    monkeypatch.setattr(baseline, "build", lambda: "another build")
    assert baseline.load(path) is None
    baseline.save({"a": 1}, path)
    monkeypatch.undo()
    assert baseline.load(path) is None
    baseline.save({"a": 2}, path)
    baseline.save({"a": 3}, path)
    assert baseline.load(path) == {"a": 3}
    monkeypatch.setattr(baseline, "build", lambda: "another build")
    assert baseline.load(path) == {"a": 1}
