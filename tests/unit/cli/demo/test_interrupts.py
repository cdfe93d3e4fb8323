"""A signal ends the demo where it waits, and nowhere else."""

from __future__ import annotations

import signal

import pytest

from ztunnel.cli.demo.interrupts import SIGNALS, Interrupted, Interrupts


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_raised_at_the_next_wait(number: signal.Signals) -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(number)  # nothing happens here
        with pytest.raises(Interrupted, match=number.name) as raised:
            interrupts.pause(60)
    assert raised.value.number == number


def test_the_first_signal_counts_and_stays() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        for _ in range(2):
            with pytest.raises(Interrupted, match="SIGTERM"):
                interrupts.check()


def test_until_returns_what_was_found_or_none_in_time() -> None:
    looks = iter([None, None, "found"])
    with Interrupts() as interrupts:
        assert interrupts.until(lambda: next(looks), 60) == "found"
        assert interrupts.until(lambda: None, 0) is None


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in SIGNALS] == before
