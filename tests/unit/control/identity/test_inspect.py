from __future__ import annotations

from pathlib import Path

import pytest
from mesh_pki import WEB, YEAR, MeshPki, write_files

from ztunnel.control.identity.ca_directory import open_or_create
from ztunnel.control.identity.inspect import MAX_FILE, inspect
from ztunnel.core.errors import ConfigError

NOW = 1_800_000_000.0


@pytest.fixture
def mesh() -> MeshPki:
    return MeshPki(now=NOW)


def warnings(path: Path, now: float = NOW) -> str:
    return " | ".join(inspect(path, now=now).warnings)


def test_a_fresh_ca_and_a_fresh_workload_have_no_warnings(tmp_path: Path, mesh: MeshPki) -> None:
    open_or_create(tmp_path / "ca", now=NOW)
    write_files(tmp_path / "web", mesh.leaf(WEB))
    assert warnings(tmp_path / "ca") == ""
    assert warnings(tmp_path / "web") == ""


def test_a_directory_shows_every_certificate_and_whose_the_key_is(tmp_path: Path, mesh: MeshPki) -> None:
    write_files(tmp_path, mesh.leaf(WEB))
    found = inspect(tmp_path, now=NOW)
    assert [(shown.file, shown.facts.uris) for shown in found.certificates] == [
        ("cert-chain.pem", (str(WEB),)),
        ("root-cert.pem", ()),
    ]
    assert [(key.file, key.kind, key.mode, key.owner) for key in found.keys] == [
        ("key.pem", "EC secp256r1", "0600", str(WEB))
    ]


def test_one_file_is_not_blamed_for_what_lies_elsewhere(tmp_path: Path, mesh: MeshPki) -> None:
    chain, key, _ = write_files(tmp_path, mesh.leaf(WEB))
    assert warnings(chain) == warnings(key) == ""


@pytest.mark.parametrize(
    ("later", "warning"), [(3600, "ended at"), (-200, "begins only at"), (3500, "ends soon, at"), (0, "")]
)
def test_validity_is_judged_at_the_time_given(tmp_path: Path, mesh: MeshPki, later: float, warning: str) -> None:
    chain, _, _ = write_files(tmp_path, mesh.leaf(WEB, ttl=3600))
    assert warning in warnings(chain, NOW + later)
    assert bool(warnings(chain, NOW + later)) is bool(warning)


def test_the_end_of_the_root_is_told_too(tmp_path: Path, mesh: MeshPki) -> None:
    write_files(tmp_path, mesh.leaf(WEB))
    assert "root-cert.pem: CN=test mesh ended at" in warnings(tmp_path, NOW + 10 * YEAR)


@pytest.mark.parametrize(
    ("uris", "warning"),
    [
        ([], "has 0 URI names"),
        ([str(WEB), "spiffe://cluster.local/ns/a/sa/b"], "has 2 URI names"),
        (["https://example.org/"], "is no identity of the form"),
    ],
)
def test_a_leaf_without_exactly_one_identity_is_told(
    tmp_path: Path, mesh: MeshPki, uris: list[str], warning: str
) -> None:
    write_files(tmp_path, mesh.odd(uris))
    assert warning in warnings(tmp_path)


def test_a_chain_of_another_ca_is_told(tmp_path: Path, mesh: MeshPki) -> None:
    write_files(tmp_path, mesh.leaf(WEB))
    (tmp_path / "root-cert.pem").write_bytes(MeshPki(now=NOW).roots_pem)
    assert f"the issuer of {WEB} is not here" in warnings(tmp_path)


def test_a_key_of_nobody_and_a_key_for_everybody_are_told(tmp_path: Path, mesh: MeshPki) -> None:
    write_files(tmp_path, mesh.leaf(WEB))
    (tmp_path / "key.pem").write_bytes(mesh.leaf(WEB).key_pem)
    (tmp_path / "key.pem").chmod(0o640)
    assert "key.pem: mode 0640 lets others read the key" in warnings(tmp_path)
    assert "key.pem: belongs to no certificate here" in warnings(tmp_path)


def test_a_ca_that_the_agent_would_refuse_is_told_with_its_reason(tmp_path: Path) -> None:
    open_or_create(tmp_path, now=NOW)
    (tmp_path / "root-cert.pem").unlink()
    assert "root-cert.pem is missing" in warnings(tmp_path)


def test_broken_files_are_named_and_the_others_shown(tmp_path: Path, mesh: MeshPki) -> None:
    write_files(tmp_path, mesh.leaf(WEB))
    (tmp_path / "a.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "b.key").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    (tmp_path / "c.pem").write_bytes(b"\xff" * 100)
    (tmp_path / "d.pem").write_bytes(b"x" * (MAX_FILE + 1))
    told = warnings(tmp_path)
    for expected in ("a.crt: a certificate", "b.key: the key in it is broken", "c.pem: no PEM", "d.pem: larger"):
        assert expected in told
    assert len(inspect(tmp_path, now=NOW).certificates) == 2


@pytest.mark.parametrize("name", ["", "missing.pem", "empty.pem"])
def test_nothing_to_see_is_an_error_that_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(ConfigError, match=r"holds no certificate|No such file"):
        inspect(tmp_path / name, now=NOW)
