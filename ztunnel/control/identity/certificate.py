"""Certificates as values: one that was issued to a workload, and the facts that people read from any.

Keys stay in memory: nothing here writes or prints one. Must not know where certificates come from.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ztunnel.core.errors import IdentityUnavailable
from ztunnel.core.model.identity import Identity
from ztunnel.link.messages import CertificateIssued


class IssuedCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """A workload's certificate with its key and the roots that came with it."""

    chain_pem: bytes
    """Leaf first, then intermediates; no root."""
    key_pem: bytes
    """PKCS#8, not encrypted."""
    roots_pem: bytes
    """One or more roots."""
    not_before: float
    not_after: float
    """Seconds since the epoch."""

    def __repr__(self) -> str:
        return f"IssuedCertificate(until {rfc3339(self.not_after)}, key redacted)"

    def message(self, identity: Identity) -> CertificateIssued:
        return CertificateIssued(
            identity=identity,
            chain_pem=self.chain_pem,
            key_pem=self.key_pem,
            roots_pem=self.roots_pem,
            not_before=self.not_before,
            not_after=self.not_after,
        )


class Source(Protocol):
    """Where certificates come from: a CA over the network, a local one, files."""

    async def fetch(self, identity: Identity) -> IssuedCertificate:
        """A new key and certificate. Blocking work belongs in a thread.

        Raises IdentityUnavailable or another ZtunnelError when there is none.
        """


class CertificateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What people want to know of a certificate."""

    subject: str
    issuer: str
    serial: int
    uris: tuple[str, ...]
    """URI subject alternative names; a workload has one, its SPIFFE identity."""
    not_before: float
    not_after: float
    """Seconds since the epoch."""
    is_ca: bool
    self_signed: bool
    key: str
    """e.g. `EC secp256r1`, `RSA 2048`."""
    signature: str
    """Hash of the signature, e.g. `sha256`; empty when the scheme has none of its own."""
    fingerprint: str
    """SHA-256 of the DER form, hex."""
    pem: str


def facts_of(certificate: x509.Certificate) -> CertificateFacts:
    algorithm = certificate.signature_hash_algorithm
    return CertificateFacts(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial=certificate.serial_number,
        uris=uris_of(certificate),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        is_ca=is_ca(certificate),
        self_signed=is_issuer(certificate, certificate),
        key=describe_key(certificate.public_key()),
        signature="" if algorithm is None else algorithm.name,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        pem=certificate.public_bytes(Encoding.PEM).decode(),
    )


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """Every certificate of a PEM text, in order. Raises ValueError when there is none or one is broken."""
    return x509.load_pem_x509_certificates(pem)


def read_facts(pem: bytes) -> list[CertificateFacts]:
    """The facts of every certificate of a PEM text. Raises ValueError when there is none or one is broken."""
    return [facts_of(certificate) for certificate in load_certificates(pem)]


def to_pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def uris_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))


def is_ca(certificate: x509.Certificate) -> bool:
    """May it sign certificates: basicConstraints CA, and keyCertSign where a key usage is given (RFC 5280 4.2.1)."""
    try:
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as missing:
        return missing.oid == x509.KeyUsage.oid


def is_issuer(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Did the key of `issuer` sign `certificate`, and do the names agree?"""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):  # names differ: ValueError
        return False
    return True


def describe_key(key: object) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return f"EC {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        return f"RSA {key.key_size}"
    return type(key).__name__.removesuffix("PublicKey").removesuffix("PrivateKey").strip("_")


def same_key(certificate: x509.Certificate, key_pem: bytes) -> bool:
    """Does the private key belong to the certificate? Raises ValueError or TypeError when it cannot be read."""
    of_key = load_pem_private_key(key_pem, password=None).public_key()
    return public_der(of_key) == public_der(certificate.public_key())


def public_der(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def check_issued(identity: Identity, issued: IssuedCertificate, *, now: float) -> None:
    """Refuse what a CA gave when it is not what was asked for.

    Raises IdentityUnavailable: another identity, another key, not valid now, or unreadable.
    """
    try:
        leaf = load_certificates(issued.chain_pem)[0]
        load_certificates(issued.roots_pem)
        owns = same_key(leaf, issued.key_pem)
    except (ValueError, TypeError) as error:
        raise IdentityUnavailable(f"the CA's answer for {identity} cannot be read: {error}") from None
    if uris_of(leaf)[:1] != (str(identity),):
        raise IdentityUnavailable(
            f"the CA answered with a certificate for {', '.join(uris_of(leaf)) or 'no identity'}, not {identity}",
            hint="the CA or a proxy before it confuses identities; check the CA's log",
        )
    if not owns:
        raise IdentityUnavailable(f"the CA's certificate for {identity} belongs to another key")
    if issued.not_after <= now:
        raise IdentityUnavailable(
            f"the CA's certificate for {identity} ended at {rfc3339(issued.not_after)}",
            hint="compare the clocks of this machine and of the CA",
        )


def dump_entry(facts: CertificateFacts) -> dict[str, str]:
    """A certificate in config_dump's form (ztunnel and istioctl: keys, decimal serial, base64 of the PEM text)."""
    return {
        "pem": base64.b64encode(facts.pem.encode()).decode(),
        "serialNumber": str(facts.serial),
        "validFrom": rfc3339(facts.not_before),
        "expirationTime": rfc3339(facts.not_after),
    }


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as `2026-01-31T12:00:00Z`."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
