"""The command `ztunnel`: finds the subcommand, and turns every expected failure into a sentence and an exit code.

Subcommands are imported when they are used: `ztunnel --help` must be fast, and a command that cannot be imported must
not break the others.

Exit codes: 0 all is well, 1 a crash or a negative answer, 2 the configuration, the command line or missing rights,
130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import NamedTuple

import click

from ztunnel.core.errors import ConfigError, PlatformError, ZtunnelError

EXIT_CRASH = 1
EXIT_CONFIG = 2
EXIT_INTERRUPTED = 130


class _Command(NamedTuple):
    """Where a subcommand is, and its line in the help."""

    module: str
    attribute: str
    help: str
    hidden: bool = False


COMMANDS = {
    "serve": _Command("ztunnel.cli.serve", "serve", "Run the agent."),
    "proxy": _Command("ztunnel.cli.serve", "proxy", "Run the agent, as Istio's image is started.", hidden=True),
    "demo": _Command("ztunnel.cli.demo.command", "demo", "See the whole path on this machine, in namespaces."),
    "check": _Command("ztunnel.cli.check", "check", "Can this machine run the agent? Is the agent here well?"),
    "show": _Command("ztunnel.cli.show", "show", "What a running agent knows: workloads, certs, connections ..."),
    "enroll": _Command("ztunnel.cli.enroll", "enroll", "Let the agent serve a network namespace."),
    "unenroll": _Command("ztunnel.cli.enroll", "unenroll", "Let a namespace go, without a trace."),
    "redirect": _Command("ztunnel.cli.redirect", "redirect", "Capture rules: apply, verify, remove, show."),
    "ca": _Command("ztunnel.cli.ca", "ca", "A certificate authority for development and small meshes."),
    "version": _Command("ztunnel.cli.serve", "version", "What this is, in the form of Istio's components."),
}


class _Lazy(click.Group):
    """A group whose commands are in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, command in COMMANDS.items() if not command.hidden and _is_there(command.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = COMMANDS.get(cmd_name)
        if command is None or not _is_there(command.module):
            return None
        found: click.Command = getattr(importlib.import_module(command.module), command.attribute)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])


def _is_there(module: str) -> bool:
    return find_spec(module) is not None


def _print_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        context.invoke(importlib.import_module(COMMANDS["version"].module).version)
        context.exit()


@click.group(cls=_Lazy, name="ztunnel", no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="The same as version."
)
def cli() -> None:
    """Carry pod connections in mutual TLS (Istio ambient's HBONE), with or without Kubernetes.

    \b
    Look first:
      ztunnel demo                     two nodes, three pods, real traffic
      ztunnel check                    is this machine fit for it?

    \b
    Serve one workload, in its own network namespace:
      PROXY_MODE=dedicated PROXY_WORKLOAD_INFO=default/web/web \\
        LOCAL_XDS_PATH=mesh.yaml LOCAL_CA_PATH=ca ztunnel serve

    \b
    Serve many, and add one at run time:
      LOCAL_XDS_PATH=mesh.yaml LOCAL_CA_PATH=ca ztunnel serve
      ztunnel enroll --netns web --workload default/web

    Settings are environment variables, Istio's where Istio has one: `ztunnel serve --help` lists them.
    """


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; crashes are raised."""
    try:
        colours = None if may_be_coloured(os.environ) else False
        code = cli.main(arguments, prog_name="ztunnel", standalone_mode=False, color=colours)
        if sys.stdout is not None:  # None: started with it closed
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except ZtunnelError as error:
        report(error)
        return EXIT_CONFIG if isinstance(error, ConfigError | PlatformError) else EXIT_CRASH
    except BrokenPipeError:  # `ztunnel show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CRASH
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        click.echo(f"error: {error.filename or 'what was to be written'}: {error.strerror}", err=True)
        click.echo("hint: make room where the output goes, and in TMPDIR", err=True)
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CRASH
    return code if isinstance(code, int) else 0


def may_be_coloured(environ: Mapping[str, str]) -> bool:
    """Whether a terminal gets colours: by https://no-color.org, and where it can show any."""
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def report(error: ZtunnelError) -> None:
    """On stderr: what happened, every problem on a line of its own, what to do."""
    problems = error.problems if isinstance(error, ConfigError) else ()
    if len(problems) > 1 or (problems and problems[0] != str(error)):
        click.echo(f"error: {str(error).partition(': ')[0] if problems[0] in str(error) else error}", err=True)
        for problem in problems:
            click.echo(f"  {problem}", err=True)
    else:
        click.echo(f"error: {error}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
