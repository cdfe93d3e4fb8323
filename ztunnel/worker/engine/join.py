"""Both ends of a stream live in this process: their applications' sockets are joined, the stream is the leash.

The CONNECT, the TLS handshake, the policies and the logs have happened as between nodes, over the real path, before
this begins. From then on bytes go from socket to socket in the kernel (`relay`); the stream stays open, empty, in
both its roles, so that whatever may end it (a policy, a drain, a lost tunnel) still ends the connection, and a
half-close or a reset of either application is told to both owners as usual.
"""

from __future__ import annotations

import socket

from ztunnel.core.wire import frames
from ztunnel.worker.engine.ending import Ending
from ztunnel.worker.engine.loop import Loop
from ztunnel.worker.engine.relay import Pipes, Relay
from ztunnel.worker.engine.stream import Stream


class Join:
    """`near` is the client role's stream, which has its application's socket; `far` the server role's, `sock` its own.

    To be made before `far` is answered.
    """

    def __init__(self, loop: Loop, pipes: Pipes, near: Stream, far: Stream, sock: socket.socket) -> None:
        self._streams = (near, far)
        near_sock = near.join(self)
        assert near_sock is not None
        far.join(self)
        self._relay = Relay(loop, pipes, near_sock, sock, self._ended)
        self.near = JoinEnd(self, near, outbound=True)
        self.far = JoinEnd(self, far, outbound=False)

    def __repr__(self) -> str:
        return f"<Join {self._relay!r}>"

    @property
    def bytes_up(self) -> int:
        return self._relay.bytes_up

    @property
    def bytes_down(self) -> int:
        return self._relay.bytes_down

    def _ended(self, ending: Ending) -> None:
        for stream in self._streams:
            if ending.ok:
                stream.end_leash()
            else:
                stream.abort(ending.error, ending.flag, frames.CONNECT_ERROR)

    def leash_ended(self, ending: Ending) -> None:
        """From a stream that is over; after a join that has ended by itself there is nothing left to do."""
        if not self._relay.closed:
            self._relay.abort(ending.error or "the leash of the join ended", ending.flag)


class JoinEnd:
    """One role's view of a join: its own byte counts, and the way to end it."""

    __slots__ = ("_join", "_outbound", "_stream")

    def __init__(self, join: Join, stream: Stream, *, outbound: bool) -> None:
        self._join = join
        self._stream = stream
        self._outbound = outbound

    @property
    def sent(self) -> int:
        """Bytes from this role's application."""
        return self._join.bytes_up if self._outbound else self._join.bytes_down

    @property
    def received(self) -> int:
        return self._join.bytes_down if self._outbound else self._join.bytes_up

    def abort(self, why: str, flag: str = "CONNECT") -> None:
        self._stream.abort(why, flag)
