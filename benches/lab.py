"""The topology every measurement runs in, made anew each time.

    namespace c (10.77.0.1)                                namespace s (10.77.0.2)
    load generator ──▶ REDIRECT 15001 ──▶ agent A ═══ veth, MTU 1500, mTLS HBONE ═══▶ agent B 15008 ──▶ server 9000

A used namespace keeps TIME_WAIT sockets and conntrack entries that slow later connects by up to ten times, so none
is used twice. This module owns namespaces, routes, rules and the processes in them, and takes all of it away on exit;
it knows nothing of the agents and of what is measured. Processes die with the bench even if it is killed. Agents that
install the rules themselves live in namespaces of their own (`add`), which are the nodes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

CLIENT_IP = "10.77.0.1"
SERVER_IP = "10.77.0.2"
SERVER_PORT = 9000
OUTBOUND_PORT = 15001
HBONE_PORT = 15008
AGENT_MARK = "0x539/0xfff"
PREFIX = "ztbench"
PORTS = "10000 65535"
"""For connections without a port of their own: the default's 28,000 are so full with 10,000 open that the kernel's
search for a free one costs more than the connection."""

COMMAND_LIMIT = 10.0
"""Seconds one set-up command may take."""
READY_LIMIT = 30.0
"""Seconds until a started agent must listen."""


class BenchError(Exception):
    """A measurement could not be made; the text says what failed and shows the end of the log."""


def run(*command: str, limit: float = COMMAND_LIMIT) -> str:
    """Runs a command to its end and returns its output; BenchError when it fails or takes longer than `limit` s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def pause(seconds: float) -> None:
    """Waits; nothing else runs in this process."""
    threading.Event().wait(seconds)


class Lab:
    """Two namespaces, `c` and `s`, joined by a veth, with one congestion control for all."""

    def __init__(self, directory: Path, congestion: str) -> None:
        self.directory = directory
        self.congestion = congestion
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sides: list[str] = []

    def namespace(self, side: str) -> str:
        """The name that `ip netns` knows."""
        return f"{PREFIX}-{os.getpid()}-{side}"

    def add(self, side: str) -> None:
        """One more namespace, with nothing but loopback."""
        run("ip", "netns", "add", self.namespace(side))
        self._sides.append(side)
        run("ip", "-n", self.namespace(side), "link", "set", "lo", "up")

    def add_still(self, side: str, address: str) -> None:
        """One more namespace, with an address and a route but nobody to talk to."""
        self.add(side)
        ip = ("ip", "-n", self.namespace(side))
        run(*ip, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        run(*ip, "addr", "add", f"{address}/32", "dev", "veth0")
        for end in ("veth0", "veth1"):
            run(*ip, "link", "set", end, "up")
        run(*ip, "route", "add", "default", "dev", "veth0")

    def _inside(self, side: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace(side), *command]

    def run(self, side: str, *command: str, limit: float = COMMAND_LIMIT) -> str:
        return run(*self._inside(side, *command), limit=limit)

    def spawn(self, side: str, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """Starts a process whose output goes to `name`.log; returns its pid."""
        return self.popen(side, name, command, env).pid

    def popen(
        self, side: str, name: str, command: Sequence[str], env: Mapping[str, str] | None = None, *, talk: bool = False
    ) -> subprocess.Popen[bytes]:
        """Like `spawn`, and with `talk` its standard input and output are pipes."""
        pipe = subprocess.PIPE if talk else None
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._inside(side, *command)],
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or log,
                stderr=log,
                env=env,
                start_new_session=True,  # the terminal's Ctrl-C reaches the bench alone, which then ends them in order
            )
        self._processes.append(process)
        return process

    def end(self, pid: int) -> None:
        """Kills one process group before the lab ends, and waits until it is gone."""
        process = next(p for p in self._processes if p.pid == pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def log_end(self, name: str) -> str:
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-15:])

    def wait_listening(self, side: str, port: int, pid: int, name: str) -> None:
        """Returns when `port` is listened on; BenchError when process `pid` ends before or READY_LIMIT passes."""
        process = next(p for p in self._processes if p.pid == pid)

        def listening() -> bool:
            if process.poll() is not None:
                raise BenchError(f"{name} ended before it listened on {port}; its log ends:\n{self.log_end(name)}")
            return f":{port} " in self.run(side, "ss", "-Hltn")

        self._wait(listening, f"{name} does not listen on {port}", name)

    def wait_answering(self, side: str, url: str, name: str) -> None:
        """Returns when `url` answers with success inside the namespace; BenchError after READY_LIMIT."""

        def answering() -> bool:
            probe = self._inside(side, "curl", "--silent", "--fail", "--max-time", "1", url)
            return subprocess.run(probe, capture_output=True, check=False).returncode == 0

        self._wait(answering, f"{name} does not answer {url}", name)

    def _wait(self, done: Callable[[], bool], failure: str, name: str) -> None:
        deadline = time.monotonic() + READY_LIMIT
        while not done():
            if time.monotonic() > deadline:
                raise BenchError(f"{failure} within {READY_LIMIT:g} s; its log ends:\n{self.log_end(name)}")
            pause(0.02)

    def congestion_seen(self) -> set[str]:
        """The congestion controls of the open tunnels, as the kernel reports them for the client side's sockets."""
        report = self.run("c", "ss", "-Htin", "dport", "=", f":{HBONE_PORT}")
        return set(re.findall(r"\b(\w+) wscale:", report))  # it stands before the window scale in ss -i

    def established(self, side: str, port: int) -> int:
        """How many connections from this namespace to `port` elsewhere are open."""
        return len(self.run(side, "ss", "-Htn", "state", "established", "dport", "=", f":{port}").splitlines())

    def set_up(self) -> None:
        c, s = self.namespace("c"), self.namespace("s")
        self.add("c")
        self.add("s")
        run(
            "ip", "link", "add", "veth0", "mtu", "1500", "netns", c, "type", "veth", "peer", "name", "veth0", "netns", s
        )
        for side, address in (("c", CLIENT_IP), ("s", SERVER_IP)):
            ip = ("ip", "-n", c if side == "c" else s)
            run(*ip, "addr", "add", f"{address}/24", "dev", "veth0")
            run(*ip, "link", "set", "veth0", "up")
            self.run(side, "sh", "-c", f"echo {PORTS} > /proc/sys/net/ipv4/ip_local_port_range")
            run(*ip, "route", "change", "10.77.0.0/24", "dev", "veth0", "src", address, "congctl", self.congestion)
            local = ("table", "local", "local", address, "dev", "lo", "src", address)
            run(*ip, "route", "change", *local, "proto", "kernel", "scope", "host", "congctl", self.congestion)

    def capture(self) -> None:
        """Redirects the client's connections to an agent that leaves this to others."""
        rule = ("-A", "OUTPUT", "-p", "tcp", "-d", SERVER_IP, "--dport", str(SERVER_PORT))
        mark = ("-m", "mark", "!", "--mark", AGENT_MARK)
        self.run("c", "iptables", "-t", "nat", *rule, *mark, "-j", "REDIRECT", "--to-ports", str(OUTBOUND_PORT))

    def tear_down(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
        for side in self._sides:
            subprocess.run(["ip", "netns", "del", self.namespace(side)], stderr=subprocess.DEVNULL, check=False)


@contextlib.contextmanager
def fresh(congestion: str) -> Iterator[Lab]:
    """A lab that exists for the body of the `with` and is gone after it, whatever happens."""
    directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-"))
    lab = Lab(directory, congestion)
    try:
        lab.set_up()
        yield lab
    finally:
        lab.tear_down()
        shutil.rmtree(directory, ignore_errors=True)


def sweep() -> None:
    """Removes namespaces of benches that were killed before they could."""
    for name in re.findall(rf"^({PREFIX}-(?:\d+)-\w+)\b", run("ip", "netns", "list"), re.M):
        if not Path(f"/proc/{name.split('-')[1]}").exists():
            run("ip", "netns", "del", name)
