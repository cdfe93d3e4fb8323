from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.core.decide import renew

TIMES = st.floats(0, 4e9)


def test_refresh_is_due_at_half_life() -> None:
    assert renew.after_success(not_before=1000, not_after=3000, now=1100).at == 2000


def test_a_certificate_beyond_its_half_life_is_refreshed_after_half_of_the_rest() -> None:
    assert renew.after_success(not_before=0, not_after=3000, now=2000).at == 2500


def test_a_certificate_about_to_end_does_not_make_a_busy_loop() -> None:
    assert renew.after_success(not_before=0, not_after=3000, now=2999.9).at == 3000.9
    assert renew.after_success(not_before=0, not_after=3000, now=5000).at == 5001


@given(TIMES, TIMES, TIMES)
def test_a_refresh_is_always_later_than_now(not_before: float, lifetime: float, now: float) -> None:
    due = renew.after_success(not_before=not_before, not_after=not_before + lifetime, now=now)
    assert due.at > now
    assert due.why


def test_a_retry_comes_after_the_delay() -> None:
    assert renew.after_failure(delay=16, now=50, expires=None).at == 66


def test_a_retry_is_not_later_than_the_end_of_the_certificate_in_use() -> None:
    assert renew.after_failure(delay=150, now=0, expires=20).at == 20
    assert renew.after_failure(delay=1, now=0, expires=20).at == 1


def test_a_certificate_that_has_ended_does_not_hurry_the_retry() -> None:
    assert renew.after_failure(delay=150, now=100, expires=20).at == 250


def test_an_urgent_request_is_tried_at_once_but_not_twice_in_a_second() -> None:
    assert renew.urgent(attempted=10, now=100).at == 100
    assert renew.urgent(attempted=99.75, now=100).at == 100.75


def test_a_clock_set_back_delays_an_urgent_request_by_a_second_at_most() -> None:
    assert renew.urgent(attempted=100_000, now=100).at == 101
