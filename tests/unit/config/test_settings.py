import pytest

from ztunnel.config.settings import Settings


@pytest.mark.parametrize(
    ("deadline", "grace", "seconds"),
    [
        (None, None, 5),
        (None, 30, 25),
        (None, 11, 6),
        (None, 10, 9),
        (None, 4, 3),
        (None, 1, 1),
        (None, 0, 1),
        (2.5, 30, 2.5),
    ],
)
def test_the_drain_ends_a_little_before_kubernetes_kills(deadline, grace, seconds):
    settings = Settings(connection_termination_deadline=deadline, termination_grace_period_seconds=grace)
    assert settings.drain_deadline == seconds


def test_the_user_timeout_is_what_keepalive_would_take():
    assert Settings().user_timeout is None
    assert Settings(user_timeout_enabled=True).user_timeout == 1800
    longest = Settings(user_timeout_enabled=True, keepalive_interval=32767.0, keepalive_retries=127)
    assert longest.user_timeout == 2147483, "and never more than the kernel takes"


def test_our_capture_ports_are_illegal_destinations():
    assert Settings().illegal_ports == {15001, 15006, 15008}


def test_the_answer_of_a_peer_may_take_longer_than_its_own_connect():
    settings = Settings()
    assert settings.connect_response_timeout > settings.connect_timeout
