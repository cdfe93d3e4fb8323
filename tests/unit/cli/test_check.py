"""`ztunnel check`: each failure has a fix, and the exit code tells the machine's faults from the agent's."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from ztunnel.cli import check as module
from ztunnel.cli.agent import Reply
from ztunnel.cli.check import (
    Finding,
    agent_findings,
    capture_findings,
    check,
    exit_code,
    guarded,
    kernel_findings,
    rights_findings,
    tool_findings,
    user_namespace_finding,
)
from ztunnel.core.errors import PlatformError, UpstreamError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.redirect.model import Backend
from ztunnel.linux.rights import Kernel, Rights

PASSED = Finding("kernel", "Linux 6.1")
MISSING_TOOL = Finding("tools", "ip is not installed", "install the package iproute2")
NOT_READY = Finding("agent", "not ready, pending: proxy", "look at its log")

KERNEL = Kernel(
    release="6.1.0",
    ipv6=True,
    user_namespaces=True,
    in_user_namespace=False,
    congestion_control="cubic",
    open_files=(1024, 4096),
)
RIGHTS = Rights(
    net_admin=True, net_raw=True, sys_admin=True, enter_namespaces="", mark="", transparent="", sniff="not needed here"
)


@pytest.mark.parametrize(
    ("release", "good"), [("6.18.44-fc", True), ("4.19.0", True), ("4.18.9", False), ("3.10.0", False), ("odd", False)]
)
def test_an_old_kernel_is_told_what_to_do(release: str, good: bool) -> None:
    first, *_ = kernel_findings(msgspec.structs.replace(KERNEL, release=release))
    assert first.ok is good
    assert good or "4.19" in first.fix


def test_ipv6_that_is_off_is_no_failure() -> None:
    assert all(finding.ok for finding in kernel_findings(msgspec.structs.replace(KERNEL, ipv6=False)))


def test_all_rights_pass_and_each_missing_one_is_named_with_its_fix() -> None:
    assert all(finding.ok for finding in rights_findings(RIGHTS))
    poor = msgspec.structs.replace(RIGHTS, net_raw=False, mark="may not mark; run as root")
    assert [(finding.text, finding.fix) for finding in rights_findings(poor) if not finding.ok] == [
        ("CAP_NET_RAW", "run as root or with CAP_NET_RAW; for a trial, `unshare -Urnm` gives it in a world apart"),
        ("mark sockets", "may not mark; run as root"),
    ]


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("user/max_user_namespaces", "0", False),
        ("user/max_user_namespaces", "5000", True),
        ("kernel/unprivileged_userns_clone", "0", False),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", False),
        ("kernel/apparmor_restrict_unprivileged_userns", "0", True),
    ],
)
def test_forbidden_user_namespaces_name_the_setting(tmp_path: Path, name: str, value: str, good: bool) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(f"{value}\n")
    finding = user_namespace_finding(tmp_path)
    assert finding.ok is good
    assert good or f"sysctl -w {name.replace('/', '.')}=" in finding.fix


@pytest.mark.parametrize(
    ("installed", "fixes"),
    [
        ({"nft", "iptables", "ip"}, []),
        ({"iptables", "ip"}, []),
        ({"nft"}, ["install the package iproute2"]),
        (set(), ["install the package nftables or iptables", "install the package iproute2"]),
    ],
)
def test_one_rule_tool_is_enough_and_missing_packages_are_named(installed: set[str], fixes: list[str]) -> None:
    found = tool_findings(lambda tool: f"/sbin/{tool}" if tool in installed else None)
    assert [finding.fix for finding in found if not finding.ok] == fixes


def test_capture_names_what_works_and_why_nothing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def try_rules(mode: CaptureMode, backend: Backend) -> None:
        if mode is CaptureMode.TPROXY or backend is Backend.NFT:
            raise PlatformError(f"{backend.value} refused", hint="load the module xt_TPROXY")

    monkeypatch.setattr(module, "_try_rules", try_rules)
    redirect, tproxy, node = capture_findings()
    assert redirect == Finding("capture", "redirect rules work with iptables-nft, iptables-legacy")
    assert tproxy == Finding("capture", "tproxy rules: nft refused", "load the module xt_TPROXY")
    assert node.ok


def test_a_taken_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(module, "AGENT_PORTS", {port: "admin"})
        monkeypatch.setattr(module, "CAPTURE_PORTS", {})
        (finding,) = module.port_findings(None)
    assert not finding.ok
    assert f"{port} (admin) here" in finding.text
    (finding,) = module.port_findings(None)
    assert finding == Finding("ports", f"{port} (admin) is free here")


def test_an_agent_that_is_not_ready_says_what_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = {"/config_dump": Reply(200, b"{}"), "/healthz/ready": Reply(500, b"not ready, pending: proxy\n")}
    monkeypatch.setattr(module, "ask", lambda base, path: replies[path])
    first, second = agent_findings("http://a", "http://b")
    assert first.ok
    assert (second.ok, second.text) == (False, "not ready, pending: proxy")
    replies["/config_dump"] = Reply(404, b"")
    first, _ = agent_findings("http://a", "http://b")
    assert not first.ok


def test_an_expected_error_ends_its_group_as_a_finding_with_its_hint() -> None:
    def findings() -> Iterator[Finding]:
        yield PASSED
        raise UpstreamError("no answer", hint="start it")

    assert list(guarded("agent", findings)) == [PASSED, Finding("agent", "no answer", "start it")]


@pytest.mark.parametrize(
    ("findings", "code"),
    [([PASSED], 0), ([PASSED, NOT_READY], 1), ([MISSING_TOOL], 2), ([NOT_READY, MISSING_TOOL], 2)],
)
def test_the_exit_code_is_the_verdict(findings: list[Finding], code: int) -> None:
    assert exit_code(findings) == code


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Finding]], None]:
    """Makes the command find just these."""

    def fix(findings: list[Finding]) -> None:
        monkeypatch.setattr(module, "run_checks", lambda **asked: iter(findings))

    return fix


def test_the_report_has_a_line_for_each_check_in_groups(fixed: Callable[[list[Finding]], None]) -> None:
    fixed([PASSED, MISSING_TOOL, NOT_READY])
    result = CliRunner().invoke(check, [])
    assert result.exit_code == 2
    assert result.stdout == (
        "kernel\n"
        "  [ok] Linux 6.1\n"
        "\n"
        "tools\n"
        "  [!!] ip is not installed\n"
        "       fix: install the package iproute2\n"
        "\n"
        "agent\n"
        "  [!!] not ready, pending: proxy\n"
        "       fix: look at its log\n"
        "\n"
        "2 of 3 checks failed\n"
    )


def test_json_says_the_same(fixed: Callable[[list[Finding]], None]) -> None:
    fixed([PASSED, NOT_READY])
    result = CliRunner().invoke(check, ["-o", "json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "ok": False,
        "checks": [
            {"group": "kernel", "text": "Linux 6.1", "fix": "", "ok": True},
            {"group": "agent", "text": "not ready, pending: proxy", "fix": "look at its log", "ok": False},
        ],
    }


@pytest.mark.parametrize(("arguments", "groups"), [(["--pre"], {"ports"}), ([], {"agent"})])
def test_before_the_agent_runs_its_ports_are_checked_and_later_the_agent(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], groups: set[str]
) -> None:
    monkeypatch.setattr(module, "capture_findings", lambda: iter(()))
    monkeypatch.setattr(module, "ask", lambda base, path: Reply(200, b"ready"))
    monkeypatch.setattr(module, "AGENT_PORTS", {0: "any"})
    monkeypatch.setattr(module, "CAPTURE_PORTS", {0: "any"})
    result = CliRunner().invoke(check, [*arguments, "-o", "json"])
    found = {each["group"] for each in json.loads(result.stdout)["checks"]}
    assert found & {"ports", "agent"} == groups
    assert {"kernel", "rights", "tools"} <= found


def test_a_namespace_that_is_not_there_is_a_failure_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "capture_findings", lambda: iter(()))
    result = CliRunner().invoke(check, ["--pre", "--netns", "no-such-namespace", "-o", "json"])
    failed = [each for each in json.loads(result.stdout)["checks"] if "no-such-namespace" in each["text"]]
    assert failed
    assert "ip netns list" in failed[0]["fix"]
    assert result.exit_code != 0
