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
    """One certificate in both roles; an OpenSSL context is made when it is first needed."""

    def __init__(self, issued: CertificateIssued) -> None:
        self.issued = issued
        self._client: Context | None = None
        self._server: Context | None = None

    @property
    def client(self) -> Context:
        if self._client is None:
            self._client = Context(self.issued, server=False)
        return self._client

    @property
    def server(self) -> Context:
        if self._server is None:
            self._server = Context(self.issued, server=True)
        return self._server


class Certificates:
    def __init__(self, send: Callable[[Up], None], now: Callable[[], float]) -> None:
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
        with trio.move_on_after(WAIT):
            await event.wait()
        credentials = self.get(identity)
        if credentials is not None:
            return credentials
        if event in self._waiting.get(identity, ()):
            self._waiting[identity].remove(event)
            if not self._waiting[identity]:
                del self._waiting[identity]
        why = self._failures.get(identity, f"the CA did not answer within {WAIT:g} s")
        raise IdentityUnavailable(
            f"no certificate for {identity}: {why}", hint="`ztunnel show certs` tells the state of each certificate"
        )

    def issued(self, message: CertificateIssued) -> None:
        self._issued[message.identity] = Credentials(message)
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
