"""The demo's child processes: one real agent per node, and the application.

Each writes to a log file in the demo's directory; the log is also how the demo learns what they saw. They are in
sessions of their own, so that Ctrl-C reaches the demo alone, and end with it even when it is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

import ztunnel
from ztunnel.cli import enroll
from ztunnel.cli.agent import DEFAULT_READINESS, ask
from ztunnel.control.pods.requests import List, Row
from ztunnel.core.errors import UpstreamError, ZtunnelError
from ztunnel.linux.enter import die_with_parent
from ztunnel.linux.links import Namespace, Node

Line = Mapping[str, Any]

_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
"""What children inherit; anything else could configure an agent behind our back."""
_ANSWER = 1.0
"""Seconds for an agent to answer on its sockets."""
_TAIL = 12
"""Lines of a log that a failure shows."""


class Process:
    """A command in a namespace, and its log of JSON lines."""

    def __init__(self, name: str, place: Namespace, argv: Sequence[str], log: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output, open(os.devnull, "rb") as nothing:
            self._child = place.popen(
                argv,
                stdin=nothing,
                stdout=output,
                stderr=output,
                env={**_environment(), **environ},
                cwd="/",
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.poll()

    def end(self) -> None:
        """Ask it to end; it ends at once when it is asked again."""
        if self.exit_code is None:
            self._child.send_signal(signal.SIGTERM)

    def position(self) -> int:
        """The end of the log now, for `lines`."""
        return self.log.stat().st_size

    def lines(self, since: int = 0) -> Iterator[Line]:
        """Whole JSON lines of the log from a position on."""
        with self.log.open("rb") as file:
            file.seek(since)
            for line in file:
                with contextlib.suppress(msgspec.DecodeError):
                    yield msgspec.json.decode(line, type=dict[str, Any])

    def tail(self) -> str:
        """The last lines of the log, for a message."""
        lines = self.log.read_text(errors="backslashreplace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-_TAIL:])


class Agent(Process):
    """`ztunnel serve` on a node, told everything by its environment."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self.mesh = directory / f"{node.name}.yaml"
        self._socket = directory / f"{node.name}.sock"
        environ = {
            "NODE_NAME": node.name,
            "XDS_ADDRESS": "",
            "CA_ADDRESS": "",
            "LOCAL_XDS_PATH": str(self.mesh),
            "WORKERS": "0",
            "LOCAL_CA_PATH": str(directory / "ca"),
            "ENROLL_UDS": str(self._socket),
            "CONNECTION_TERMINATION_DEADLINE": "1s",
            "LOG_FORMAT": "json",
            "RUST_LOG": "info",
        }
        argv = (sys.executable, "-P", "-m", "ztunnel", "serve")
        super().__init__(f"the agent of {node.name}", node, argv, directory / f"{node.name}.log", environ)

    def not_ready(self) -> str:
        """Why it is not ready; empty when it is."""
        try:
            reply = self.node.call(ask, DEFAULT_READINESS, "/healthz/ready", timeout=_ANSWER)
        except UpstreamError:
            return "it does not answer yet"
        return "" if reply.status == 200 else reply.text

    def pods(self) -> tuple[Row, ...]:
        """The pods it serves, as `ztunnel enroll` would be told; none when it does not answer."""
        try:
            return enroll.ask(str(self._socket), List()).pods
        except ZtunnelError:
            return ()

    def connections(self, since: int, wanted: Callable[[Line], bool]) -> list[Line]:
        """Access-log lines since a position of the log that are wanted."""
        return [line for line in self.lines(since) if line.get("scope") == "access" and wanted(line)]


class App(Process):
    """The HTTP server in the server's pod."""

    def __init__(self, pod: Namespace, port: int, directory: Path) -> None:
        script = Path(__file__).with_name("app.py")
        super().__init__(
            "the application", pod, (sys.executable, "-I", str(script), str(port)), directory / "server.log", {}
        )

    def saw(self, since: int, secret: str) -> Line | None:
        """The request with that secret, as the application saw it."""
        return next((line for line in self.lines(since) if line.get("secret") == secret), None)


def _environment() -> dict[str, str]:
    """The package is found also where it is not installed."""
    home = str(Path(ztunnel.__file__).parents[1])
    path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | {"PYTHONPATH": path}
