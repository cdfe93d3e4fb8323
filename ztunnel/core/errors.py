"""Error families by who can act on them.

Every error that ends a connection or a command belongs to one family here. The family fixes what the other
side sees (HTTP status in a tunnel), what the metrics say (Istio's response flag) and what the operator is
told to do next (hint). Errors outside these families are bugs and crash on purpose.
"""

from __future__ import annotations

from typing import ClassVar


class ZtunnelError(Exception):
    """Base of every expected failure. `str(error)` says what happened and to whom; `hint` says what to do."""

    flag: ClassVar[str] = "CONNECT"
    """Istio response flag (reference: Envoy's RESPONSE_FLAGS as ztunnel uses them)."""
    status: ClassVar[int] = 503
    """HTTP status that a CONNECT gets when this ends it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(ZtunnelError):
    """The operator's configuration is wrong. `problems` lists every mistake, not just the first."""

    def __init__(self, message: str, *, problems: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.problems = problems


class PolicyDenied(ZtunnelError):
    """A policy refused the connection: expected, nothing is broken."""

    flag = "DENY"
    status = 401


class PeerError(ZtunnelError):
    """The remote end broke a protocol rule (TLS, HTTP/2, CONNECT)."""

    flag = "H2_HANDSHAKE_FAILURE"
    status = 400


class TlsError(PeerError):
    """The TLS handshake failed or the peer's identity is not the expected one."""

    flag = "TLS_FAILURE"
    status = 503


class UpstreamError(ZtunnelError):
    """The destination refused, timed out or went away."""


class IdentityUnavailable(ZtunnelError):
    """No certificate for the workload: the CA refused or cannot be reached."""

    flag = "IDENTITY_ERROR"


class PlatformError(ZtunnelError):
    """The kernel, a missing right or a missing tool stands in the way."""
