"""`ztunnel show` prints the tables of `tests/golden/show.txt` from the golden config_dump."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ztunnel import cli
from ztunnel.cli import show as module
from ztunnel.cli.show import SECTIONS, as_table, show

GOLDEN = Path(__file__).parents[2] / "golden"
DUMP = GOLDEN / "config_dump.json"
NOW = 1_724_255_801.0
CERTIFICATE = {"serialNumber": "255", "validFrom": "2023-01-01T00:00:00Z", "expirationTime": "2023-06-01T00:00:00Z"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(show, list(arguments))


def table(dump: dict[str, Any], name: str) -> list[list[str]]:
    """The cells of a table's rows."""
    section = next(section for section in SECTIONS if section.name == name)
    return [line.split() for line in as_table(dump, section, now=NOW).splitlines()[1:]]


def test_every_table_is_exactly_the_golden_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: NOW)
    result = run("all", "-f", str(DUMP))
    assert result.exit_code == 0
    assert result.stdout == (GOLDEN / "show.txt").read_text()


@pytest.mark.parametrize("section", [section.name for section in SECTIONS])
def test_a_single_table_is_its_part_of_all(monkeypatch: pytest.MonkeyPatch, section: str) -> None:
    monkeypatch.setattr(module.time, "time", lambda: NOW)
    assert f"# {section}\n{run(section, '-f', str(DUMP)).stdout}" in run("all", "-f", str(DUMP)).stdout


@pytest.mark.parametrize("section", SECTIONS)
def test_json_is_the_part_of_the_dump(section: module.Section) -> None:
    dump = json.loads(DUMP.read_text())[section.key]
    shown = json.loads(run(section.name, "-f", str(DUMP), "-o", "json").stdout)
    assert shown == (list(dump.values()) if isinstance(dump, dict) else dump)


def test_json_of_all_is_an_object_of_lists() -> None:
    shown = json.loads(run("all", "-f", str(DUMP), "-o", "json").stdout)
    assert list(shown) == [section.name for section in SECTIONS]


@pytest.mark.parametrize(
    ("section", "namespace", "rows"),
    [("workloads", "a", 1), ("workloads", "none", 0), ("services", "b", 2), ("policies", "a", 0), ("certs", "a", 1)],
)
def test_a_namespace_leaves_only_its_own(section: str, namespace: str, rows: int) -> None:
    assert len(run(section, "-f", str(DUMP), "-n", namespace).stdout.splitlines()) == rows + 1
    assert len(json.loads(run(section, "-f", str(DUMP), "-n", namespace, "-o", "json").stdout)) == rows


def test_a_waypoint_is_named_by_its_service_or_by_its_address() -> None:
    workload = {"name": "w", "namespace": "n", "waypoint": {"destination": "net/10.0.0.1", "port": 15008}}
    service = {"name": "way", "namespace": "n", "hostname": "way.n.svc", "vips": ["net/10.0.0.1"]}
    assert table({"workloads": [workload]}, "workloads")[0][4] == "net/10.0.0.1"
    assert table({"workloads": [workload], "services": [service]}, "workloads")[0][4] == "way"
    workload["waypoint"] = {"destination": "n/way.n.svc"}
    assert table({"workloads": [workload], "services": [service]}, "workloads")[0][4] == "way"


def test_older_dumps_with_objects_instead_of_lists_are_read() -> None:
    assert table({"workloads": {"/10.0.0.1": {"name": "w", "namespace": "n"}}}, "workloads")[0][:2] == ["n", "w"]


def test_an_expired_certificate_is_not_valid_and_a_missing_one_says_why() -> None:
    dump = {
        "certificates": [
            {"identity": "spiffe://t/ns/a/sa/b", "state": "Available", "certChain": [CERTIFICATE] * 2, "rootCerts": []},
            {"identity": "spiffe://t/ns/a/sa/c", "state": "Unavailable: the CA said no\n"},
        ]
    }
    rows = table(dump, "certs")
    assert rows[0][1:] == ["Leaf", "Available", "false", "ff", "2023-06-01T00:00:00Z", "2023-01-01T00:00:00Z"]
    assert rows[1][1] == "Intermediate"
    assert rows[2][1:] == ["-", "Unavailable", "false", "-", "-", "-"]
    assert " ".join(rows[3]) == "spiffe://t/ns/a/sa/c: the CA said no\\u000a"


def test_the_help_says_what_each_table_answers() -> None:
    shown = run("--help").output
    assert "Examples:\n  ztunnel show workloads" in shown.replace("\n    ", "\n  ")
    for section in SECTIONS:
        assert section.help in shown
        assert section.help in run(section.name, "--help").output


def test_no_agent_is_an_error_on_stderr_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["show", "workloads", "--admin", "http://127.0.0.1:1/"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "error: no answer from http://127.0.0.1:1/config_dump" in said.err
    assert "ztunnel serve" in said.err


def test_an_address_that_is_none_is_the_command_lines_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["show", "workloads", "--admin", "localhost"]) == 2
    assert capsys.readouterr().err.startswith("error: 'localhost' is not http://HOST:PORT")


@pytest.mark.parametrize(
    "content", ["[1]", "{", '{"workloads": [1]}', '{"workloadState": {"u": {}}}', '{"certificates": 3}']
)
def test_what_is_no_dump_is_one_sentence(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "dump.json"
    file.write_text(content)
    assert cli.run(["show", "all", "-f", str(file)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
