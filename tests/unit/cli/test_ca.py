from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ztunnel import cli
from ztunnel.cli.ca import ca

WEB = "spiffe://cluster.local/ns/default/sa/web"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(ca, [str(argument) for argument in arguments])


def good(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_ca_is_made_used_and_shown(tmp_path: Path) -> None:
    assert "made the CA" in good("init", "--dir", tmp_path / "ca")
    shown = good("issue", "--dir", tmp_path / "ca", "--identity", WEB, "--ttl", "2h", "--out-dir", tmp_path / "web")
    assert shown.startswith(WEB)
    assert stat.S_IMODE((tmp_path / "web" / "key.pem").stat().st_mode) == 0o600

    found = json.loads(good("inspect", tmp_path / "web", "-o", "json"))
    assert [certificate["kind"] for certificate in found["certificates"]] == ["workload certificate", "root CA"]
    assert found["certificates"][0]["identities"] == [WEB]
    assert found["keys"][0] == {"file": "key.pem", "kind": "EC secp256r1", "mode": "0600", "certificate": WEB}
    assert found["warnings"] == []


def test_an_existing_ca_is_kept(tmp_path: Path) -> None:
    good("init", "--dir", tmp_path)
    before = (tmp_path / "ca-cert.pem").read_bytes()
    assert "kept the CA" in good("init", "--dir", tmp_path, "--name", "other")
    assert (tmp_path / "ca-cert.pem").read_bytes() == before


def test_the_name_and_lifetime_of_the_root_can_be_chosen(tmp_path: Path) -> None:
    good("init", "--dir", tmp_path, "--name", "team mesh", "--ttl", "48h")
    [root] = {entry["subject"] for entry in json.loads(good("inspect", tmp_path, "-o", "json"))["certificates"]}
    assert root == "CN=team mesh"


def test_the_text_shows_each_certificate_once_and_no_key(tmp_path: Path) -> None:
    good("init", "--dir", tmp_path)
    shown = good("inspect", tmp_path)
    assert "ca-cert.pem, cert-chain.pem, root-cert.pem: root CA" in shown
    assert "ca-key.pem: private key of CN=ztunnel local CA, EC secp256r1, mode 0600" in shown
    secret = (tmp_path / "ca-key.pem").read_text().splitlines()[1]
    assert secret not in shown
    assert secret not in good("inspect", tmp_path, "-o", "json")


@pytest.mark.parametrize("form", ["text", "json"])
def test_warnings_are_shown_and_end_with_code_1(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    good("init", "--dir", tmp_path)
    assert cli.run(["ca", "inspect", str(tmp_path), "-o", form]) == 0
    (tmp_path / "ca-key.pem").chmod(0o644)
    assert cli.run(["ca", "inspect", str(tmp_path), "-o", form]) == 1
    assert "ca-key.pem: mode 0644 lets others read the key" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["init"], "Missing option '--dir'"),
        (["init", "--dir", "ca", "--name", ""], "1 to 64 characters"),
        (["issue", "--dir", "none", "--identity", WEB, "--out-dir", "web"], "make one: `ztunnel ca init --dir none`"),
        (["issue", "--dir", "ca", "--identity", "web", "--out-dir", "web"], "is not spiffe://"),
        (["issue", "--dir", "ca", "--identity", "spiffe:///ns//sa/", "--out-dir", "web"], "no SPIFFE identity"),
        (["issue", "--dir", "ca", "--identity", WEB, "--out-dir", "web", "--ttl", "soon"], "not a duration"),
        (["issue", "--dir", "ca", "--identity", WEB, "--out-dir", "web", "--ttl", "0s"], "shorter than a second"),
        (["issue", "--dir", "ca", "--identity", WEB, "--out-dir", "ca/ca-cert.pem"], "cannot write certificates"),
        (["inspect", "none"], "No such file"),
        (["inspect", "ca", "-o", "xml"], "'xml' is not one of"),
        (["init", "--dir", "ca/ca-cert.pem"], "Not a directory"),
    ],
)
def test_mistakes_are_explained_and_end_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    good("init", "--dir", "ca")
    assert cli.run(["ca", *arguments]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.out == ""


@pytest.mark.parametrize("command", [[], ["init"], ["issue"], ["inspect"]])
def test_help_has_examples(command: list[str]) -> None:
    assert f"ztunnel ca {' '.join(command)}".strip() in good(*command, "--help")
