import pytest

from benches.lines import Size
from benches.profiles import DEFAULT, DESIGNS, METRICS, PEERS, PROFILES
from benches.stats import BETTER_PEER, ITSELF

EVERY = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)


def test_no_name_selects_everything():
    assert DEFAULT.select("") == DEFAULT.lines


def test_lines_and_groups_can_be_mixed():
    assert [line.name for line in DEFAULT.select("first,cps1,pingpong")] == ["pp1", "pp32", "cps1", "first"]


def test_an_unknown_name_is_named_with_what_exists():
    with pytest.raises(ValueError, match=r"unknown: bulks; there are agent, bulk, connections"):
        DEFAULT.select("bulks,memory")


@EVERY
def test_every_goal_bounds_a_metric_of_a_line_against_somebody_measured(profile):
    assert {line for line, _ in profile.goals} <= {line.name for line in profile.lines}
    assert {metric for _, metric in profile.goals} <= set(METRICS)
    against = {goal.against for goals in profile.goals.values() for goal in goals}
    assert against <= {BETTER_PEER, ITSELF, *profile.designs}


@EVERY
def test_every_named_design_exists(profile):
    named = {name for line in profile.lines for name in (*line.only, *line.instead, *line.instead.values())}
    assert named | {*profile.designs, *profile.judged, *PEERS} <= set(DESIGNS)
    assert all(DESIGNS[name]().name == name for name in named)


@EVERY
def test_names_of_lines_are_not_names_of_groups_of_others(profile):
    groups = {
        line.group: {other.name for other in profile.lines if other.group == line.group} for line in profile.lines
    }
    assert all(line.name not in groups or line.name in groups[line.name] for line in profile.lines)
    assert len({line.name for line in profile.lines}) == len(profile.lines)


def test_quick_never_measures_more_than_was_asked_for():
    asked = Size(seconds=0.2, idle_connections=10, streams=20, crowd=30)
    assert asked.quick() == asked
    assert all(quick < full for quick, full in zip(Size().quick(), Size(), strict=True))
