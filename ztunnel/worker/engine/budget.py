"""How much unproductive work a peer may cause on one tunnel before it is told to calm down.

Resets of streams that were never answered (rapid reset, CVE-2023-44487), PING and SETTINGS floods and the like
cost a token each. Tokens come back with time and with carried data, so that a busy, well-behaved peer never runs
out.
"""

from __future__ import annotations

BURST = 2000.0
"""Tokens of a full budget."""
PER_SECOND = 200.0
"""Tokens that come back in a second."""
PER_BYTE = 1 / 4096
"""Tokens that come back with a byte of DATA for an application. Not with frames: tiny ones would pay for floods."""
PER_CONNECTION = 2.0
"""Tokens that come back with a stream that is opened or answered: late frames may follow when it is closed."""


class Budget:
    __slots__ = ("_at", "_tokens")

    def __init__(self, now: float) -> None:
        self._tokens = BURST
        self._at = now

    def spend(self, now: float, cost: float = 1.0) -> bool:
        """Pay for one unproductive frame; False when the budget is exhausted. `now` is monotonic seconds."""
        self._tokens = min(BURST, self._tokens + (now - self._at) * PER_SECOND) - cost
        self._at = now
        return self._tokens >= 0

    def earn(self, tokens: float) -> None:
        self._tokens = min(BURST, self._tokens + tokens)
