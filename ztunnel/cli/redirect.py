"""`ztunnel redirect`: capture rules by hand: put them into a namespace, compare, show, take them out.

Works without an agent. Exit codes: 0 all is well, 1 the rules differ, 2 a right, a tool or a sensible command line is
missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from ztunnel.config.settings import ISTIO_MARK
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.netns import open_netns
from ztunnel.linux.redirect.apply import apply, detect, present, remove, render
from ztunnel.linux.redirect.model import Backend, CaptureSpec, mask_for
from ztunnel.linux.redirect.verify import verify

EXIT_DIFFERS = 1
MODES = [mode.value for mode in CaptureMode if mode is not CaptureMode.NONE]

Command = Callable[..., Any]


class _Many(click.ParamType[tuple[Any, ...]]):
    """Values separated by commas."""

    def __init__(self, name: str, kind: type[int] | type[str] = str) -> None:
        self.name = name
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._kind(part.strip()) for part in value.split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers separated by commas", param, ctx)


_netns_option = click.option("--netns", metavar="NAME", help="Network namespace: a name of `ip netns`, or a path.")
_BACKEND = click.Choice([backend.value for backend in Backend])
_backend_option = click.option("--backend", type=_BACKEND, help="Default: what is there and works.")
_output_option = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
_SPEC_OPTIONS = (
    click.option("--mode", type=click.Choice(MODES), default="redirect", envvar="CAPTURE_MODE", show_default=True),
    click.option("--ipv4/--no-ipv4", default=True, show_default=True),
    click.option("--ipv6/--no-ipv6", default=True, show_default=True, help="Left out where the namespace has none."),
    click.option("--inbound/--no-inbound", default=True, show_default=True, help="Capture what arrives, too."),
    click.option("--dns/--no-dns", default=False, show_default=True, help="Send DNS to the agent (port 15053)."),
    click.option(
        "--mark",
        type=click.IntRange(1, 2**32 - 1),
        default=ISTIO_MARK,
        envvar="PACKET_MARK",
        show_default=True,
        help="The mark of the agent's own packets, which are left alone.",
    ),
    click.option("--exclude-outbound-ports", type=_Many("PORTS", int), default=(), help="Left alone, e.g. 5432,6379."),
    click.option("--exclude-inbound-ports", type=_Many("PORTS", int), default=()),
    click.option("--exclude-outbound-cidrs", type=_Many("CIDRS"), default=(), help="Destinations left alone."),
    click.option("--exclude-inbound-cidrs", type=_Many("CIDRS"), default=(), help="Sources left alone."),
    click.option("--exclude-uids", type=_Many("UIDS", int), default=(), help="Users left alone; not in mode node."),
    click.option("--virtual-interfaces", type=_Many("NAMES"), default=(), help="Links of virtual machines in the pod."),
    click.option(
        "--pod-interfaces", type=_Many("NAMES"), default=(), help="Mode node: the node's ends of their links."
    ),
    click.option("--pod-ips", type=_Many("IPS"), default=(), help="Mode node: the pods' addresses."),
)


def _spec_options(command: Command) -> Command:
    for option in reversed(_SPEC_OPTIONS):
        command = option(command)
    return command


@click.group()
def redirect() -> None:
    """Capture rules of a network namespace.

    \b
      ztunnel redirect apply  --netns web --dry-run    what would be done
      ztunnel redirect apply  --netns web              do it; again is harmless
      ztunnel redirect verify --netns web              exit code 1 and each rule that differs
      ztunnel redirect show   --netns web              what is there
      ztunnel redirect remove --netns web              without a trace, whoever left it
    """


@redirect.command("apply")
@_netns_option
@_spec_options
@_backend_option
@click.option("--dry-run", is_flag=True, help="Only print what the tools would be given.")
@_output_option
def apply_command(netns: str | None, backend: str | None, dry_run: bool, output: str, mode: str, **options: Any) -> int:
    """Put the rules in. Rules of others in the same tables are left alone."""
    spec = _spec(mode, options)
    if netns is None and not dry_run and spec.mode is not CaptureMode.NODE:
        raise click.UsageError("--netns NAME is needed (for the namespace you are in: --netns /proc/self/ns/net)")
    with _opened(netns) as fd:
        if dry_run:
            text = render(spec, _backend(backend) or detect(fd))
            click.echo(json.dumps({"text": text}) if output == "json" else text, nl=output == "json")
            return 0
        changes = apply(spec, fd, _backend(backend))
    _print_changes(changes, output)
    return 0


@redirect.command("verify", short_help="What differs from what `apply` would put there.")
@_netns_option
@_spec_options
@_backend_option
@_output_option
def verify_command(netns: str | None, backend: str | None, output: str, mode: str, **options: Any) -> int:
    """Compare what is there with what `apply` would put there, rule by rule."""
    with _opened(netns) as fd:
        found = verify(_spec(mode, options), fd, _backend(backend))
    if output == "json":
        rows = [{"where": one.where, "kind": one.kind.value, "what": one.what} for one in found]
        click.echo(json.dumps({"differences": rows}, indent=2))
    else:
        click.echo("\n".join(str(one) for one in found) or "the rules are as they should be")
    return EXIT_DIFFERS if found else 0


@redirect.command("remove", short_help="Take out everything of ours, whoever left it.")
@_netns_option
@click.option("--backend", type=_BACKEND, help="Only what this one has.  [default: all]")
@_output_option
def remove_command(netns: str | None, backend: str | None, output: str) -> int:
    """Take out everything of ours, from every backend, whatever state it is in.

    Without --netns, from the namespace you are in.
    """
    with _opened(netns) as fd:
        changes = remove(fd, _backend(backend))
    _print_changes(changes, output)
    return 0


@redirect.command("show")
@_netns_option
@_output_option
def show_command(netns: str | None, output: str) -> int:
    """What of ours is there, in the words of the tools."""
    with _opened(netns) as fd:
        found = present(fd)
    if output == "json":
        click.echo(json.dumps(found, indent=2))
        return 0
    for place, rules in found.items():
        click.echo(place)
        for rule in rules:
            click.echo(f"  {rule}")
    if not found:
        click.echo("no capture rules")
    return 0


def _spec(mode: str, options: dict[str, Any]) -> CaptureSpec:
    return CaptureSpec(mode=CaptureMode(mode), mark_mask=mask_for(options["mark"]), **options)


def _backend(name: str | None) -> Backend | None:
    return Backend(name) if name else None


@contextmanager
def _opened(netns: str | None) -> Iterator[int | None]:
    if netns is None:
        yield None
        return
    fd = open_netns(netns)
    try:
        yield fd
    finally:
        os.close(fd)


def _print_changes(changes: list[str], output: str) -> None:
    if output == "json":
        click.echo(json.dumps({"changes": changes}, indent=2))
    else:
        click.echo("\n".join(changes) or "nothing to change")
