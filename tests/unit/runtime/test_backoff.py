import pytest

from ztunnel.runtime.backoff import Backoff


def test_delays_double_up_to_the_limit():
    backoff = Backoff(0.01, 0.05, lambda: 0.0)
    assert [backoff.next() for _ in range(5)] == [0.01, 0.02, 0.04, 0.05, 0.05]


def test_jitter_shortens_a_delay_by_at_most_half():
    backoff = Backoff(1, 8, lambda: 0.999999)
    assert backoff.next() == pytest.approx(0.5, abs=1e-3)
    assert backoff.next() == pytest.approx(1.0, abs=1e-3)


def test_success_begins_anew():
    backoff = Backoff(1, 8, lambda: 0.0)
    backoff.next()
    backoff.next()
    backoff.reset()
    assert backoff.next() == 1


@pytest.mark.parametrize(("first", "limit"), [(0, 1), (2, 1), (-1, 1)])
def test_senseless_limits_are_refused(first, limit):
    with pytest.raises(ValueError, match="first"):
        Backoff(first, limit, lambda: 0.0)
