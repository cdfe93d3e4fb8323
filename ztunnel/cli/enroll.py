"""`ztunnel enroll` and `ztunnel unenroll`: tell the agent of this node which namespaces it shall serve.

A client of the enroll socket, blocking, one request.
"""

from __future__ import annotations

import socket
from typing import Any

import click
import msgspec

from ztunnel.cli.table import render
from ztunnel.config.settings import Settings
from ztunnel.control.pods.requests import Enroll, List, Reply, Request, Row, Unenroll, encode_line
from ztunnel.core.errors import ConfigError, PlatformError, UpstreamError
from ztunnel.core.model.capture import CaptureMode

TIMEOUT = 40.0
"""Seconds: rules, listeners and the probe have limits of their own, which are shorter."""

_socket_option = click.option(
    "--socket",
    "path",
    envvar="ENROLL_UDS",
    default=Settings().enroll_uds,
    show_default=True,
    help="The agent's enroll socket; also ENROLL_UDS.",
)
_output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True
)


class _Workload(click.ParamType[tuple[str, str]]):
    name = "namespace/name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        namespace, slash, name = value.partition("/")
        if not (namespace and slash and name) or "/" in name:
            self.fail(f"{value!r} is not NAMESPACE/NAME", param, ctx)
        return namespace, name


@click.command()
@click.option("--workload", type=_Workload(), help="NAMESPACE/NAME of the workload that lives there.")
@click.option("--netns", metavar="NAME", default="", help="Its network namespace: name (`ip netns`) or path.")
@click.option("--pid", type=click.IntRange(min=1), help="Instead of --netns: a process that is in it.")
@click.option("--service-account", default="", help="Refuse unless it is this one.  [default: the workload's]")
@click.option("--capture", type=click.Choice([mode.value for mode in CaptureMode]), help="Default: CAPTURE_MODE.")
@click.option("--interface", default="", help="Capture mode node: the node's interface towards the pod.")
@click.option("--uid", default="", help="A name for this enrolment.  [default: NAMESPACE/NAME]")
@click.option("--list", "only_list", is_flag=True, help="Only show what is served now.")
@_socket_option
@_output_option
def enroll(
    workload: tuple[str, str] | None,
    netns: str,
    pid: int | None,
    service_account: str,
    capture: str | None,
    interface: str,
    uid: str,
    only_list: bool,
    path: str,
    output: str,
) -> None:
    """Let the running agent serve a network namespace. Ends when its connections are captured.

    If that fails, nothing is left of the attempt.

    \b
    Examples:
      ztunnel enroll --netns web --workload default/web
      ztunnel enroll --pid 4711 --workload default/web --capture tproxy
      ztunnel enroll --list
    """
    if only_list:
        _print(ask(path, List()).pods, output)
        return
    if workload is None:
        raise click.UsageError("--workload NAMESPACE/NAME says who lives in the namespace")
    if netns and pid:
        raise click.UsageError("--netns and --pid are two ways to say the same: give one")
    request = Enroll(
        namespace=workload[0],
        name=workload[1],
        service_account=service_account,
        netns=f"/proc/{pid}/ns/net" if pid else netns,
        capture=CaptureMode(capture) if capture else None,
        interface=interface,
        uid=uid,
    )
    _print(ask(path, request).pods, output)


@click.command()
@click.argument("uid")
@_socket_option
def unenroll(uid: str, path: str) -> None:
    """Let a pod go: its connections are closed, its rules and listeners removed. Ends when nothing is left.

    UID is what `ztunnel enroll --list` shows, NAMESPACE/NAME unless it was given another.

    \b
    Example:
      ztunnel unenroll default/web
    """
    ask(path, Unenroll(uid=uid))
    click.echo(f"{uid} is not served any more")


def ask(path: str, request: Request) -> Reply:
    """What the agent answers. Raises PlatformError when none can be asked, UpstreamError when it refuses."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(path)
            sock.sendall(encode_line(request))
            received = b""
            while not received.endswith(b"\n") and (more := sock.recv(65536)):
                received += more
    except OSError as error:
        raise PlatformError(
            f"no answer from the enroll socket {path}: {error.strerror or error}",
            hint="is a shared agent running (`ztunnel serve`)? ENROLL_UDS or --socket names its socket; it is root's",
        ) from None
    try:
        reply = msgspec.json.decode(received, type=Reply)
    except msgspec.DecodeError as error:
        raise UpstreamError(f"{path} gave no answer of an agent: {error}") from None
    if not reply.ok:
        raise ConfigError(reply.error, hint=reply.hint)
    return reply


def _print(pods: tuple[Row, ...], output: str) -> None:
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(pods), indent=2).decode())
        return
    headers = ("uid", "workload", "service account", "netns", "capture", "origin", "up", "why")
    rows = (
        (
            pod.uid,
            f"{pod.namespace}/{pod.name}",
            pod.service_account,
            pod.netns,
            pod.capture.value,
            pod.origin,
            pod.up,
            pod.why,
        )
        for pod in pods
    )
    click.echo(render(headers, rows), nl=False)
