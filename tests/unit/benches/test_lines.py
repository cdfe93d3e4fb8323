import pytest

from benches.lines import LINES, TARGETS, UNITS, select


def test_no_name_selects_everything():
    assert select("") == LINES


def test_lines_and_groups_can_be_mixed():
    assert [line.name for line in select("memory,cps1,pingpong")] == ["pp1", "pp32", "cps1", "memory"]


def test_an_unknown_name_is_named_with_what_exists():
    with pytest.raises(ValueError, match=r"unknown: bulks; there are bulk, connections"):
        select("bulks,memory")


def test_every_target_bounds_a_metric_that_a_line_measures():
    assert {line for line, _ in TARGETS} <= {line.name for line in LINES}
    assert {metric for _, metric in TARGETS} <= set(UNITS)
