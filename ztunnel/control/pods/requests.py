"""What is said on the enroll socket: one JSON object a line each way, a request and its reply.

    {"op": "enroll", "netns": "web", "namespace": "default", "name": "web-1", "service_account": "web"}
    {"ok": true, "pods": [{"uid": "default/web-1", "up": true, ...}]}

Pure; the agent's half is `enroller`, the command's half is in the CLI.
"""

from __future__ import annotations

import msgspec

from ztunnel.core.model.capture import CaptureMode

MAX_LINE = 16 * 1024
"""Bytes of a request; a pod is a few hundred."""


class Enroll(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="enroll", forbid_unknown_fields=True):
    """Serve a pod. Answered when it is up, or with the reason why not (then nothing is left of it)."""

    namespace: str
    name: str
    """The workload's."""
    service_account: str = ""
    """Empty: the workload's; another one is refused."""
    netns: str = ""
    """Name (`ip netns`) or absolute path, as the agent sees it; empty only in NODE mode."""
    capture: CaptureMode | None = None
    """None: CAPTURE_MODE of the agent."""
    interface: str = ""
    """The node's interface towards the pod; NODE mode only."""
    ips: tuple[str, ...] = ()
    """Addresses of the pod, for NODE mode; none: those of the workload."""
    uid: str = ""
    """None: namespace/name."""


class Unenroll(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="unenroll", forbid_unknown_fields=True):
    """Let a pod go. Answered when nothing is left of it."""

    uid: str


class List(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="list", forbid_unknown_fields=True):
    """All pods, from wherever."""


Request = Enroll | Unenroll | List


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A pod as the agent serves it."""

    uid: str
    namespace: str
    name: str
    service_account: str
    netns: str
    capture: CaptureMode
    origin: str
    up: bool
    why: str = ""


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    ok: bool
    error: str = ""
    hint: str = ""
    pods: tuple[Row, ...] = ()


_DECODER = msgspec.json.Decoder(Request)


def decode_request(line: bytes) -> Request:
    """Raises ValueError with a sentence when the line is no request."""
    try:
        request: Request = _DECODER.decode(line)
        return request
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a request: {error}") from None


def encode_line(message: Request | Reply) -> bytes:
    return msgspec.json.encode(message) + b"\n"
