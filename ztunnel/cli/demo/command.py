"""`ztunnel demo` and `ztunnel demo exec`: the order of a run, and its exit codes."""

from __future__ import annotations

import os
import sysconfig
import time

import click

from ztunnel.cli.demo import running
from ztunnel.cli.demo.beats import BEATS, MODES
from ztunnel.cli.demo.interrupts import Interrupted, Interrupts
from ztunnel.cli.demo.output import JsonOutput, Output, Result, Screen
from ztunnel.cli.demo.stage import Stage, StageError
from ztunnel.core.errors import ConfigError, PlatformError, ZtunnelError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.netns import create_netns, unshare_user_net
from ztunnel.linux.redirect import tools
from ztunnel.linux.redirect.model import Backend

EXIT_FAILED = 1
EXIT_MISSING = 2
EXIT_SIGNAL = 128
"""Plus the signal's number, as shells have it."""


@click.group(invoke_without_command=True)
@click.option("--once", is_flag=True, help="End after the last beat instead of staying up.")
@click.option("--json", "as_json", is_flag=True, help="As --once, and print one JSON object.")
@click.pass_context
def demo(context: click.Context, once: bool, as_json: bool) -> None:
    """See the whole path on this machine: two nodes, three pods, real HTTP, real packets.

    Everything is built in namespaces of its own, as root or without, and is gone at the end. Stays up for
    experiments until Ctrl-C. Exit code 0: every beat held. 1: one did not. 2: the machine lacks something.

    \b
    In another shell, while it is up:
      ztunnel demo exec client -- curl http://server:8080/
      ztunnel demo exec node2 -- ztunnel show connections
    """
    if context.invoked_subcommand is None:
        output = JsonOutput() if as_json else Screen()
        with Interrupts() as interrupts:
            context.exit(run(output, interrupts, stay=not (once or as_json)))


@demo.command(
    "exec",
    short_help="Run a command in a pod or node of the demo.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("place")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_in(place: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a pod (client, visitor, server) or a node (node1, node2) of the running demo.

    \b
    Examples:
      ztunnel demo exec client -- curl http://server:8080/
      ztunnel demo exec visitor -- sh
    """
    if command[0] == "--":
        command = command[1:]
    if not command:
        raise click.UsageError("a COMMAND is needed, e.g. sh")
    running.enter(place)
    own = (os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts"), "/usr/sbin", "/sbin")
    os.environ["PATH"] = os.pathsep.join(own)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise PlatformError(f"cannot run {command[0]}: {error.strerror}") from None


def run(output: Output, interrupts: Interrupts, *, stay: bool) -> int:
    """Build, prove, stay up if wanted, remove; the exit code."""
    started = time.monotonic()
    ok: bool | None = None
    try:
        rootless = prepare()
        output.opens()
        with Stage(interrupts, rootless=rootless) as stage:
            output.is_open(stage)
            held = [prove(stage, mode, output) for mode in MODES]
            ok = all(held)
            output.ends(ok, time.monotonic() - started, "")
            if stay:
                stage.rest()
                output.stays(stage)
                interrupts.pause(None)
    except Interrupted as interrupted:
        if ok is None:
            output.ends(False, time.monotonic() - started, f"interrupted by {interrupted}")
            return EXIT_SIGNAL + interrupted.number
    except ZtunnelError as error:
        output.ends(False, time.monotonic() - started, tell(error))
        return EXIT_MISSING if isinstance(error, PlatformError | ConfigError) else EXIT_FAILED
    return 0 if ok else EXIT_FAILED


def prepare() -> bool:
    """See to it that namespaces can be made here; whether it took a user namespace.

    Raises PlatformError when the machine lacks something.
    """
    if not any(tools.has(backend) for backend in Backend):
        raise PlatformError("neither nft nor iptables is installed", hint="install the package nftables or iptables")
    tools.find("ip", "iproute2")
    running.sweep()
    try:
        os.close(create_netns())
    except PlatformError:
        unshare_user_net()
        return True
    return False


def prove(stage: Stage, mode: CaptureMode, output: Output) -> bool:
    """Every beat in this capture mode; what follows one that does not hold is not tried."""
    output.mode_begins(mode)
    broken = ""
    try:
        stage.switch(mode)
    except StageError as error:
        broken = tell(error)
    for beat in BEATS:
        output.beat_begins(beat)
        started = time.monotonic()
        ok, detail = False, broken or "not tried"
        if not broken:
            try:
                ok, detail = True, beat.run(stage)
            except StageError as error:
                broken = "not tried, because an earlier beat did not hold"
                detail = tell(error)
        output.beat_ends(Result(mode.value, beat.name, beat.claim, ok, detail, time.monotonic() - started))
    return not broken


def tell(error: ZtunnelError) -> str:
    """What happened and what to do, or where to look (several lines of log)."""
    between = "\n" if "\n" in error.hint else "; "
    return f"{error}{between}{error.hint}" if error.hint else str(error)
