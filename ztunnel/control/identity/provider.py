"""Which TLS library this is, for people and for config_dump."""

from __future__ import annotations

from cryptography.hazmat.backends.openssl.backend import backend


def crypto_provider() -> str:
    """e.g. `OpenSSL 3.5.4 30 Sep 2025`: the one inside cryptography, which the engine uses too."""
    return backend.openssl_version_text()
