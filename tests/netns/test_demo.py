"""`ztunnel demo` as its users run it: every beat holds, as root and without, and nothing is left behind.

What could be left: processes (found by the TMPDIR that they inherit), files there, links, rules and routes of the
namespace it was started in. Namespaces are never named; without a process they are gone by themselves.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ztunnel.linux.links import Namespace

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
DEMO = [sys.executable, "-m", "ztunnel", "demo"]
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
LISTINGS = (
    *([tool] for tool in ("iptables-save", "ip6tables-save") if shutil.which(tool, path=PATH)),
    *([tool, "list", "ruleset"] for tool in ("nft",) if shutil.which(tool, path=PATH)),
    ["ip", "rule"],
    ["ip", "-6", "rule"],
    ["ip", "route", "show", "table", "all"],
    ["ip", "-o", "link"],
)
BEATS = ["application", "wire", "identity", "ipv6", "open connection", "next request"]


class Home:
    """A network namespace to start demos from, and a directory for their files, by which their processes are known."""

    def __init__(self, directory: Path, namespace: Namespace, uid: int) -> None:
        self.directory = directory
        self._namespace = namespace
        self._options: dict[str, Any] = {
            "cwd": REPOSITORY,
            "env": {"PATH": PATH, "TMPDIR": str(directory)},
        }
        if uid != os.geteuid():
            self._options |= {"user": uid, "group": uid, "extra_groups": []}
        self._before = self._network()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._namespace.run([*DEMO, *arguments], timeout=55, check=False, **self._options)

    @contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A demo that ends with the block, also when the test fails."""
        pipe = subprocess.PIPE
        with self._namespace.popen([*DEMO, *arguments], stdout=pipe, stderr=pipe, text=True, **self._options) as child:
            try:
                yield child
            finally:
                child.terminate()
                child.communicate(timeout=20)

    def processes(self) -> list[str]:
        mark = f"TMPDIR={self.directory}\0".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    found.append(f"{process.name} {(process / 'cmdline').read_text()}".replace("\0", " "))
            except OSError:
                continue
        return found

    def files(self) -> list[Path]:
        return list(self.directory.iterdir())

    def left_behind(self) -> dict[str, object]:
        """By kind; empty when all is as it was."""
        found: dict[str, object] = {"processes": self.processes(), "files": self.files()}
        found |= {what: text for what, text in self._network().items() if self._before[what] != text}
        return {what: things for what, things in found.items() if things}

    def _network(self) -> dict[str, str]:
        listings = {}
        for command in LISTINGS:
            lines = self._namespace.run(command).stdout.splitlines()
            listings[" ".join(command)] = "\n".join(line for line in lines if not line.startswith("#"))
        return listings


def make_home(uid: int) -> Iterator[Home]:
    directory = Path(tempfile.mkdtemp(prefix="zt-test-"))
    if uid != os.geteuid():
        os.chown(directory, uid, uid)
    with closing(Namespace("home")) as namespace:
        yield Home(directory, namespace, uid)
    shutil.rmtree(directory)


@pytest.fixture
def home(namespaces: None) -> Iterator[Home]:
    yield from make_home(os.geteuid())


@pytest.fixture
def home_of_nobody() -> Iterator[Home]:
    """For a user without any privilege."""
    for home in make_home(NOBODY):
        probe = home.run("--help")
        if probe.returncode:
            pytest.skip(f"the user {NOBODY} cannot read this interpreter: {probe.stderr}")
        yield home


def wait_until(what: str, look: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        threading.Event().wait(0.02)


def read_until(child: subprocess.Popen[str], wanted: str, seconds: float = 50) -> str:
    """What the child printed up to the line that has `wanted`."""
    assert child.stdout is not None
    printed, deadline = "", time.monotonic() + seconds
    os.set_blocking(child.stdout.fileno(), False)
    while wanted not in printed:
        ready, _, _ = select.select([child.stdout], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{wanted!r} was not printed:\n{printed}"
        piece = os.read(child.stdout.fileno(), 65536).decode()
        assert piece, f"it ended before {wanted!r}:\n{printed}{child.communicate()}"
        printed += piece
    return printed


def test_every_beat_holds_in_every_capture_mode_and_nothing_stays(home: Home) -> None:
    done = home.run("--json")
    result = json.loads(done.stdout)
    assert result["ok"], done.stdout
    assert done.returncode == 0
    assert done.stderr == ""
    held = [(beat["mode"], beat["name"]) for beat in result["beats"] if beat["ok"]]
    assert held == [(mode, name) for mode in ("redirect", "tproxy", "node") for name in BEATS]
    details = {beat["name"]: beat["detail"] for beat in result["beats"]}
    assert "spiffe://cluster.local/ns/demo/sa/client" in details["identity"]
    assert "explicitly denied by: demo/deny-client" in details["open connection"]
    assert "explicitly denied by: demo/deny-client" in details["next request"]
    assert home.left_behind() == {}


@pytest.mark.root
def test_an_unprivileged_user_sees_the_same_enters_pods_and_removes_all_with_ctrl_c(home_of_nobody: Home) -> None:
    home = home_of_nobody
    with home.start() as child:
        printed = read_until(child, "Ctrl-C removes everything.")
        assert "in a user namespace, without root" in printed
        assert printed.count("✓") == 3 * len(BEATS)
        assert "\033" not in printed, "colours are for terminals"

        inside = home.run("exec", "client", "--", "curl", "-4sS", "--max-time", "5", "http://server:8080/")
        assert "I see you at 10.1.0.2" in inside.stdout, inside.stderr
        shown = home.run("exec", "node2", "--", sys.executable, "-m", "ztunnel", "show", "certs")
        assert "spiffe://cluster.local/ns/demo/sa/server" in shown.stdout, shown.stderr
        nowhere = home.run("exec", "moon", "--", "true")
        assert (nowhere.returncode, nowhere.stdout) == (2, "")
        assert "client, visitor, server, node1, node2" in nowhere.stderr

        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 0
    assert home.left_behind() == {}


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "✓ plain HTTP"), (signal.SIGTERM, "✓ the caller's identity"), (signal.SIGHUP, "Two nodes")],
)
def test_a_signal_in_the_middle_ends_it_and_nothing_stays(home: Home, number: signal.Signals, moment: str) -> None:
    with home.start("--once") as child:
        read_until(child, moment)
        child.send_signal(number)
        assert child.wait(20) == 128 + number
        assert child.stderr is not None
        assert f"interrupted by {number.name}" in child.stderr.read()
    assert home.left_behind() == {}


def test_a_signal_while_it_builds_ends_it_and_nothing_stays(home: Home) -> None:
    with home.start("--once") as child:
        wait_until("it builds", lambda: bool(home.files()))
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 128 + signal.SIGTERM
    assert home.left_behind() == {}


def test_after_kill_9_processes_end_and_the_next_demo_sweeps_the_files(home: Home) -> None:
    with home.start("--once") as child:
        read_until(child, "✓ plain HTTP")
        killed = home.files()
        child.kill()
        child.wait(20)
        wait_until("the children end", lambda: not home.processes())
    assert home.files() == killed
    with home.start("--once") as child:
        wait_until("the next demo removes the files", lambda: bool(home.files()) and killed[0] not in home.files())
        child.send_signal(signal.SIGINT)
        child.wait(20)
    assert home.left_behind() == {}
