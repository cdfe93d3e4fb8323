"""Certificates for tests: a mesh CA in memory and leaves of every kind, good and bad.

    mesh = MeshPki()
    mesh.leaf("spiffe://cluster.local/ns/default/sa/web")     a CertificateIssued, as a worker gets it
    mesh.expired(...), MeshPki().leaf(...) (another CA), mesh.odd(uris=[...]) (no, several or foreign names)

Certificates really are valid around `now` (the machine's clock unless told), because TLS stacks look at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ztunnel.control.identity.ca import LocalCa, mint_root
from ztunnel.core.model.identity import Identity, parse_identity
from ztunnel.link.messages import CertificateIssued

YEAR = 365 * 86400.0
WEB = Identity("cluster.local", "default", "web")
CLIENT = Identity("cluster.local", "default", "client")
STRANGER = Identity("other.domain", "default", "client")
"""Of another trust domain."""


class MeshPki:
    """A root that has been valid for a year already, so that leaves of the past can be made."""

    def __init__(self, *, now: float | None = None) -> None:
        self.now = time.time() if now is None else now
        self.root, self._root_key = mint_root("test mesh", now=self.now - YEAR)
        self.ca = LocalCa(self.root, self._root_key, roots=[self.root])

    @property
    def roots_pem(self) -> bytes:
        return self.ca.roots_pem

    def leaf(self, identity: Identity | str, *, ttl: float = 3600.0) -> CertificateIssued:
        """Valid now, for `ttl` seconds."""
        return self._issue(identity, now=self.now, ttl=ttl)

    def expired(self, identity: Identity | str) -> CertificateIssued:
        """Ended an hour ago."""
        return self._issue(identity, now=self.now - 7200, ttl=3600.0)

    def odd(self, uris: Sequence[str]) -> CertificateIssued:
        """Signed by this CA, but with these URI names: none, several, or no SPIFFE form. Its identity says WEB."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self.sign(key.public_key(), [x509.UniformResourceIdentifier(uri) for uri in uris])
        return CertificateIssued(
            identity=WEB,
            chain_pem=leaf.public_bytes(Encoding.PEM),
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            roots_pem=self.roots_pem,
            not_before=int(leaf.not_valid_before_utc.timestamp()),
            not_after=int(leaf.not_valid_after_utc.timestamp()),
        )

    def sign(self, key: CertificatePublicKeyTypes, names: Sequence[x509.GeneralName]) -> x509.Certificate:
        """Somebody's key with whatever names, valid for an hour."""
        start, end = int(self.now - 120), int(self.now + 3600)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.fromtimestamp(start, UTC))
            .not_valid_after(datetime.fromtimestamp(end, UTC))
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return builder.sign(self._root_key, hashes.SHA256())

    def _issue(self, identity: Identity | str, *, now: float, ttl: float) -> CertificateIssued:
        who = parse_identity(identity) if isinstance(identity, str) else identity
        return self.ca.issue(who, ttl=ttl, now=now).message(who)


def write_files(directory: Path, certificate: CertificateIssued) -> tuple[Path, Path, Path]:
    """Chain, key and roots as files, for peers that want paths (Envoy, openssl, curl)."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / "cert-chain.pem", directory / "key.pem", directory / "root-cert.pem"
    for path, content in zip(paths, (certificate.chain_pem, certificate.key_pem, certificate.roots_pem), strict=True):
        path.touch(mode=0o600)
        path.write_bytes(content)
    return paths
