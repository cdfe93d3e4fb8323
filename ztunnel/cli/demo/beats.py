"""What the demo proves, one function a beat: it makes something happen on the stage and says what was seen.

A beat raises StageError when it does not hold. The beats of a mode run in the order of `BEATS`; each is also true
alone, except that the wire is looked at while the first two make their requests.
"""

from __future__ import annotations

import contextlib
import http.client
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ztunnel.cli.demo import mesh
from ztunnel.cli.demo.process import Line
from ztunnel.cli.demo.stage import SEE_TIME, SWITCH_TIME, Answer, Refused, Stage, StageError, as_refused
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.packets import Segment

HBONE_PORT = 15008
TLS_STARTS = (b"\x16\x03", b"\x17\x03")
"""A TLS record begins with its type, handshake or application data, and version 3.x (RFC 8446 section 5.1)."""
HEX_BYTES = 16
MODES = (CaptureMode.REDIRECT, CaptureMode.TPROXY, CaptureMode.NODE)


class Traffic(NamedTuple):
    """One request with its secret, and everything that it left on the wire and in the server's pod."""

    secret: str
    answer: Answer
    seen: Line
    """By the application."""
    wire: Sequence[Segment]
    inside: Sequence[Segment]


def application(stage: Stage) -> str:
    """Both ends speak plain HTTP and know of nothing."""
    traffic = _exchange(stage, mesh.SERVICE_IP4)
    return (
        f"client sent {traffic.seen['request']!r} with the secret {traffic.secret!r}; "
        f"server saw it come from {traffic.seen['peer']} and answered {traffic.answer.status}"
    )


def wire(stage: Stage) -> str:
    """Between the nodes there is TLS to 15008, and nothing else of ours."""
    traffic = _exchange(stage, mesh.SERVICE_IP4)
    return only_tls(traffic)


def ipv6(stage: Stage) -> str:
    """The same for the service's IPv6 address."""
    traffic = _exchange(stage, mesh.SERVICE_IP6)
    only_tls(traffic)
    return f"[{mesh.SERVICE_IP6}]:{mesh.PORT} answered {traffic.answer.status}; on the wire only TLS"


def identity(stage: Stage) -> str:
    """The server's agent knows who called, by certificate, whatever the address."""
    for pod, member in ((stage.client, mesh.CLIENT), (stage.visitor, mesh.VISITOR)):
        since = stage.server_agent.position()
        stage.get(pod, "/hello")
        _logged(stage, since, f"a caller {member.identity}", _is_from(member))
    return f"{mesh.CLIENT.identity} (and the visitor as .../{mesh.VISITOR.name})"


def open_connection(stage: Stage) -> str:
    """A DENY applied live ends what is open."""
    since = stage.server_agent.position()
    with stage.open_request(stage.client, "/stream") as response:
        with as_refused("the stream ended early"):
            lines = response.readline() + response.readline()
        if not lines.startswith(b"line 1\nline 2\n"):
            raise StageError(f"the stream began with {lines!r}")
        applied = time.monotonic()
        stage.apply(stage.mode, (mesh.DENY_CLIENT,))
        count = _read_to_its_end(stage, response)
    seconds = time.monotonic() - applied
    line = _logged(stage, since, "why the stream was cut", lambda line: "policy change" in line.get("error", ""))
    _names_the_policy(line)
    return f"cut {seconds:.1f} s after the policy was written, {count} lines into a stream: {line['error']}"


def next_request(stage: Stage) -> str:
    """... and refuses what is new, before the application hears of it; others are not touched."""
    stage.apply(stage.mode, (mesh.DENY_CLIENT,))
    since, app_since = stage.server_agent.position(), stage.app.position()
    secret = _new_secret()
    try:
        answer = stage.get(stage.client, "/hello", secret=secret)
    except Refused as error:
        refusal = error
    else:
        raise StageError(f"the client is denied and was answered: {answer}")
    line = _logged(stage, since, "why the request was refused", lambda line: "rejection" in line.get("error", ""))
    _names_the_policy(line)
    if stage.app.saw(app_since, secret):
        raise StageError("the application saw a request that is denied")
    visitor = stage.get(stage.visitor, "/hello")
    if visitor.status != 200:
        raise StageError(f"the visitor is allowed and was answered {visitor}")
    return f"{refusal}; {line['error']}; the visitor is still answered {visitor.status}"


class Beat(NamedTuple):
    name: str
    claim: str
    run: Callable[[Stage], str]


BEATS = (
    Beat("application", "plain HTTP at the application", application),
    Beat("wire", "only TLS on 15008 between the nodes", wire),
    Beat("identity", "the caller's identity at the server", identity),
    Beat("ipv6", "the same by IPv6", ipv6),
    Beat("open connection", "a DENY applied live cuts the open connection", open_connection),
    Beat("next request", "and refuses the next request", next_request),
)


# ---- what beats are made of ----


def _exchange(stage: Stage, ip: str) -> Traffic:
    """A request of the client that the application answers, with all eyes open."""
    stage.wire.read()
    stage.inside.read()
    secret, since = _new_secret(), stage.app.position()
    answer = stage.get(stage.client, "/hello", ip=ip, secret=secret)
    if answer.status != 200 or secret not in answer.body:
        raise StageError(f"the client was answered {answer}")
    seen = stage.wait("the request in the application's log", lambda: stage.app.saw(since, secret), SEE_TIME)
    traffic = Traffic(secret, answer, seen, stage.wire.read(), stage.inside.read())
    if stage.wire.dropped or stage.inside.dropped:
        raise StageError("packets came faster than they could be looked at", hint="is this machine very busy?")
    return traffic


def only_tls(traffic: Traffic) -> str:
    """The evidence. Raises StageError when anything on the wire is not as it should be."""
    needle = traffic.secret.encode()
    plain = next((segment.payload for segment in traffic.inside if needle in segment.payload), b"")
    if not plain:
        raise StageError("the sniffer does not see the secret even where it is plain, in the server's pod")
    if any(needle in segment.payload for segment in traffic.wire):
        raise StageError("the secret crossed the wire in plain text")
    ports = {port for segment in traffic.wire for port in (segment.source.port, segment.destination.port)}
    if mesh.PORT in ports:
        raise StageError(f"packets of the application's port {mesh.PORT} crossed the wire")
    strangers = [s for s in traffic.wire if s.payload and HBONE_PORT not in (s.source.port, s.destination.port)]
    if strangers:
        raise StageError(f"besides the tunnel there was {strangers[0].source} to {strangers[0].destination}")
    tunnel = [segment.payload for segment in traffic.wire if segment.destination.port == HBONE_PORT and segment.payload]
    if not tunnel:
        raise StageError(f"nothing was sent to port {HBONE_PORT}")
    if not tunnel[0].startswith(TLS_STARTS):
        raise StageError(f"what was sent to port {HBONE_PORT} is no TLS: {_hex(tunnel[0])}")
    size = sum(len(segment.payload) for segment in traffic.wire)
    return (
        f"{len(traffic.wire)} packets, {size} bytes, all of port {HBONE_PORT}; the secret is in none of them\n"
        f"in the pod   {_hex(plain)} ... {plain[:HEX_BYTES].decode('ascii', 'backslashreplace')!r}\n"
        f"on the wire  {_hex(tunnel[0])} ... TLS"
    )


def _hex(data: bytes) -> str:
    return data[:HEX_BYTES].hex(" ")


def _read_to_its_end(stage: Stage, response: http.client.HTTPResponse) -> int:
    """Lines of an endless stream until somebody cuts it. Raises StageError when nobody does."""
    deadline = time.monotonic() + SWITCH_TIME
    count = 2
    with contextlib.suppress(OSError, http.client.HTTPException):
        while response.readline():
            count += 1
            stage.interrupts.check()
            if time.monotonic() > deadline:
                raise StageError(f"the policy was applied {SWITCH_TIME:g} s ago and the connection is still open")
    return count


def _logged(stage: Stage, since: int, what: str, wanted: Callable[[Line], bool]) -> Line:
    """An access-log line of the server's agent."""

    def look() -> Line | None:
        return next(iter(stage.server_agent.connections(since, wanted)), None)

    return stage.wait(f"{what}, in the access log of node2", look, SEE_TIME)


def _is_from(member: mesh.Member) -> Callable[[Line], bool]:
    return lambda line: line.get("direction") == "inbound" and line.get("src.identity") == member.identity


def _names_the_policy(line: Line) -> None:
    if mesh.DENY_KEY not in line["error"]:
        raise StageError(f"the access log does not name {mesh.DENY_KEY}: {line['error']}")


def _new_secret() -> str:
    return f"s3cret-{secrets.token_hex(4)}"
