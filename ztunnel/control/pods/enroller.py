"""The enroll socket: pods come and go at run time, at the word of whoever may write to it (mode 0600: root).

A Unix stream socket that speaks `requests`. Everything a client can do is bounded: connections at once, bytes of a
line, seconds of silence. A line that is no request gets a reply that says so, and the connection ends.

Must not know how pods are served.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator

import trio

from ztunnel.control.pods.manager import PodManager, PodStatus
from ztunnel.control.pods.pod import PodSpec
from ztunnel.control.pods.requests import (
    MAX_LINE,
    Enroll,
    Reply,
    Request,
    Row,
    Unenroll,
    decode_request,
    encode_line,
)
from ztunnel.core.errors import ConfigError, PlatformError, ZtunnelError
from ztunnel.core.model.address import canonical_ip
from ztunnel.core.model.capture import CaptureMode
from ztunnel.core.model.workload import Workload

MAX_CONNECTIONS = 32
SILENCE = 10.0
"""Seconds for a client to send a whole line, and to take a reply."""
MAX_NAME = 253
"""Characters of a namespace's, workload's or service account's name (RFC 1123 subdomain)."""

log = logging.getLogger("ztunnel.control.pods")


Find = Callable[[str, str], Workload | None]


class Enroller:
    """`run` it where pods may be enrolled. `capture` is the mode of those that name none; `find` gives a workload of
    the mesh by namespace and name."""

    def __init__(self, pods: PodManager, capture: CaptureMode, find: Find) -> None:
        self._pods = pods
        self._capture = capture
        self._find = find
        self._places = trio.Semaphore(MAX_CONNECTIONS)

    async def run(self, path: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on `path` until cancelled, and remove it. Raises PlatformError when it cannot be had."""
        sock = await trio.to_thread.run_sync(listen, path)
        own = os.stat(path)
        try:
            with trio.socket.from_stdlib_socket(sock) as listener:
                async with trio.open_nursery() as nursery:
                    task_status.started()
                    while True:
                        await self._places.acquire()
                        client = await _accept(listener)
                        nursery.start_soon(self._talk, trio.SocketStream(client))
        finally:
            _remove_own(path, own)

    async def _talk(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                with contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError):
                    await self._answer_lines(stream)
        finally:
            self._places.release()

    async def _answer_lines(self, stream: trio.SocketStream) -> None:
        buffer = bytearray()
        while True:
            with trio.fail_after(SILENCE):
                line = await _read_line(stream, buffer)
            if line is None:
                return
            try:
                request = decode_request(line)
            except ValueError as error:
                await _reply(stream, Reply(ok=False, error=str(error)))
                return
            await _reply(stream, await self._obey(request))

    async def _obey(self, request: Request) -> Reply:
        try:
            if isinstance(request, Enroll):
                spec = self._spec(request)
                await self._pods.enroll(spec)
                return self._rows(spec.uid)
            if isinstance(request, Unenroll):
                await self._pods.unenroll(request.uid)
                return Reply(ok=True)
            return self._rows()
        except ZtunnelError as error:
            return Reply(ok=False, error=str(error), hint=error.hint)

    def _rows(self, uid: str | None = None) -> Reply:
        rows = tuple(_row(status) for status in self._pods.statuses() if uid in (None, status.spec.uid))
        return Reply(ok=True, pods=rows)

    def _spec(self, request: Enroll) -> PodSpec:
        """Raises ConfigError when the request cannot be meant."""
        mode = request.capture or self._capture
        workload = self._find(request.namespace, request.name)
        ips = request.ips or (workload.workload_ips if workload else ())
        account = request.service_account or (workload.service_account if workload else "")
        problems = [*_name_problems(request), *_place_problems(request, mode, ips)]
        if workload is None:
            problems.append(f"{request.namespace}/{request.name} is no workload of the mesh")
        elif account != workload.service_account:
            problems.append(f"its service account in the mesh is {workload.service_account}, not {account}")
        if problems:
            raise ConfigError(
                f"cannot enroll {request.namespace[:MAX_NAME]}/{request.name[:MAX_NAME]}: {'; '.join(problems)}",
                problems=tuple(problems),
                hint="`ztunnel show workloads` lists the mesh; LOCAL_XDS_PATH names its file",
            )
        return PodSpec(
            uid=request.uid or f"{request.namespace}/{request.name}",
            namespace=request.namespace,
            name=request.name,
            service_account=account,
            capture=mode,
            netns=request.netns,
            interface=request.interface,
            ips=tuple(map(canonical_ip, ips)),
        )


def _name_problems(request: Enroll) -> Iterator[str]:
    for field in ("namespace", "name"):
        value = getattr(request, field)
        if not 0 < len(value) <= MAX_NAME or "/" in value or not value.isprintable():
            yield f"{field} {value[:40]!r} is no name"
    if len(request.uid) > 2 * MAX_NAME or not request.uid.isprintable():
        yield f"uid {request.uid[:40]!r} is no name"


def _place_problems(request: Enroll, mode: CaptureMode, ips: tuple[str, ...]) -> Iterator[str]:
    if mode is CaptureMode.NODE:
        if not request.interface:
            yield "capture node needs the node's interface towards the pod"
        if not ips:
            yield "capture node needs the pod's addresses"
    else:
        if not request.netns:
            yield f"capture {mode.value} needs the pod's network namespace"
        if request.interface:
            yield "only capture node has an interface"
    for ip in ips:
        try:
            canonical_ip(ip)
        except ValueError as error:
            yield str(error)


def listen(path: str) -> socket.socket:
    """A listening socket at `path` that only its owner may use; blocks. What a dead agent left there is replaced.

    Raises PlatformError, also when a living one listens there.
    """
    hint = "ENROLL_UDS names another place for the enroll socket"
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
        if _is_alive(path):
            raise PlatformError(f"another agent listens on the enroll socket {path}", hint=hint)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            os.fchmod(sock.fileno(), 0o600)  # Linux makes the file with this mode: nobody can be quicker
            sock.bind(path)
            sock.listen(MAX_CONNECTIONS)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise PlatformError(
            f"cannot listen on the enroll socket {path}: {error.strerror or error}", hint=hint
        ) from None
    return sock


def _is_alive(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def _remove_own(path: str, own: os.stat_result) -> None:
    """Unless a successor has put its own there."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(path), own):
            os.unlink(path)


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    """The next client. Running out of descriptors is waited out: pods matter more than who asks about them."""
    while True:
        try:
            client, _ = await listener.accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                raise
            log.warning("enroll socket: %s", error.strerror)
            await trio.sleep(0.1)
        else:
            return client


async def _read_line(stream: trio.SocketStream, buffer: bytearray) -> bytes | None:
    """None at the end of the stream; what is longer than a line may be is given as it is, for the refusal."""
    while b"\n" not in buffer and len(buffer) <= MAX_LINE:
        data = await stream.receive_some(MAX_LINE)
        if not data:
            return bytes(buffer) or None
        buffer += data
    line, _, rest = bytes(buffer).partition(b"\n")
    buffer[:] = rest
    return line if len(line) <= MAX_LINE else b"a line that is too long"


async def _reply(stream: trio.SocketStream, reply: Reply) -> None:
    with trio.fail_after(SILENCE):
        await stream.send_all(encode_line(reply))


def _row(status: PodStatus) -> Row:
    spec = status.spec
    return Row(
        uid=spec.uid,
        namespace=spec.namespace,
        name=spec.name,
        service_account=spec.service_account,
        netns=spec.netns,
        capture=spec.capture,
        origin=status.origin.value,
        up=status.up,
        why=status.why,
    )
