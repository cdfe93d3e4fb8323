"""When a certificate is due: at half life after success, after growing delays after failure.

Pure: the clock and the delays come as arguments. Numbers are ztunnel's (istio/ztunnel src/identity/manager.rs):
refresh at half of the lifetime, retry after 1 s doubling to 150 s, and once more at the moment when the previous
certificate ends.
"""

from __future__ import annotations

from typing import NamedTuple

FIRST_RETRY = 1.0
"""Seconds; also the shortest time between two attempts for one identity."""
LAST_RETRY = 150.0
"""Seconds."""


class Renewal(NamedTuple):
    """The next attempt: when (seconds since the epoch), and why then."""

    at: float
    why: str


def after_success(*, not_before: float, not_after: float, now: float) -> Renewal:
    """The refresh of a certificate that was just issued.

    A certificate that arrives beyond its half life (a very short lifetime, or a CA whose own end is near) is
    refreshed after half of what remains.
    """
    half = not_before + (not_after - not_before) / 2
    if half > now:
        return Renewal(half, "half of its lifetime is over")
    return Renewal(now + max((not_after - now) / 2, FIRST_RETRY), "half of its remaining lifetime is over")


def after_failure(*, delay: float, now: float, expires: float | None) -> Renewal:
    """The next try after a failure: `delay` seconds later, but not after the end of the certificate still in use.

    `expires` is that end, None without such a certificate.
    """
    if expires is not None and now < expires < now + delay:
        return Renewal(expires, "the previous certificate ends")
    return Renewal(now + delay, "the last attempt failed")


def urgent(*, attempted: float, now: float) -> Renewal:
    """The next try when a connection waits: at once, but no more than one attempt in FIRST_RETRY seconds.

    Never later than that either, whatever a clock that was set back makes of `attempted`.
    """
    return Renewal(min(max(now, attempted + FIRST_RETRY), now + FIRST_RETRY), "a connection waits for it")
