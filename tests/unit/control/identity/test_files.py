from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from mesh_pki import WEB, MeshPki

from ztunnel.control.identity.files import replace, reported, write_issued, write_new
from ztunnel.core.errors import ConfigError, PlatformError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_its_mode_and_replaces_nothing(tmp_path: Path) -> None:
    write_new(tmp_path / "key", b"secret", 0o600)
    assert mode(tmp_path / "key") == 0o600
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "key", b"other", 0o600)
    assert (tmp_path / "key").read_bytes() == b"secret"


def test_a_replaced_file_gets_the_new_mode_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("old")
    (tmp_path / "key").chmod(0o644)
    replace(tmp_path / "key", b"new", 0o600)
    assert (tmp_path / "key").read_bytes() == b"new"
    assert mode(tmp_path / "key") == 0o600
    assert os.listdir(tmp_path) == ["key"]


def test_an_issued_certificate_becomes_three_files_and_can_be_renewed(tmp_path: Path) -> None:
    mesh = MeshPki()
    for _ in range(2):
        issued = mesh.ca.issue(WEB, ttl=60, now=mesh.now)
        write_issued(tmp_path / "web", issued)
        assert (tmp_path / "web" / "cert-chain.pem").read_bytes() == issued.chain_pem
        assert (tmp_path / "web" / "key.pem").read_bytes() == issued.key_pem
        assert (tmp_path / "web" / "root-cert.pem").read_bytes() == issued.roots_pem
    assert mode(tmp_path / "web" / "key.pem") == 0o600


def test_missing_rights_are_the_platforms_fault_and_the_rest_the_configurations() -> None:
    with pytest.raises(PlatformError, match="cannot read /x: Permission denied"), reported(Path("/x"), "read"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(ConfigError, match="cannot read /x: Is a directory"), reported(Path("/x"), "read"):
        raise IsADirectoryError(21, "Is a directory")
