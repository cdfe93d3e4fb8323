"""What the supervising process and its children say to each other: "here is your link to the other half".

Both halves come and go, so the supervisor, which stays, makes every link: a socket pair, one end to each half, sent
over the child's leash. A leash that ends tells a child that the supervisor is gone or wants it gone.

(socket.send_fds and recv_fds of Python 3.11 ignore their flags, so they are not used.)

Packets of a seqpacket socket: a worker's number, with the socket beside it; upwards one packet that says "I serve".
"""

from __future__ import annotations

import array
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import NamedTuple

import trio

_NUMBER = struct.Struct("!I")
_UP = b"up"
_ANCILLARY = socket.CMSG_LEN(struct.calcsize("i"))


class Handed(NamedTuple):
    number: int
    """The worker at the other end; a worker's own number says that the control half is there."""
    sock: socket.socket


def hand(leash: socket.socket, number: int, sock: socket.socket) -> bool:
    """Give a copy of `sock` to the child. False when the child is gone, or has not looked for very long."""
    try:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (sock.fileno(),)))
        leash.sendmsg((_NUMBER.pack(number),), (rights,), socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def tell_up(leash: socket.socket) -> None:
    """A child's word that it serves."""
    with contextlib.suppress(OSError):  # the supervisor is gone, which ends this process by itself
        leash.send(_UP)


def heard_up(leash: socket.socket) -> bool:
    """Whether the child has said that it serves, since the last call."""
    try:
        return leash.recv(len(_UP), socket.MSG_DONTWAIT) == _UP
    except OSError:
        return False


async def handed(leash: socket.socket) -> AsyncIterator[Handed]:
    """The links that the supervisor gives to this child, until the leash ends."""
    leash.setblocking(False)
    while True:
        await trio.lowlevel.wait_readable(leash)
        try:
            data, ancillary, _, _ = leash.recvmsg(_NUMBER.size, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return
        if not data:
            return
        ((_, _, rights),) = ancillary
        yield Handed(_NUMBER.unpack(data)[0], socket.socket(fileno=array.array("i", rights)[0]))
