"""What a peer may waste before it is told to calm down."""

from __future__ import annotations

from ztunnel.worker.engine.budget import BURST, PER_BYTE, PER_SECOND, Budget


def test_a_burst_is_paid_and_no_more() -> None:
    budget = Budget(0.0)
    assert all(budget.spend(0.0) for _ in range(int(BURST)))
    assert not budget.spend(0.0)


def test_tokens_come_back_with_time_up_to_a_burst() -> None:
    budget = Budget(0.0)
    assert budget.spend(0.0, BURST)
    assert not budget.spend(0.0)
    assert budget.spend(1.0, PER_SECOND - 2)
    assert not budget.spend(1.0, 5)
    assert budget.spend(1e6, BURST)
    assert not budget.spend(1e6, 1)


def test_carried_bytes_earn_but_are_never_hoarded() -> None:
    budget = Budget(0.0)
    budget.earn(BURST)
    assert budget.spend(0.0, BURST)
    budget.earn(4096 * PER_BYTE)
    assert budget.spend(0.0)
    assert not budget.spend(0.0)
