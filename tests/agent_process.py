"""The real command in a process of its own, in a namespace: started, asked over its ports, stopped.

    agent = Agent(pod, directory, PROXY_MODE="dedicated", ...)
    agent.wait_ready()
    agent.stop()          SIGTERM, and its exit code

Blocking, for synchronous tests. The process ends with the namespace's topology whatever the test does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ztunnel
from ztunnel.cli.agent import Reply, ask
from ztunnel.core.errors import UpstreamError
from ztunnel.linux.links import Namespace

ROOT = Path(ztunnel.__file__).parent.parent
PATIENCE = 20.0
"""Seconds for anything that should happen."""
DRAIN = "10s"
"""Long enough that nothing but the drain itself ends it."""


class Agent:
    def __init__(self, place: Namespace, directory: Path, **environ: str) -> None:
        self._place = place
        self._log = directory / f"agent-{place.name}.log"
        settings = {
            "XDS_ADDRESS": "",
            "LOCAL_CA_PATH": str(directory / "ca"),
            "ENROLL_UDS": str(directory / f"enroll-{place.name}.sock"),
            "CONNECTION_TERMINATION_DEADLINE": DRAIN,
            "LOG_FORMAT": "json",
            **environ,
        }
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with self._log.open("ab") as log:
            self.process = place.popen(
                [sys.executable, "-P", "-m", "ztunnel", "serve"],
                env={**inherited, "PYTHONPATH": str(ROOT), **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )

    def get(self, port: int, path: str, method: str = "GET") -> Reply:
        return self._place.call(ask, f"http://127.0.0.1:{port}", path, method=method, timeout=5)

    def dump(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get(15000, "/config_dump").body)
        return found

    def wait_ready(self) -> None:
        wait_until(self._is_ready, self.log)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"the agent ended with {self.process.returncode}:\n{self.log()}"
        try:
            return self.get(15021, "/healthz/ready").status == 200
        except UpstreamError:
            return False

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(5)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def children(self) -> dict[str, int]:
        """Process by its short name; they come and go while we look."""
        pid, found = self.process.pid, {}
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(OSError):
                found[Path(f"/proc/{child}/comm").read_text().strip()] = int(child)
        return found

    def log(self) -> str:
        return self._log.read_text()

    def access(self) -> list[dict[str, Any]]:
        """Access-log lines so far; the agent may be in the middle of writing one."""
        whole, _, _ = self.log().rpartition("\n")
        lines = (json.loads(line) for line in whole.splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("scope") == "access"]


def open_files(pid: int) -> Iterator[os.stat_result]:
    """What the process has open; it opens and closes while we look."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = file.stat()
        except OSError:
            continue
        yield found


def wait_until(condition: Callable[[], object], explain: Callable[[], str] = lambda: "") -> None:
    """Look again and again, for what another process does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {PATIENCE:g} s: {explain()}"
        select_nothing(0.02)


def select_nothing(seconds: float) -> None:
    """A pause that waits for nothing but time."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as quiet:
        quiet.bind(("127.0.0.1", 0))
        quiet.settimeout(seconds)
        try:
            quiet.recv(1)
        except TimeoutError:
            return


def echo(sock: socket.socket, data: bytes) -> bytes:
    """Send, end, and read everything that comes back."""
    with sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))
