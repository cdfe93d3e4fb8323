"""What is in a certificate file or directory, and what is wrong with it: the facts behind `ztunnel ca inspect`.

Blocks (reads files). Shows certificates, never keys: of a key only its kind, its mode and what it belongs to.
"""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ztunnel.control.identity.ca_directory import read_files
from ztunnel.control.identity.ca_files import CA_CERT, parse_ca
from ztunnel.control.identity.certificate import (
    CertificateFacts,
    describe_key,
    facts_of,
    is_issuer,
    load_certificates,
    public_der,
    rfc3339,
)
from ztunnel.control.identity.files import reported
from ztunnel.core.errors import ConfigError
from ztunnel.core.model.identity import parse_identity

MAX_FILE = 1 << 20
"""Bytes; a larger file is no certificate."""
_SOON = 0.1
"""Share of the lifetime that remains when an end is called near."""
_WEAK_HASHES = ("md5", "sha1")
_BEGIN = b"-----BEGIN "


class ShownCertificate(msgspec.Struct, frozen=True):
    """A certificate and the file it was found in."""

    file: str
    facts: CertificateFacts


class ShownKey(msgspec.Struct, frozen=True):
    """A private key's outside."""

    file: str
    kind: str
    mode: str
    """Octal, e.g. `0600`."""
    owner: str
    """Name of the certificate it belongs to; empty when none was found."""


class Inspection(msgspec.Struct, frozen=True):
    path: str
    certificates: tuple[ShownCertificate, ...]
    keys: tuple[ShownKey, ...]
    warnings: tuple[str, ...]


def inspect(path: Path, *, now: float) -> Inspection:
    """Read a PEM file, or every `*.pem`, `*.crt` and `*.key` of a directory.

    Raises ConfigError when there is nothing to see, PlatformError when rights are missing.
    """
    look = _Look()
    with reported(path, "read"):
        files = sorted(_candidates(path)) if path.is_dir() else [path]
        for file in files:
            look.at(file)
    if not look.certificates and not look.keys:
        raise ConfigError(
            f"{path} holds no certificate and no key" + "".join(f"; {warning}" for warning in look.warnings),
            hint="name a PEM file, or a directory with .pem, .crt or .key files",
        )
    shown = tuple(ShownCertificate(file, facts_of(certificate)) for file, certificate in look.certificates)
    warnings = list(look.warnings)
    for certificate in shown:
        warnings += _about_certificate(certificate, now)
    keys = tuple(_describe(key, look.certificates) for key in look.keys)
    warnings += _about_modes(keys)
    if path.is_dir():
        warnings += _about_issuers(look.certificates)
        warnings += [f"{key.file}: belongs to no certificate here" for key in keys if not key.owner]
        if (path / CA_CERT).exists():
            warnings += _about_ca(path, now)
    return Inspection(str(path), shown, keys, tuple(dict.fromkeys(warnings)))


class _FoundKey(msgspec.Struct, frozen=True):
    file: str
    kind: str
    mode: int
    public: bytes


class _Look:
    """Collects what the files hold."""

    def __init__(self) -> None:
        self.certificates: list[tuple[str, x509.Certificate]] = []
        self.keys: list[_FoundKey] = []
        self.warnings: list[str] = []

    def at(self, file: Path) -> None:
        status = file.stat()
        if status.st_size > MAX_FILE:
            self.warnings.append(f"{file.name}: larger than {MAX_FILE} bytes, not read")
            return
        content = file.read_bytes()
        if _BEGIN not in content:
            self.warnings.append(f"{file.name}: no PEM text")
            return
        if b"PRIVATE KEY-----" in content:
            self._key(file.name, content, stat.S_IMODE(status.st_mode))
        if _BEGIN + b"CERTIFICATE-----" in content:
            try:
                self.certificates += [(file.name, certificate) for certificate in load_certificates(content)]
            except ValueError:
                self.warnings.append(f"{file.name}: a certificate in it is broken")

    def _key(self, name: str, content: bytes, mode: int) -> None:
        try:
            key = load_pem_private_key(content, password=None)
        except TypeError:
            self.keys.append(_FoundKey(name, "encrypted", mode, b""))
            self.warnings.append(f"{name}: the key is encrypted; the agent cannot ask for a password")
        except (ValueError, UnsupportedAlgorithm):
            self.warnings.append(f"{name}: the key in it is broken")
        else:
            self.keys.append(_FoundKey(name, describe_key(key), mode, public_der(key.public_key())))


def _candidates(directory: Path) -> list[Path]:
    return [file for file in directory.iterdir() if file.suffix in (".pem", ".crt", ".key") and file.is_file()]


def _describe(key: _FoundKey, certificates: list[tuple[str, x509.Certificate]]) -> ShownKey:
    mine = (c for _, c in certificates if key.public and public_der(c.public_key()) == key.public)
    owner = next((_title(facts_of(certificate)) for certificate in mine), "")
    return ShownKey(key.file, key.kind, f"{key.mode:04o}", owner)


def _title(facts: CertificateFacts) -> str:
    return facts.uris[0] if facts.uris else facts.subject or f"serial {facts.serial:x}"


def _about_certificate(certificate: ShownCertificate, now: float) -> list[str]:
    facts, warnings = certificate.facts, []
    if facts.not_after <= now:
        warnings.append(f"ended at {rfc3339(facts.not_after)}")
    elif facts.not_before > now:
        warnings.append(f"begins only at {rfc3339(facts.not_before)}")
    elif facts.not_after - now < (facts.not_after - facts.not_before) * _SOON:
        warnings.append(f"ends soon, at {rfc3339(facts.not_after)}")
    if facts.signature in _WEAK_HASHES:
        warnings.append(f"is signed with {facts.signature}, which peers refuse")
    if not facts.is_ca:
        warnings += _about_identity(facts.uris)
    return [f"{certificate.file}: {_title(facts)} {warning}" for warning in warnings]


def _about_identity(uris: tuple[str, ...]) -> list[str]:
    if len(uris) != 1:
        return [f"has {len(uris)} URI names; a workload has exactly one, its SPIFFE identity"]
    try:
        parse_identity(uris[0])
    except ValueError:
        return ["is no identity of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>"]
    return []


def _about_issuers(certificates: list[tuple[str, x509.Certificate]]) -> list[str]:
    """Who signed each of them must be here too."""
    return [
        f"{file}: the issuer of {_title(facts_of(certificate))} is not here ({certificate.issuer.rfc4514_string()})"
        for file, certificate in certificates
        if not any(is_issuer(other, certificate) for _, other in certificates)
    ]


def _about_modes(keys: tuple[ShownKey, ...]) -> list[str]:
    return [
        f"{key.file}: mode {key.mode} lets others read the key; use chmod 600"
        for key in keys
        if int(key.mode, 8) & (stat.S_IRWXG | stat.S_IRWXO)
    ]


def _about_ca(path: Path, now: float) -> list[str]:
    """Can the agent use it as LOCAL_CA_PATH?"""
    try:
        parse_ca(read_files(path), where=str(path), now=now)
    except ConfigError as error:
        return list(error.problems)
    return []
