"""A link between two processes: a Unix seqpacket socket, with descriptors passed beside the messages.

Theory of operation. The kernel keeps packets whole, in order and together with their descriptors, and tells the end
of the other process by itself; so a packet needs no length, and only messages larger than a packet need parts. Each
packet is a head (its kind, and how many flows this end had to drop so far) and a piece of a message. A descriptor
travels with the last part: whoever has it has the whole message, and a message that is cut off has none to leak.
The first packet of each end is its VERSION; an end that hears another one hangs up and says why.

`send` hands the packet to the kernel at once where there is room. Where there is none it is queued here, and a task
that exists only as long as the queue sends it when the other end has read. Received descriptors are close-on-exec.

Beyond a bound of queued flows, newer ones are dropped and counted, and nothing else ever is.
"""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import math
import os
import socket
import struct
from collections import deque
from typing import TypeVar

import trio

from ztunnel.link.channel import MAX_QUEUED_FLOWS, Channel, ChannelClosed, VersionMismatch, flow_count
from ztunnel.link.codec import CONTROL, SIBLING, WORKER, Codec, UndecodableError
from ztunnel.link.messages import VERSION, Down, Sideways, Up

Out = TypeVar("Out")
In = TypeVar("In")

PACKET = 64 * 1024
"""Bytes of a message in one packet. The kernel's default send buffer (208 KiB) holds three."""
LINGER = 5.0
"""Seconds that a closed end goes on sending what was queued to a slow reader."""
BREATHER = 0.01
"""Seconds until another try where the kernel is out of memory, which it does not signal the end of."""

_HEAD = struct.Struct("!BI")
_HELLO, _PART, _LAST = range(3)
_MAX_FDS = 4
"""More than any message has: too many are then seen, not cut off."""
_ANCILLARY = socket.CMSG_SPACE(_MAX_FDS * struct.calcsize("i"))
_OUT_OF_MEMORY = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)

log = logging.getLogger("ztunnel.link")


def control_end(sock: socket.socket, max_queued_flows: int = MAX_QUEUED_FLOWS) -> Channel[Down, Up]:
    """The control half's end over a connected seqpacket socket, which it owns from now on."""
    return UnixChannel(sock, CONTROL, max_queued_flows)


def worker_end(sock: socket.socket, max_queued_flows: int = MAX_QUEUED_FLOWS) -> Channel[Up, Down]:
    """A worker's end, likewise."""
    return UnixChannel(sock, WORKER, max_queued_flows)


def sibling_end(sock: socket.socket) -> UnixChannel[Sideways, Sideways]:
    """Either worker's end of a link between two of them, likewise."""
    return UnixChannel(sock, SIBLING, MAX_QUEUED_FLOWS)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets as both ends need them."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class _Outgoing:
    """A message on its way: the parts that are left, and the descriptor that goes with the last."""

    __slots__ = ("fd", "flows", "left")

    def __init__(self, data: bytes, fd: int | None, flows: int) -> None:
        self.left = memoryview(data)
        self.fd = fd
        self.flows = flows

    def discard(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class UnixChannel(Channel[Out, In]):
    def __init__(self, sock: socket.socket, codec: Codec[Out, In], max_queued_flows: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._codec = codec
        self._limit = max_queued_flows
        self._queue: deque[_Outgoing] = deque()
        self._queued_flows = 0
        self._sending = False
        """A task waits for room in the kernel's buffer."""
        self._starved = False
        """The kernel had no memory for a packet."""
        self._closed = False
        self._deadline = math.inf
        self._broken = ""
        """Why nothing can be sent any more; empty while it can."""
        self._dropped = 0
        self._dropped_there = 0
        self._greeted = False
        self._parts = bytearray()
        self._buffer = memoryview(bytearray(_HEAD.size + PACKET))
        with contextlib.suppress(OSError):  # the other end is gone already; `receive` says so
            sock.send(_HEAD.pack(_HELLO, 0) + str(VERSION).encode())

    def __repr__(self) -> str:
        return f"<UnixChannel {self._sock.fileno()}, {len(self._queue)} messages queued>"

    @property
    def lost_flows(self) -> int:
        return self._dropped + self._dropped_there

    def fileno(self) -> int:
        return self._sock.fileno()

    # ---- sending ----

    def send(self, message: Out) -> None:
        """Owns the descriptor of the message from now on, whatever becomes of it."""
        encoded = self._codec.encode(message)
        outgoing = _Outgoing(encoded.data, encoded.fd, flow_count(message))
        if self._closed or self._broken:
            outgoing.discard()
            raise ChannelClosed(self._broken or "this end of the link is closed")
        if outgoing.flows and self._queued_flows + outgoing.flows > self._limit:
            self._dropped += outgoing.flows
            return
        self._queue.append(outgoing)
        self._queued_flows += outgoing.flows
        if self._sending:
            return
        if not self._push():
            self._sending = True
            trio.lowlevel.spawn_system_task(self._send_queued)
        elif self._broken:
            raise ChannelClosed(self._broken)

    def _push(self) -> bool:
        """Send until the queue is empty or the link broken (True), or the kernel has no room (False)."""
        self._starved = False
        while self._queue:
            outgoing = self._queue[0]
            part = outgoing.left[:PACKET]
            last = len(part) == len(outgoing.left)
            head = _HEAD.pack(_LAST if last else _PART, self._dropped & 0xFFFFFFFF)
            ancillary = []
            if last and outgoing.fd is not None:
                ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (outgoing.fd,))))
            try:
                self._sock.sendmsg((head, part), ancillary)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _OUT_OF_MEMORY:
                    self._starved = True
                    return False
                self._break("the other half of the link is gone")
                return True
            if last:
                self._queue.popleft()
                self._queued_flows -= outgoing.flows
                outgoing.discard()
            else:
                outgoing.left = outgoing.left[PACKET:]
        return True

    async def _send_queued(self) -> None:
        try:
            while not self._push() and trio.current_time() < self._deadline:
                with trio.move_on_at(self._deadline), contextlib.suppress(trio.ClosedResourceError):
                    if self._starved:
                        await trio.sleep(BREATHER)
                    else:
                        await trio.lowlevel.wait_writable(self._sock)
        finally:
            self._sending = False
            if self._closed:
                self._hang_up()

    # ---- receiving ----

    async def receive(self) -> In:
        await trio.lowlevel.checkpoint()
        while True:
            message = self.receive_nowait()
            if message is not None:
                return message
            with contextlib.suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(self._sock)

    def receive_nowait(self) -> In | None:
        """For those who know when the socket is readable; None when no message is complete yet. Raises as `receive`."""
        while True:
            if self._closed:
                raise ChannelClosed("this end of the link is closed")
            try:
                size, ancillary, flags, _ = self._sock.recvmsg_into([self._buffer], _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return None
            except ConnectionResetError:
                continue  # told once, where the other end did not read everything; what it sent is still there
            fds = _received_fds(ancillary)
            try:
                if size == 0:
                    self._break("the other half of the link is gone")
                    raise ChannelClosed(self._broken)
                complete = self._take(size, flags, fds)
                if complete is None:
                    continue
                message = self._codec.decode(complete, fds)
            except VersionMismatch:
                _close_all(fds)
                raise
            except UndecodableError as error:
                _close_all(fds)
                raise self._refuse(str(error)) from None
            return message

    def _take(self, size: int, flags: int, fds: list[int]) -> bytes | bytearray | memoryview | None:
        """The bytes of a message that this packet makes complete. Raises UndecodableError."""
        if size < _HEAD.size or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise UndecodableError(f"a packet of {size} bytes, flags {flags:#x}")
        kind, dropped = _HEAD.unpack_from(self._buffer)
        piece = self._buffer[_HEAD.size : size]
        if not self._greeted:
            self._check_hello(kind, bytes(piece))
            return None
        self._dropped_there = dropped
        if kind == _PART and not fds:
            self._parts += piece
            return None
        if kind != _LAST:
            raise UndecodableError(f"a packet of kind {kind}, {len(fds)} descriptors")
        if not self._parts:
            return piece
        whole, self._parts = self._parts + piece, bytearray()
        return whole

    def _check_hello(self, kind: int, version: bytes) -> None:
        if kind != _HELLO:
            raise UndecodableError("it did not begin with its version")
        if version != str(VERSION).encode():
            theirs = version.decode("ascii", "backslashreplace")
            why = f"the other half of the link is of version {theirs!r}, this process of {VERSION}"
            self._end(why)
            raise VersionMismatch(why)
        self._greeted = True

    # ---- the end ----

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._sending:
            self._deadline = trio.current_time() + LINGER
            trio.lowlevel.notify_closing(self._sock)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._sock)
        self._discard_queue()
        self._sock.close()

    def _break(self, why: str) -> None:
        self._broken = why
        self._discard_queue()

    def _discard_queue(self) -> None:
        for outgoing in self._queue:
            outgoing.discard()
        self._queue.clear()
        self._queued_flows = 0

    def _refuse(self, why: str) -> ChannelClosed:
        """The other end does not speak our language: nothing it sends can be trusted any more."""
        message = f"the link is ended because of what the other half sent: {why}"
        self._end(message)
        return ChannelClosed(message)

    def _end(self, why: str) -> None:
        log.error("%s", why)
        self._break(why)
        self.close()


def _received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
