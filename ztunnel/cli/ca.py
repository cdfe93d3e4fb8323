"""`ztunnel ca`: a certificate authority for development and small meshes.

Only the conversation with the person is here; certificates are control.identity's business.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from ztunnel.config.forms import duration_seconds
from ztunnel.control.identity.ca import CA_LIFETIME
from ztunnel.control.identity.ca_directory import CA_NAME, create, open_existing
from ztunnel.control.identity.certificate import rfc3339
from ztunnel.control.identity.files import ISSUED_CHAIN, ISSUED_KEY, ISSUED_ROOTS, write_issued
from ztunnel.control.identity.inspect import Inspection, ShownCertificate, inspect
from ztunnel.core.errors import ConfigError, IdentityUnavailable
from ztunnel.core.model.identity import Identity, parse_identity

EXIT_WRONG = 1
"""Of `inspect`, when it has a warning."""


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            seconds = duration_seconds(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)
        if seconds < 1:
            self.fail(f"{value!r} is shorter than a second", param, ctx)
        return seconds


class _Spiffe(click.ParamType[Identity]):
    name = "spiffe-id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Identity:
        try:
            return parse_identity(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(no_args_is_help=True)
def ca() -> None:
    """Make and inspect mesh certificates.

    A CA is a directory in the layout of Istio's `cacerts` (ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem).
    The agent uses the same directory: set LOCAL_CA_PATH to it.

    \b
    Examples:
      ztunnel ca init --dir /etc/ztunnel/ca
      ztunnel ca issue --dir /etc/ztunnel/ca \\
          --identity spiffe://cluster.local/ns/default/sa/web --out-dir web
      ztunnel ca inspect web
    """


@ca.command()
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path), help="Directory of the CA.")
@click.option("--name", default=CA_NAME, show_default=True, help="Common name of the root certificate.")
@click.option("--ttl", type=_Duration(), default=CA_LIFETIME, show_default="10 years", help="Lifetime of the root.")
def init(directory: Path, name: str, ttl: float) -> None:
    """Make a self-signed CA, with its key at mode 0600.

    A directory that already holds a CA is checked and left as it is.

    \b
    Examples:
      ztunnel ca init --dir ca
      LOCAL_CA_PATH=ca ztunnel serve
    """
    if not 1 <= len(name) <= 64:
        raise click.BadParameter("a common name has 1 to 64 characters", param_hint="--name")
    now = time.time()
    made = create(directory, now=now, name=name, lifetime=ttl)
    authority = open_existing(directory, now=now)
    click.echo(f"{'made' if made else 'kept'} the CA in {directory}, valid until {rfc3339(authority.not_after)}")


@ca.command(short_help="Issue a certificate to a workload.")
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path), help="Directory of the CA.")
@click.option("--identity", required=True, type=_Spiffe(), help="spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
@click.option("--ttl", type=_Duration(), default="24h", show_default=True, help="Lifetime, e.g. 90s, 12h.")
@click.option("--out-dir", required=True, type=click.Path(path_type=Path), help="Where the three files go.")
def issue(directory: Path, identity: Identity, ttl: float, out_dir: Path) -> None:
    """Issue a certificate to a workload: cert-chain.pem, key.pem (mode 0600) and root-cert.pem.

    For peers that are not captured, for tests and for tools; the agent makes its own certificates.

    \b
    Examples:
      ztunnel ca issue --dir ca --identity spiffe://cluster.local/ns/default/sa/web --out-dir web
      openssl s_client -connect 10.0.0.7:15008 -alpn h2 -CAfile web/root-cert.pem \\
          -cert web/cert-chain.pem -cert_chain web/cert-chain.pem -key web/key.pem
    """
    now = time.time()
    authority = open_existing(directory, now=now)
    try:
        issued = authority.issue(identity, ttl=ttl, now=now)
    except IdentityUnavailable as error:  # here the one who asked can act
        raise ConfigError(str(error), hint=error.hint) from None
    write_issued(out_dir, issued)
    click.echo(f"{identity} until {rfc3339(issued.not_after)}:")
    for file in (ISSUED_CHAIN, ISSUED_KEY, ISSUED_ROOTS):
        click.echo(f"  {out_dir / file}")


@ca.command("inspect", short_help="Show certificates, and what is wrong with them.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def inspect_command(path: Path, output: str) -> int:
    """Show the certificates in a file or directory: identity, issuer, validity, and what is wrong.

    Keys are checked but never shown. Exit code 1 when something is wrong.

    \b
    Examples:
      ztunnel ca inspect ca
      ztunnel ca inspect web/cert-chain.pem
      ztunnel ca inspect ca -o json
    """
    found = inspect(path, now=time.time())
    click.echo(json.dumps(_as_json(found), indent=2) if output == "json" else _as_text(found))
    return EXIT_WRONG if found.warnings else 0


def _as_text(found: Inspection) -> str:
    lines: list[str] = []
    places: dict[str, list[ShownCertificate]] = {}
    for certificate in found.certificates:
        places.setdefault(certificate.facts.fingerprint, []).append(certificate)
    for same in places.values():
        facts = same[0].facts
        lines += [
            f"{', '.join(certificate.file for certificate in same)}: {_kind(same[0])}",
            f"  subject      {facts.subject or '(empty)'}",
            *(f"  identity     {uri}" for uri in facts.uris),
            f"  issuer       {facts.issuer or '(empty)'}",
            f"  valid        {rfc3339(facts.not_before)} to {rfc3339(facts.not_after)}",
            f"  key          {facts.key}",
            f"  serial       {facts.serial:x}",
            f"  fingerprint  {facts.fingerprint}",
        ]
    for key in found.keys:
        lines.append(f"{key.file}: private key of {key.owner or 'no certificate here'}, {key.kind}, mode {key.mode}")
    lines += [f"warning: {warning}" for warning in found.warnings]
    return "\n".join(lines)


def _kind(certificate: ShownCertificate) -> str:
    if not certificate.facts.is_ca:
        return "workload certificate"
    return "root CA" if certificate.facts.self_signed else "intermediate CA"


def _as_json(found: Inspection) -> dict[str, Any]:
    return {
        "path": found.path,
        "certificates": [
            {
                "file": certificate.file,
                "kind": _kind(certificate),
                "subject": certificate.facts.subject,
                "identities": list(certificate.facts.uris),
                "issuer": certificate.facts.issuer,
                "serialNumber": str(certificate.facts.serial),
                "validFrom": rfc3339(certificate.facts.not_before),
                "expirationTime": rfc3339(certificate.facts.not_after),
                "key": certificate.facts.key,
                "fingerprint": certificate.facts.fingerprint,
                "pem": certificate.facts.pem,
            }
            for certificate in found.certificates
        ],
        "keys": [
            {"file": key.file, "kind": key.kind, "mode": key.mode, "certificate": key.owner} for key in found.keys
        ],
        "warnings": list(found.warnings),
    }
