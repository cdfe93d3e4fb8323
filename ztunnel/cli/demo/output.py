"""What a run of the demo shows: lines with ticks for people, one JSON object for machines. Decides nothing."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Mapping
from typing import NamedTuple

import click
import msgspec

from ztunnel.cli import may_be_coloured
from ztunnel.cli.demo import mesh
from ztunnel.cli.demo.beats import Beat
from ztunnel.cli.demo.stage import Stage
from ztunnel.core.model.capture import CaptureMode

MODE_TITLES = {
    CaptureMode.REDIRECT: "REDIRECT rules in each pod",
    CaptureMode.TPROXY: "TPROXY rules in each pod",
    CaptureMode.NODE: "TPROXY rules in each node, none in the pods",
}
TRY = (
    ("exec client -- curl -s http://server:8080/", "a request through the mesh"),
    ("exec client -- curl -sN http://server:8080/stream", "an open connection, to watch and to cut"),
    ("exec node2 -- ztunnel show connections", "what the server's agent carries"),
    ("exec node1 -- ztunnel show certs", "whose certificates the client's agent has"),
    ("exec client -- ztunnel redirect show", "the rules that capture the client"),
    ("exec visitor -- sh", "a shell in a pod"),
)
_CLEAR = "\r\033[K"


class Result(NamedTuple):
    """Of one beat in one capture mode."""

    mode: str
    name: str
    claim: str
    ok: bool
    detail: str
    seconds: float


class Output:
    """The moments of a run; this one is silent."""

    def opens(self) -> None:
        """The stage is going to be built."""

    def is_open(self, stage: Stage) -> None: ...

    def mode_begins(self, mode: CaptureMode) -> None: ...

    def beat_begins(self, beat: Beat) -> None: ...

    def beat_ends(self, result: Result) -> None: ...

    def ends(self, ok: bool, seconds: float, error: str) -> None:
        """After the last beat, or earlier because of `error`."""

    def stays(self, stage: Stage) -> None:
        """Nothing more happens by itself."""


class JsonOutput(Output):
    def __init__(self) -> None:
        self._rootless: bool | None = None
        self._beats: list[Mapping[str, object]] = []

    def is_open(self, stage: Stage) -> None:
        self._rootless = stage.rootless

    def beat_ends(self, result: Result) -> None:
        self._beats.append(result._asdict() | {"seconds": round(result.seconds, 3)})

    def ends(self, ok: bool, seconds: float, error: str) -> None:
        report: dict[str, object] = {"ok": ok, "rootless": self._rootless, "seconds": round(seconds, 3)}
        if error:
            report["error"] = error
        report["beats"] = self._beats
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())


class Screen(Output):
    """On a terminal that may be coloured there are colours, and the line in progress is overwritten."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal without ticks still gets the words
        may = may_be_coloured(os.environ)
        self._live = sys.stdout is not None and sys.stdout.isatty() and may  # None: started with it closed
        self._color = None if may else False

    def opens(self) -> None:
        self._progress("building two nodes, three pods and their agents ...")

    def is_open(self, stage: Stage) -> None:
        rights = "in a user namespace, without root" if stage.rootless else "as root"
        client, visitor, server = mesh.MEMBERS
        self._say_over(f"Two nodes, three pods, an agent on each node; {rights}.\n")
        self._say(f"  {client.name:8} {client.ip4} ┐                                     ┌ {server.name} {server.ip4}")
        self._say(f"                    ├ node1 ═══ TLS, port 15008 ═══ node2 ┤ service {mesh.SERVICE_IP4}")
        self._say(f"  {'visitor':8} {visitor.ip4} ┘                                     └ plain HTTP, port {mesh.PORT}")

    def mode_begins(self, mode: CaptureMode) -> None:
        self._say(f"\n{click.style(f'capture: {mode.value}', bold=True)} ({MODE_TITLES[mode]})")
        self._progress("  … every pod is captured")

    def beat_begins(self, beat: Beat) -> None:
        self._progress(f"  … {beat.claim}")

    def beat_ends(self, result: Result) -> None:
        tick = click.style("✓", fg="green") if result.ok else click.style("✗", fg="red")
        self._say_over(f"  {tick} {result.claim}  {click.style(f'{result.seconds:.2f} s', dim=True)}")
        for line in result.detail.splitlines():
            self._say(f"      {click.style(line, dim=True) if result.ok else line}")

    def ends(self, ok: bool, seconds: float, error: str) -> None:
        if error:
            self._say_over("")
            click.echo(f"error: {error}", err=True)
        else:
            self._say_over(f"\n{'Every' if ok else 'Not every'} beat held, in {seconds:.1f} s.")

    def stays(self, stage: Stage) -> None:
        command = "ztunnel" if shutil.which("ztunnel") else os.path.abspath(sys.argv[0])
        self._say(f"\nIt stays up. In another shell{'' if stage.rootless else ', as root'}:\n")
        for arguments, purpose in TRY:
            self._try(f"{command} demo {arguments}", purpose)
        self._try(f"tail -f {stage.server_agent.log}", "the log of the server's agent")
        self._try(f"$EDITOR {stage.server_agent.mesh}", "its mesh file: change policies, live")
        self._say("\nCtrl-C removes everything.")

    def _try(self, command: str, purpose: str) -> None:
        self._say(f"  {click.style(f'# {purpose}', dim=True)}\n  {command}")

    def _progress(self, text: str) -> None:
        if self._live:
            click.echo(_CLEAR + text, nl=False)

    def _say_over(self, text: str) -> None:
        """In place of what is in progress."""
        self._say(_CLEAR + text if self._live else text)

    def _say(self, text: str) -> None:
        click.echo(text, color=self._color)
