"""Both ends of a stream live in this agent: their applications' sockets are joined, the stream is the leash.

The CONNECT, the TLS handshake, the policies and the logs have happened as between nodes, over the real path, before
this begins. From then on bytes go from socket to socket in the kernel (`relay`); the stream stays open, empty, in
both its roles, so that whatever may end it (a policy, a drain, a lost tunnel) still ends the connection, and a
half-close or a reset of either application is told to both owners as usual.

Where the server's end lives in another process, its socket is here all the same, and `far` stands for that end.
"""

from __future__ import annotations

import socket
from typing import Protocol

from ztunnel.core.wire import frames
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.relay import Pipes, Relay
from ztunnel.worker.engine.stream import Joined, Stream


class Leash(Protocol):
    """The server's end of the stream; a Stream is one."""

    def join(self, joined: Joined) -> socket.socket | None:
        """Tell `joined` when it is over."""

    def end_leash(self) -> None:
        """Both directions have ended with FIN."""

    def abort(self, why: str, flag: str, code: int) -> None:
        """The join has failed."""


class Carrier(Protocol):
    """Knows how many bytes went from the client's application (up) and from the server's (down)."""

    @property
    def bytes_up(self) -> int: ...

    @property
    def bytes_down(self) -> int: ...

    @property
    def outstanding(self) -> bool:
        """Whether the last word on them is still to come, and with it the end of the connection."""


class Join:
    """`near` is the client role's stream, which has its application's socket; `far` the server role's, `sock` its own.

    To be made before `far` is answered.
    """

    outstanding = False

    def __init__(self, loop: Loop, pipes: Pipes, near: Stream, far: Leash, sock: socket.socket) -> None:
        self._leashes: tuple[Leash, Leash] = (near, far)
        near_sock = near.join(self)
        assert near_sock is not None
        far.join(self)
        self._relay = Relay(loop, pipes, near_sock, sock, self._ended, shared=not isinstance(far, Stream))

    def __repr__(self) -> str:
        return f"<Join {self._relay!r}>"

    @property
    def bytes_up(self) -> int:
        return self._relay.bytes_up

    @property
    def bytes_down(self) -> int:
        return self._relay.bytes_down

    def _ended(self, ending: Ending) -> None:
        for leash in self._leashes:
            if ending.ok:
                leash.end_leash()
            else:
                leash.abort(ending.error, ending.flag, frames.CONNECT_ERROR)

    def leash_ended(self, ending: Ending) -> None:
        """From a stream that is over; after a join that has ended by itself there is nothing left to do."""
        if not self._relay.closed:
            self._relay.abort(ending.error or "the leash of the join ended", ending.flag)


class JoinEnd:
    """One role's view of a join: its own byte counts, and the way to end it."""

    __slots__ = ("_join", "_outbound", "_stream")

    def __init__(self, join: Carrier, stream: Stream, *, outbound: bool) -> None:
        self._join = join
        self._stream = stream
        self._outbound = outbound

    @property
    def outstanding(self) -> bool:
        return self._join.outstanding

    @property
    def sent(self) -> int:
        """Bytes from this role's application."""
        return self._join.bytes_up if self._outbound else self._join.bytes_down

    @property
    def received(self) -> int:
        return self._join.bytes_down if self._outbound else self._join.bytes_up

    def abort(self, why: str, flag: str = "CONNECT") -> None:
        self._stream.abort(why, flag)
