import pytest

from benches.stats import ITSELF, Goal, Ratio, Summary, agree, ratio, ratio_to_better, summarize


def test_a_summary_is_the_median_and_the_extremes():
    assert summarize([3.0, 1.0, 100.0]) == Summary(median=3.0, low=1.0, high=100.0, rounds=3)


def test_one_disturbed_round_does_not_move_the_ratio():
    assert ratio([10.0, 10.0, 10.0], [5.0, 5.0, 0.001]) == 2.0


@pytest.mark.parametrize(("ours", "theirs"), [([], [1.0]), ([1.0], []), ([1.0], [0.0])])
def test_there_is_no_ratio_without_samples_or_with_a_zero_divisor(ours, theirs):
    assert ratio(ours, theirs) is None


@pytest.mark.parametrize(("more", "expected"), [(True, Ratio(0.5, "fast")), (False, Ratio(2.0, "slow"))])
def test_the_better_peer_has_more_throughput_or_less_cost(more, expected):
    assert ratio_to_better([10.0], {"slow": [5.0], "fast": [20.0]}, more=more) == expected


def test_without_peers_nobody_is_better():
    assert ratio_to_better([10.0], {"dead": []}, more=True) is None


@pytest.mark.parametrize(("value", "tie"), [(1.0, True), (1.09, True), (0.91, True), (1.11, False), (0.89, False)])
def test_less_than_a_tenth_apart_is_a_tie(value, tie):
    assert Ratio(value, "envoy").tie is tie


@pytest.mark.parametrize(("one", "other", "same"), [(1.0, 1.05, True), (1.05, 1.0, True), (1.0, 1.2, False)])
def test_campaigns_agree_whichever_was_first(one, other, same):
    assert agree(one, other) is same


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (Goal(">=", 0.9), 0.9, True),
        (Goal(">=", 0.9), 0.89, False),
        (Goal("<=", 1.35), 1.35, True),
        (Goal("<=", 1.35), 1.36, False),
    ],
)
def test_a_goal_includes_its_bound(goal, value, met):
    assert goal.met(value) is met


def test_a_goal_says_whom_it_is_measured_against():
    goals = (Goal(">=", 1.1), Goal("<=", 1.35, "envoy"), Goal("<=", 45, ITSELF))
    assert [str(goal) for goal in goals] == [">= 1.1x", "<= 1.35x envoy's", "<= 45"]
