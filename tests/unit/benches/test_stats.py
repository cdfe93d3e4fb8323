import pytest

from benches.stats import Summary, Target, ratio, summarize


def test_a_summary_is_the_median_and_the_extremes():
    assert summarize([3.0, 1.0, 100.0]) == Summary(median=3.0, low=1.0, high=100.0, rounds=3)


def test_one_disturbed_round_does_not_move_the_ratio():
    assert ratio([10.0, 10.0, 10.0], [5.0, 5.0, 0.001]) == 2.0


@pytest.mark.parametrize(("ours", "theirs"), [([], [1.0]), ([1.0], []), ([1.0], [0.0])])
def test_there_is_no_ratio_without_samples_or_with_a_zero_divisor(ours, theirs):
    assert ratio(ours, theirs) is None


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target(">=", 0.9), 0.9, True),
        (Target(">=", 0.9), 0.89, False),
        (Target("<=", 1.35), 1.35, True),
        (Target("<=", 1.35), 1.36, False),
    ],
)
def test_a_target_includes_its_bound(target, value, met):
    assert target.met(value) is met
