"""A certificate authority inside the agent: signs workload certificates with a key it holds in memory.

`LocalCa` is the act of signing, with the time as an argument; `MemoryCa` is one whose root lives and dies with it;
`LocalSource` offers either (or a directory's, see ca_directory) to the certificate manager. Must not know files.

The form of the certificates is Istio's (security/pkg/pki/util/generate_cert.go): no subject, therefore a critical
subject alternative name with the SPIFFE URI, server and client authentication, valid from two minutes ago.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ztunnel.control.identity.certificate import IssuedCertificate, rfc3339, to_pem
from ztunnel.core.errors import IdentityUnavailable
from ztunnel.core.model.identity import Identity

CLOCK_SKEW = 120.0
"""Seconds by which a certificate begins in the past (Istio: ClockSkewGracePeriod)."""
CA_LIFETIME = 10 * 365 * 86400.0
"""Seconds; Istio's self-signed root lives as long."""

CaKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_IDENTITY_PART = re.compile(r"[A-Za-z0-9._-]+")
SigningHash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_HASHES: dict[str, SigningHash] = {"secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
"""By curve, as the TLS 1.3 signature schemes pair them (RFC 8446 section 4.2.3); SHA-256 for all else."""


class LocalCa:
    """Signs with `certificate` and its `key`.

    `intermediates` lead from `certificate` (first, if it is no root itself) up to, but without, a root.
    """

    def __init__(
        self,
        certificate: x509.Certificate,
        key: CaKey,
        *,
        intermediates: Sequence[x509.Certificate] = (),
        roots: Sequence[x509.Certificate],
    ) -> None:
        self.certificate = certificate
        self.intermediates = tuple(intermediates)
        self.roots_pem = to_pem(list(roots))
        self._key = key
        self._chain_pem = to_pem(list(intermediates))
        self._expires = min(c.not_valid_after_utc.timestamp() for c in (certificate, *intermediates))

    @property
    def not_after(self) -> float:
        """When the CA can sign no more, seconds since the epoch: the first end among it and its intermediates."""
        return self._expires

    def issue(self, identity: Identity, *, ttl: float, now: float) -> IssuedCertificate:
        """A new P-256 key and its certificate, valid for `ttl` seconds but no longer than the CA itself.

        Raises IdentityUnavailable when the CA has expired or the identity cannot be a SPIFFE id.
        """
        if ttl <= 0:
            raise ValueError(f"a lifetime of {ttl} s")
        if not all(_IDENTITY_PART.fullmatch(part) for part in identity):
            raise IdentityUnavailable(
                f"{identity} is no SPIFFE identity: its parts are letters, digits, '.', '_' and '-', and not empty",
                hint="check trust domain, namespace and service account of the workload",
            )
        if now >= self._expires:
            raise IdentityUnavailable(
                f"the CA {self.certificate.subject.rfc4514_string()} ended at {rfc3339(self._expires)}, "
                f"so {identity} gets no certificate",
                hint="replace the CA's files (see `ztunnel ca inspect`), or correct the clock",
            )
        key = ec.generate_private_key(ec.SECP256R1())
        not_before, not_after = int(now - CLOCK_SKEW), int(min(now + ttl, self._expires))
        leaf = self._sign(identity, key.public_key(), not_before, not_after)
        return IssuedCertificate(
            chain_pem=leaf.public_bytes(Encoding.PEM) + self._chain_pem,
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            roots_pem=self.roots_pem,
            not_before=not_before,
            not_after=not_after,
        )

    def _sign(
        self, identity: Identity, key: ec.EllipticCurvePublicKey, not_before: int, not_after: int
    ) -> x509.Certificate:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.fromtimestamp(not_before, UTC))
            .not_valid_after(datetime.fromtimestamp(not_after, UTC))
            .add_extension(key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_authority_key_id(self.certificate), critical=False)
            .add_extension(
                # RFC 5280 4.2.1.6: critical, because the subject is empty.
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]),
                critical=True,
            )
            .sign(self._key, signing_hash(self._key))
        )


class MemoryCa(LocalCa):
    """A CA with a root of its own that is never stored: for the demo and tests."""

    def __init__(self, *, now: float, lifetime: float = CA_LIFETIME, name: str = "ztunnel in-memory CA") -> None:
        certificate, key = mint_root(name, now=now, lifetime=lifetime)
        super().__init__(certificate, key, roots=[certificate])


class LocalSource:
    """Certificates from a CA in this process, as the manager wants them.

    `open_ca` gives the CA for a moment in time (it may block: it runs in a thread); `ttl` is SECRET_TTL in seconds,
    `clock` gives seconds since the epoch.
    """

    def __init__(self, open_ca: Callable[[float], LocalCa], *, ttl: float, clock: Callable[[], float]) -> None:
        self._open_ca = open_ca
        self._ttl = ttl
        self._clock = clock

    def check(self) -> None:
        """Blocks. Raises ConfigError or PlatformError when there is no CA that could issue anything now."""
        self._open_ca(self._clock())

    async def fetch(self, identity: Identity) -> IssuedCertificate:
        # Abandoning is safe: an unwanted certificate is only garbage.
        return await trio.to_thread.run_sync(self._issue, identity, abandon_on_cancel=True)

    def _issue(self, identity: Identity) -> IssuedCertificate:
        now = self._clock()
        return self._open_ca(now).issue(identity, ttl=self._ttl, now=now)


def mint_root(
    name: str, *, now: float, lifetime: float = CA_LIFETIME
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A self-signed P-256 root that may sign leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(now - CLOCK_SKEW), UTC))
        .not_valid_after(datetime.fromtimestamp(int(now + lifetime), UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def signing_hash(key: CaKey) -> SigningHash:
    curve = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else ""
    return _HASHES.get(curve, hashes.SHA256())


def _authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The issuer's own key id where it has one, else the usual hash of its key (RFC 5280 4.2.1.1)."""
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = issuer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
