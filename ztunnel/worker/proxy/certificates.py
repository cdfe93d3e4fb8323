"""The certificates that this worker may use: what the control half issued, by identity, ready for handshakes.

A certificate that is missing is asked for upwards, once, however many connections wait. Keys exist only here and
in OpenSSL's memory.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ztunnel.core.errors import IdentityUnavailable
from ztunnel.core.model.identity import Identity
from ztunnel.link.messages import CertificateFailed, CertificateIssued, CertificateWanted, Priority, Up
from ztunnel.worker.engine.tls import Context

WAIT = 10.0
"""Seconds that a connection waits for a certificate."""


class Credentials:
    """One certificate in both roles. Raises IdentityUnavailable when OpenSSL cannot use it."""

    def __init__(self, issued: CertificateIssued) -> None:
        self.issued = issued
        self.client = Context(issued, server=False)
        self.server = Context(issued, server=True)


class Certificates:
    def __init__(self, send: Callable[[Up], object], now: Callable[[], float]) -> None:
        self._send = send
        self._now = now
        self._issued: dict[Identity, Credentials] = {}
        self._waiting: dict[Identity, list[trio.Event]] = {}
        self._failures: dict[Identity, str] = {}

    def __len__(self) -> int:
        return len(self._issued)

    def get(self, identity: Identity) -> Credentials | None:
        """The credentials, if they are there and still valid."""
        credentials = self._issued.get(identity)
        if credentials is not None and credentials.issued.not_after <= self._now():
            return None
        return credentials

    def warm_up(self, identity: Identity) -> None:
        """A pod of this identity is here: have the certificate before its first connection."""
        if self.get(identity) is None and identity not in self._waiting:
            self._send(CertificateWanted(identity, Priority.WARMUP))

    async def wait(self, identity: Identity) -> Credentials:
        """Raises IdentityUnavailable when the control half cannot get it, or not in time."""
        credentials = self.get(identity)
        if credentials is not None:
            return credentials
        event = trio.Event()
        waiting = self._waiting.setdefault(identity, [])
        if not waiting:
            self._failures.pop(identity, None)
            self._send(CertificateWanted(identity, Priority.NOW))
        waiting.append(event)
        try:
            with trio.move_on_after(WAIT):
                await event.wait()
        finally:
            if not event.is_set():
                waiting.remove(event)
                if not waiting:
                    del self._waiting[identity]
        credentials = self.get(identity)
        if credentials is not None:
            return credentials
        late = "what was issued has expired" if event.is_set() else f"the CA did not answer within {WAIT:g} s"
        why = self._failures.get(identity, late)
        raise IdentityUnavailable(
            f"no certificate for {identity}: {why}", hint="`ztunnel show certs` tells the state of each certificate"
        )

    def want_again(self) -> None:
        """A control half is there, which knows of nothing: have it keep fresh what is used, and get what is missing."""
        for identity in self._issued.keys() - self._waiting.keys():
            self._send(CertificateWanted(identity, Priority.WARMUP))
        for identity in self._waiting:
            self._send(CertificateWanted(identity, Priority.NOW))

    def issued(self, message: CertificateIssued) -> None:
        try:
            self._issued[message.identity] = Credentials(message)
        except IdentityUnavailable as error:
            self._failures[message.identity] = str(error)
        else:
            self._failures.pop(message.identity, None)
        self._wake(message.identity)

    def failed(self, message: CertificateFailed) -> None:
        self._failures[message.identity] = message.why
        self._wake(message.identity)

    def forget(self, identity: Identity) -> None:
        self._issued.pop(identity, None)

    def _wake(self, identity: Identity) -> None:
        for event in self._waiting.pop(identity, ()):
            event.set()
