"""Growing delays between attempts.

Pure: randomness is an argument, so that tests choose it.
"""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays that double from `first` to `limit` seconds, each shortened by up to half at random.

    The jitter keeps many agents that lost the same server from coming back in step.
    """

    def __init__(self, first: float, limit: float, random: Callable[[], float]) -> None:
        """`random` gives numbers from 0 up to 1, like `random.random`."""
        if not 0 < first <= limit:
            raise ValueError(f"need 0 < first <= limit, not {first} and {limit}")
        self._first = first
        self._limit = limit
        self._random = random
        self._base = first

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        base, self._base = self._base, min(self._base * 2, self._limit)
        return base * (1 - self._random() / 2)

    def reset(self) -> None:
        """After a success: begin anew."""
        self._base = self._first
