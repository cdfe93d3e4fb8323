"""Keeps a fresh certificate for every identity that somebody wants.

One entry and one task per identity: fetch, wait until the certificate is due (core.decide.renew says when), fetch
again. A failed refresh keeps the previous certificate until it ends. Open connections are not touched: the worker
uses a new certificate for new handshakes.

Must not know where certificates come from (a Source does) nor who uses them (messages go to `send`).
Behaviour follows ztunnel's SecretManager (istio/ztunnel src/identity/manager.rs), except that a connection that
waits gets a new attempt at once instead of the error of an old one.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

import trio

from ztunnel.control.identity.certificate import (
    IssuedCertificate,
    Source,
    check_issued,
    dump_entry,
    read_facts,
    rfc3339,
)
from ztunnel.control.identity.slots import PrioritySlots
from ztunnel.core.decide import renew
from ztunnel.core.errors import ZtunnelError
from ztunnel.core.model.identity import Identity
from ztunnel.link.messages import CertificateFailed, CertificateForgotten, CertificateIssued, Priority
from ztunnel.runtime.backoff import Backoff

MAX_CONCURRENT = 8
"""Requests to the CA at once (ztunnel's limit)."""
FETCH_TIMEOUT = 60.0
"""Seconds for one answer; sources have shorter limits of their own for what they talk to."""
CLOCK_CHECK = 60.0
"""Seconds after which a sleeper looks at the clock again: timers do not count a suspended machine's time."""
_REFRESH_RANK = max(priority.value for priority in Priority) + 1
"""Behind every request: nobody waits for a refresh at half life."""

CertificateMessage = CertificateIssued | CertificateFailed | CertificateForgotten

log = logging.getLogger("ztunnel.control.identity")


class _Entry:
    """What is known of one identity."""

    def __init__(self, identity: Identity, rank: int, backoff: Backoff) -> None:
        self.identity = identity
        self.rank = rank
        self.certificate: IssuedCertificate | None = None
        self.error = ""
        self.backoff = backoff
        self.attempted = 0.0
        self.busy = True
        """Fetching or about to: an answer will follow."""
        self.due = 0.0
        self.answered = trio.Event()
        """There was a certificate, or a failure."""
        self.wake = trio.Event()
        self.scope = trio.CancelScope()

    def valid(self, now: float) -> IssuedCertificate | None:
        """The certificate, if there is one that has not ended."""
        if self.certificate is not None and now < self.certificate.not_after:
            return self.certificate
        return None


class CertificateManager:
    """`run` it in a nursery; `want` and `forget` return at once, answers go to `send`, which must not block.

    `clock` gives seconds since the epoch, `jitter` random numbers in [0, 1).
    """

    def __init__(
        self,
        source: Source,
        send: Callable[[CertificateMessage], None],
        *,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._source = source
        self._send = send
        self._clock = clock
        self._jitter = jitter
        self._entries: dict[Identity, _Entry] = {}
        self._slots = PrioritySlots(MAX_CONCURRENT)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. What was wanted before is fetched now."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for entry in self._entries.values():
                    nursery.start_soon(self._keep, entry)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def want(self, identity: Identity, priority: Priority) -> None:
        """Answered by CertificateIssued or CertificateFailed, at once when the answer is known.

        NOW after a failure starts a new attempt at once, at most one in renew.FIRST_RETRY seconds.
        """
        entry = self._entries.get(identity)
        if entry is None:
            backoff = Backoff(renew.FIRST_RETRY, renew.LAST_RETRY, self._jitter)
            entry = self._entries[identity] = _Entry(identity, priority.value, backoff)
            if self._nursery is not None:
                self._nursery.start_soon(self._keep, entry)
            return
        now = self._clock()
        certificate = entry.valid(now)
        if certificate is not None:
            self._send(certificate.message(identity))
        elif entry.busy:
            entry.rank = min(entry.rank, priority.value)
        elif priority is Priority.NOW:
            entry.rank = priority.value
            entry.due = min(entry.due, renew.urgent(attempted=entry.attempted, now=now).at)
            entry.wake.set()
        else:
            self._send(CertificateFailed(identity, entry.error))

    def forget(self, identity: Identity) -> None:
        """Drop the certificate and its key; nothing happens when the identity is not known."""
        entry = self._entries.pop(identity, None)
        if entry is not None:
            entry.scope.cancel()
            entry.answered.set()
            self._send(CertificateForgotten(identity))

    async def wait_answered(self, identity: Identity) -> None:
        """Until what was wanted has been issued, or refused for the first time. At once if nobody wanted it."""
        entry = self._entries.get(identity)
        if entry is not None:
            await entry.answered.wait()

    def snapshot(self) -> list[dict[str, Any]]:
        """`certificates` of config_dump, by identity (ztunnel's keys). Never a key."""
        now = self._clock()
        entries = sorted(self._entries.values(), key=lambda entry: str(entry.identity))
        return [_dump(entry, now) for entry in entries]

    async def _keep(self, entry: _Entry) -> None:
        with entry.scope:
            while True:
                async with self._slots.hold(lambda: entry.rank):
                    await self._attempt(entry)
                entry.busy = False
                entry.rank = _REFRESH_RANK
                await self._wait_until_due(entry)
                entry.busy = True

    async def _attempt(self, entry: _Entry) -> None:
        entry.attempted = self._clock()
        try:
            with trio.fail_after(FETCH_TIMEOUT):
                issued = await self._source.fetch(entry.identity)
            check_issued(entry.identity, issued, now=self._clock())
        except trio.TooSlowError:
            self._failed(entry, f"no answer from the certificate source within {FETCH_TIMEOUT:.0f} s")
        except ZtunnelError as error:
            self._failed(entry, f"{error} ({error.hint})" if error.hint else str(error))
        else:
            self._issued(entry, issued)
        entry.answered.set()

    def _issued(self, entry: _Entry, issued: IssuedCertificate) -> None:
        entry.certificate, entry.error = issued, ""
        entry.backoff.reset()
        renewal = renew.after_success(not_before=issued.not_before, not_after=issued.not_after, now=self._clock())
        entry.due = renewal.at
        log.info(
            "certificate for %s until %s, refresh at %s",
            entry.identity,
            rfc3339(issued.not_after),
            rfc3339(renewal.at),
        )
        self._send(issued.message(entry.identity))

    def _failed(self, entry: _Entry, why: str) -> None:
        now = self._clock()
        entry.error = why
        certificate = entry.valid(now)
        renewal = renew.after_failure(
            delay=entry.backoff.next(),
            now=now,
            expires=None if certificate is None else certificate.not_after,
        )
        entry.due = renewal.at
        if certificate is None:
            entry.certificate = None
            log.warning("no certificate for %s: %s; next try in %.1f s", entry.identity, why, renewal.at - now)
            self._send(CertificateFailed(entry.identity, why))
        else:
            log.warning(
                "refresh of the certificate for %s failed: %s; the previous one stays until %s, next try in %.1f s",
                entry.identity,
                why,
                rfc3339(certificate.not_after),
                renewal.at - now,
            )

    async def _wait_until_due(self, entry: _Entry) -> None:
        while (delay := entry.due - self._clock()) > 0:
            entry.wake = trio.Event()
            with trio.move_on_after(min(delay, CLOCK_CHECK)):
                await entry.wake.wait()


def _dump(entry: _Entry, now: float) -> dict[str, Any]:
    certificate = entry.valid(now)
    if certificate is None:
        state = f"Unavailable: {entry.error or 'the certificate ended'}" if _tried(entry) else "Initializing"
        return {"identity": str(entry.identity), "state": state, "certChain": [], "rootCerts": []}
    return {
        "identity": str(entry.identity),
        "state": "Available",
        "certChain": [dump_entry(facts) for facts in read_facts(certificate.chain_pem)],
        "rootCerts": [dump_entry(facts) for facts in read_facts(certificate.roots_pem)],
    }


def _tried(entry: _Entry) -> bool:
    return bool(entry.error) or entry.certificate is not None
