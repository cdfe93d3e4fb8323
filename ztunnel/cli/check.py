"""`ztunnel check`: can this machine run the agent, and is the agent that runs here well?

Every check is one line, [ok] or [!!], and every failure comes with one fix. Nothing is changed on the machine: rules
are tried in network namespaces that exist only for that.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from ztunnel.cli.agent import DEFAULT_ADMIN, DEFAULT_READINESS, ask
from ztunnel.core.errors import ZtunnelError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.netns import bring_up_loopback, create_netns, in_netns, open_netns
from ztunnel.linux.probe import probe_capture
from ztunnel.linux.redirect import apply as rules
from ztunnel.linux.redirect.model import Backend, CaptureSpec
from ztunnel.linux.rights import Kernel, Rights, kernel, rights
from ztunnel.linux.sockets import listen_tcp

OLDEST_KERNEL = (4, 19)
"""nft's tproxy expression is of Linux 4.19; everything else is older."""
TOOLS = {"nft": "nftables", "iptables": "iptables", "ip": "iproute2"}
AGENT_PORTS = {15000: "admin", 15020: "metrics", 15021: "readiness"}
CAPTURE_PORTS = {15001: "outbound", 15006: "inbound plain text", 15008: "HBONE"}
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"))

EXIT_AGENT = 1
EXIT_MACHINE = 2


class Finding(NamedTuple):
    """The result of one check."""

    group: str
    text: str
    fix: str = ""
    """What to do; empty when the check passed."""

    @property
    def ok(self) -> bool:
        return not self.fix


MACHINE_GROUPS = ("kernel", "rights", "user namespaces", "tools", "capture")
"""What fails here is the machine's business (exit code 2), the rest is the agent's (1)."""


def kernel_findings(kernel: Kernel) -> Iterator[Finding]:
    found = re.match(r"(\d+)\.(\d+)", kernel.release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    oldest = ".".join(map(str, OLDEST_KERNEL))
    yield Finding(
        "kernel", f"Linux {kernel.release}", "" if version >= OLDEST_KERNEL else f"use Linux {oldest} or newer"
    )
    yield Finding("kernel", "IPv6 is on" if kernel.ipv6 else "IPv6 is off: only IPv4 is captured")
    soft, hard = kernel.open_files
    yield Finding("kernel", f"open files: {soft}, may be raised to {hard}; a connection needs two")


def rights_findings(rights: Rights) -> Iterator[Finding]:
    """Each right is one that was tried."""
    for name, held in (("NET_ADMIN", rights.net_admin), ("NET_RAW", rights.net_raw), ("SYS_ADMIN", rights.sys_admin)):
        fix = f"run as root or with CAP_{name}; for a trial, `unshare -Urnm` gives it in a world apart"
        yield Finding("rights", f"CAP_{name}", "" if held else fix)
    tried = {
        "enter network namespaces": rights.enter_namespaces,
        "mark sockets": rights.mark,
        "use the clients' addresses": rights.transparent,
    }
    for what, refusal in tried.items():
        yield Finding("rights", what, refusal)


def user_namespace_finding(sysctl: Path) -> Finding:
    """Whether `ztunnel demo` works without root; `sysctl` is /proc/sys."""
    obstacles = {
        "user/max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=10000"),
        "kernel/unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        "kernel/apparmor_restrict_unprivileged_userns": (
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    }
    for name, (forbidding, fix) in obstacles.items():
        path = sysctl / name
        if path.exists() and path.read_text().strip() == forbidding:
            return Finding("user namespaces", f"forbidden by {name.replace('/', '.')}={forbidding}", fix)
    return Finding("user namespaces", "allowed: the demo works without root")


def tool_findings(which: Callable[[str], str | None]) -> Iterator[Finding]:
    """nft or iptables is enough; `ip` adds the routes of transparent proxying."""
    found = {tool: which(tool) for tool in TOOLS}
    if found["nft"] or found["iptables"]:
        present = [f"{tool} ({found[tool]})" for tool in ("nft", "iptables") if found[tool]]
        yield Finding("tools", " and ".join(present))
    else:
        yield Finding("tools", "neither nft nor iptables is installed", "install the package nftables or iptables")
    where = found["ip"]
    yield Finding(
        "tools", f"ip ({where})" if where else "ip is not installed", "" if where else "install the package iproute2"
    )


def capture_findings() -> Iterator[Finding]:
    """Try the rules of every mode in a namespace of their own, with every tool that is installed."""
    for mode in (CaptureMode.REDIRECT, CaptureMode.TPROXY, CaptureMode.NODE):
        working, refusals = [], []
        for backend in Backend:
            try:
                _try_rules(mode, backend)
                working.append(backend.value)
            except ZtunnelError as error:
                refusals.append(error)
        if working:
            yield Finding("capture", f"{mode.value} rules work with {', '.join(working)}")
        else:
            worst = refusals[0]
            yield Finding(
                "capture", f"{mode.value} rules: {worst}", worst.hint or "see `dmesg` for what the kernel lacks"
            )


def _try_rules(mode: CaptureMode, backend: Backend) -> None:
    scratch = create_netns()
    try:
        with in_netns(scratch):
            bring_up_loopback()
        spec = CaptureSpec(mode=mode)
        if mode is CaptureMode.NODE:
            spec = msgspec.structs.replace(spec, pod_interfaces=("veth0",), pod_ips=("192.0.2.1",))
        rules.apply(spec, scratch, backend)
    finally:
        os.close(scratch)


def netns_findings(name: str) -> Iterator[Finding]:
    """A pod's namespace: it is there, has rules, and its connections do arrive at the agent."""
    fd = open_netns(name)
    try:
        yield Finding("namespace", f"{name} can be opened")
        count = sum(len(lines) for lines in rules.present(fd).values())
        if not count:
            yield Finding("namespace", f"no capture rules in {name}", f"ztunnel redirect apply --netns {name}")
            return
        yield Finding("namespace", f"{count} capture rules are in {name}")
        yield from _probe_findings(name, fd)
    finally:
        os.close(fd)


def _probe_findings(name: str, fd: int) -> Iterator[Finding]:
    """One for each family that the namespace can send by."""
    fix = f"does the agent serve {name}? Are the rules whole: ztunnel redirect verify --netns {name}"
    results = {family: probe_capture(fd, ipv6=family == "IPv6") for family in ("IPv4", "IPv6")}
    for family, result in results.items():
        if result.sent:
            text = f"{family} probe to {result.target}: {result.why}"
            yield Finding("namespace", text, "" if result.captured else fix)
    if not any(result.sent for result in results.values()):
        yield Finding(
            "namespace", f"capture is not proven: {name} has no route", f"ip -n {name} address; ip -n {name} route"
        )


def port_findings(netns: str | None) -> Iterator[Finding]:
    """Whether the ports that an agent will need are free, here and in the pod's namespace."""
    yield from _free("here", AGENT_PORTS | ({} if netns else CAPTURE_PORTS), None)
    if netns:
        fd = open_netns(netns)
        try:
            yield from _free(f"in {netns}", CAPTURE_PORTS, fd)
        finally:
            os.close(fd)


def _free(where: str, ports: dict[int, str], fd: int | None) -> Iterator[Finding]:
    for port, purpose in ports.items():
        try:
            listen_tcp(ip=None, port=port, netns=fd).close()
        except ZtunnelError as error:
            yield Finding("ports", f"{port} ({purpose}) {where}: {error}", error.hint or "free the port")
        else:
            yield Finding("ports", f"{port} ({purpose}) is free {where}")


def agent_findings(admin: str, readiness: str) -> Iterator[Finding]:
    reply = ask(admin, "/config_dump")
    if reply.status == 200:
        yield Finding("agent", f"answers at {admin}")
    else:
        yield Finding("agent", f"{admin} answers {reply.status}", "is another program on the admin port? `ss -ltnp`")
    reply = ask(readiness, "/healthz/ready")
    fix = "" if reply.status == 200 else "what is pending says its log; `ztunnel show all` says how far it came"
    yield Finding("agent", reply.text, fix)


def guarded(group: str, findings: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings, and an expected error that ends them as a last one."""
    try:
        yield from findings()
    except ZtunnelError as error:
        yield Finding(group, str(error), error.hint or "see above")


def run_checks(*, pre: bool, netns: str | None, admin: str, readiness: str) -> Iterator[Finding]:
    """Every check that applies, in the order of the report."""
    yield from kernel_findings(kernel())
    tried = list(rights_findings(rights()))
    yield from tried
    if os.geteuid() != 0:
        yield user_namespace_finding(Path("/proc/sys"))
    yield from tool_findings(lambda tool: shutil.which(tool, path=SEARCH_PATH))
    if all(finding.ok for finding in tried):
        yield from guarded("capture", capture_findings)
    if pre:
        yield from guarded("ports", lambda: port_findings(netns))
    else:
        if netns:
            yield from guarded("namespace", lambda: netns_findings(netns))
        yield from guarded("agent", lambda: agent_findings(admin, readiness))


def exit_code(findings: Iterable[Finding]) -> int:
    """0: all well; 2: the machine lacks something; 1: the agent is not well, or could not be."""
    failed = [finding for finding in findings if not finding.ok]
    if any(finding.group in MACHINE_GROUPS for finding in failed):
        return EXIT_MACHINE
    return EXIT_AGENT if failed else 0


def as_json(findings: Iterable[Finding]) -> str:
    checks = [{**finding._asdict(), "ok": finding.ok} for finding in findings]
    report = {"ok": all(check["ok"] for check in checks), "checks": checks}
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def _print(finding: Finding, last_group: str) -> None:
    if finding.group != last_group:
        click.echo(f"\n{finding.group}" if last_group else finding.group)
    mark = click.style("[ok]", fg="green") if finding.ok else click.style("[!!]", fg="red")
    click.echo(f"  {mark} {finding.text}")
    if finding.fix:
        click.echo(f"       fix: {finding.fix}")


@click.command()
@click.option("--pre", is_flag=True, help="Before the agent runs: are its ports free?")
@click.option("--netns", metavar="NAME", help="Look into this pod's network namespace too.")
@click.option("--admin", metavar="URL", default=DEFAULT_ADMIN, show_default=True, help="Admin port.")
@click.option("--readiness", metavar="URL", default=DEFAULT_READINESS, show_default=True, help="Readiness port.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def check(context: click.Context, pre: bool, netns: str | None, admin: str, readiness: str, output: str) -> None:
    """Check this machine and the agent on it; each failure comes with its fix.

    Exit code 0: all well. 1: the agent is not well. 2: the machine lacks something.
    """
    findings: list[Finding] = []
    for finding in run_checks(pre=pre, netns=netns, admin=admin, readiness=readiness):
        if output == "table":
            _print(finding, findings[-1].group if findings else "")
        findings.append(finding)
    if output == "json":
        click.echo(as_json(findings))
    else:
        failed = sum(not finding.ok for finding in findings)
        click.echo(f"\n{failed} of {len(findings)} checks failed" if failed else f"\nall {len(findings)} checks passed")
    context.exit(exit_code(findings))
