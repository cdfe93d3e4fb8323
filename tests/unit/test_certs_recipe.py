"""certs/mint makes, with openssl alone, what the agent accepts; and openssl accepts what the agent makes of it."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from ztunnel.control.identity.ca_directory import open_existing
from ztunnel.control.identity.certificate import IssuedCertificate, check_issued, load_certificates
from ztunnel.control.identity.files import write_issued
from ztunnel.control.identity.inspect import inspect
from ztunnel.core.model.identity import parse_identity

CERTS = Path(__file__).parents[2] / "certs"
WEB = "spiffe://cluster.local/ns/default/sa/web"


def mint(*arguments: str | Path, key: str = "ec") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CERTS / "mint"), *map(str, arguments)],
        env=os.environ | {"KEY": key},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def openssl_verifies(directory: Path) -> None:
    chain = str(directory / "cert-chain.pem")
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]
    checked = subprocess.run(
        [*command, str(directory / "root-cert.pem"), "-untrusted", chain, chain],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("key", ["ec", "rsa"])
def test_a_minted_ca_works_as_local_ca_path(tmp_path: Path, key: str) -> None:
    minted = mint("ca", tmp_path / "ca", key=key)
    assert minted.returncode == 0, minted.stderr
    now = (tmp_path / "ca" / "ca-cert.pem").stat().st_mtime + 1
    issued = open_existing(tmp_path / "ca", now=now).issue(parse_identity(WEB), ttl=3600, now=now)
    leaf, intermediate = load_certificates(issued.chain_pem)
    leaf.verify_directly_issued_by(intermediate)
    write_issued(tmp_path / "web", issued)
    openssl_verifies(tmp_path / "web")
    assert inspect(tmp_path / "ca", now=now).warnings == ()


def test_a_minted_workload_certificate_is_one_that_the_agent_accepts(tmp_path: Path) -> None:
    assert mint("ca", tmp_path / "ca").returncode == 0
    minted = mint("workload", tmp_path / "ca", WEB, tmp_path / "web")
    assert minted.returncode == 0, minted.stderr
    openssl_verifies(tmp_path / "web")
    chain = (tmp_path / "web" / "cert-chain.pem").read_bytes()
    leaf = load_certificates(chain)[0]
    issued = IssuedCertificate(
        chain_pem=chain,
        key_pem=(tmp_path / "web" / "key.pem").read_bytes(),
        roots_pem=(tmp_path / "web" / "root-cert.pem").read_bytes(),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )
    check_issued(parse_identity(WEB), issued, now=issued.not_before + 1)
    assert leaf.subject == x509.Name([])
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
    assert inspect(tmp_path / "web", now=issued.not_before + 1).warnings == ()


def test_every_minted_key_is_for_its_owner_only(tmp_path: Path) -> None:
    mint("ca", tmp_path / "ca")
    mint("workload", tmp_path / "ca", WEB, tmp_path / "web")
    keys = sorted(tmp_path.glob("*/*key.pem"))
    assert [key.name for key in keys] == ["ca-key.pem", "root-key.pem", "key.pem"]
    assert all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in keys)


@pytest.mark.parametrize(
    "identity", ["web", "spiffe://a/ns/b", "spiffe://a/ns/b/sa/c,DNS:evil", "spiffe://a/ns/b/sa/c\nx"]
)
def test_a_name_that_is_no_spiffe_id_is_not_signed(tmp_path: Path, identity: str) -> None:
    mint("ca", tmp_path / "ca")
    assert mint("workload", tmp_path / "ca", identity, tmp_path / "web").returncode == 2
    assert not (tmp_path / "web").exists()


def test_an_existing_ca_is_not_overwritten_and_wrong_usage_is_explained(tmp_path: Path) -> None:
    mint("ca", tmp_path / "ca")
    before = (tmp_path / "ca" / "ca-key.pem").read_bytes()
    assert mint("ca", tmp_path / "ca").returncode == 2
    assert (tmp_path / "ca" / "ca-key.pem").read_bytes() == before
    for wrong in ([], ["ca"], ["workload", tmp_path]):
        told = mint(*wrong)
        assert told.returncode == 2
        assert "certs/mint ca DIR" in told.stderr


def test_no_key_and_no_certificate_is_part_of_the_project() -> None:
    assert sorted(path.name for path in CERTS.iterdir()) == [".gitignore", "README.md", "mint", "openssl.cnf"]
