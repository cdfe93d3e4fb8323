"""Another worker of this agent, and the joins of one pod of ours with one of its.

Theory of operation. The supervisor links every two workers. Each tells the other its pods' addresses, so that requests
to them offer a join. The worker that serves such a request hands its application's socket over, with the token; the
one whose connection the token names takes it, joins both sockets and carries the bytes; then the request is answered.
The stream stays where it was, in both workers, as the leash: when either half of it ends, so does the join.

The lender keeps its descriptor of the socket, so that if the other process dies it can still reset its application.
Byte counts are known where the bytes are carried; the lender asks for them, and its Flow waits for the last word.
Whatever goes wrong before the socket is taken leaves an ordinary stream. A link that ends resets its joins.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
from typing import TYPE_CHECKING

import trio

from ztunnel.core.wire import frames
from ztunnel.link.channel import ChannelClosed
from ztunnel.link.messages import (
    JoinAnswered,
    JoinCounts,
    JoinCountsWanted,
    JoinCut,
    JoinEnded,
    JoinOffered,
    PodAddresses,
    Sideways,
)
from ztunnel.link.unix import UnixChannel
from ztunnel.worker.engine.ending import FINISHED, Ending
from ztunnel.worker.engine.join import Join, JoinEnd
from ztunnel.worker.engine.loop import IN, Timer
from ztunnel.worker.engine.stream import Joined, Stream
from ztunnel.worker.engine.tcp import abort_on_close

if TYPE_CHECKING:
    from ztunnel.worker.proxy.connections import Carried
    from ztunnel.worker.proxy.joins import Joins
    from ztunnel.worker.proxy.kit import Kit

LAST_WORD = 1.0
"""Seconds that a cut connection waits for the other worker's byte counts."""
BATCH = 64
"""Messages taken per turn of the loop."""

log = logging.getLogger("ztunnel.worker.proxy.siblings")


class Sibling:
    """The link to it; `lend` is for requests that we serve, the rest answers what it sends."""

    def __init__(self, kit: Kit, joins: Joins, number: int, channel: UnixChannel[Sideways, Sideways]) -> None:
        self.kit = kit
        self.number = number
        self.ips: frozenset[str] = frozenset()
        """Addresses of its pods."""
        self.closed = False
        self._joins = joins
        self._channel = channel
        self._lent: dict[int, Lent] = {}
        self._borrowed: dict[int, Borrowed] = {}
        self._ids = itertools.count(1)
        self._counted: list[trio.Event] = []
        kit.loop.add(channel.fileno(), IN, self.on_event)

    def __repr__(self) -> str:
        return f"<Sibling {self.number}, {len(self._lent)} sockets lent, {len(self._borrowed)} borrowed>"

    # ---- messages ----

    def send(self, message: Sideways) -> bool:
        try:
            self._channel.send(message)
        except ChannelClosed as error:
            self.close(str(error))
            return False
        return True

    def on_event(self, _event: int) -> None:
        try:
            for _ in range(BATCH):
                message = None if self.closed else self._channel.receive_nowait()
                if message is None:
                    return
                self._take(message)
        except ChannelClosed as error:
            self.close(str(error))

    def _take(self, message: Sideways) -> None:
        match message:
            case JoinOffered():
                self._borrow(message)
            case JoinAnswered():
                self._lent[message.id].answered(taken=message.taken)
            case JoinEnded():
                self._lent[message.id].ended_there(message)
            case JoinCut():
                if message.id in self._borrowed:  # else it has ended here at the same time
                    self._borrowed[message.id].cut(Ending(message.why, message.flag))
            case PodAddresses():
                self.ips = frozenset(message.ips)
                self._joins.sibling_moved(self)
            case JoinCountsWanted():
                self.send(JoinCounts({join_id: each.counts() for join_id, each in self._borrowed.items()}))
            case JoinCounts():
                self._count(message)

    def abort(self, why: str) -> None:
        self.close(why)

    def close(self, why: str) -> None:
        """No more joins with its pods; those that are open are reset."""
        if self.closed:
            return
        self.closed = True
        self.ips = frozenset()
        self.kit.loop.remove(self._channel.fileno())
        self.kit.loop.call_soon(self._channel.close)
        self._joins.sibling_moved(self)
        log.debug("the link to worker %d is over: %s", self.number, why)
        lost = Ending(f"worker {self.number}, which has the other end, is gone")
        for lent in list(self._lent.values()):
            lent.lost(lost)
        for borrowed in list(self._borrowed.values()):
            borrowed.cut(lost)
        self._borrowed.clear()
        self._release_waiting()

    def tell_addresses(self, ips: tuple[str, ...]) -> None:
        self.send(PodAddresses(ips))

    # ---- requests that we serve ----

    @property
    def lends(self) -> bool:
        return bool(self._lent)

    def lend(self, token: str, inbound: Carried, stream: Stream, sock: socket.socket, answer: bytes) -> bool:
        """Offer `sock`; when true, the stream owns it and is answered once the other worker has said what it does."""
        if stream.closed:
            return False
        try:
            fd = os.dup(sock.fileno())
        except OSError:
            return False
        join_id = next(self._ids)
        if not self.send(JoinOffered(join_id, token, fd)):
            return False
        stream.attach(sock)
        self._lent[join_id] = Lent(self, join_id, inbound, stream, answer)
        return True

    def returned(self, join_id: int) -> None:
        self._lent.pop(join_id, None)

    def ask_counts(self) -> trio.Event:
        """Set when the counts of what it carries for us are up to date."""
        counted = trio.Event()
        self._counted.append(counted)
        self.send(JoinCountsWanted())
        return counted

    def _count(self, message: JoinCounts) -> None:
        for join_id, (up, down) in message.counts.items():
            lent = self._lent.get(join_id)
            if lent is not None:
                lent.bytes_up, lent.bytes_down = up, down
        self._release_waiting()

    def _release_waiting(self) -> None:
        waiting, self._counted = self._counted, []
        for counted in waiting:
            counted.set()

    # ---- connections that we carry ----

    def _borrow(self, message: JoinOffered) -> None:
        assert message.sock_fd is not None
        sock = socket.socket(fileno=message.sock_fd)
        sock.setblocking(False)
        borrowed = Borrowed(self, message.id)
        join = self._joins.join(self.kit, message.token, borrowed, sock)
        if join is None:
            sock.close()
        else:
            self._borrowed[message.id] = borrowed
            borrowed.carried_by = join
        self.send(JoinAnswered(message.id, join is not None))

    def last_word(self, join_id: int, counts: tuple[int, int], ending: Ending) -> None:
        if self._borrowed.pop(join_id, None) is not None and not self.closed:
            self.send(JoinEnded(join_id, *counts, ending.error, ending.flag))


class Borrowed:
    """In a Join of ours, the end that lives in the other worker (a `join.Leash`)."""

    __slots__ = ("_id", "_joined", "_sibling", "carried_by")

    def __init__(self, sibling: Sibling, join_id: int) -> None:
        self._sibling = sibling
        self._id = join_id
        self._joined: Joined | None = None
        self.carried_by: Join | None = None

    def join(self, joined: Joined) -> socket.socket | None:
        self._joined = joined
        return None

    def counts(self) -> tuple[int, int]:
        return (0, 0) if self.carried_by is None else (self.carried_by.bytes_up, self.carried_by.bytes_down)

    def end_leash(self) -> None:
        self._sibling.last_word(self._id, self.counts(), FINISHED)

    def abort(self, why: str, flag: str, code: int) -> None:
        self._sibling.last_word(self._id, self.counts(), Ending(why, flag))

    def cut(self, ending: Ending) -> None:
        """The leash is over at the other end, or that worker is gone."""
        if self._joined is not None:
            self._joined.leash_ended(ending)


class Lent:
    """Our end of a join whose bytes the other worker carries: the stream's owner and its `Joined`, once it is taken."""

    __slots__ = (
        "_answer",
        "_ending",
        "_id",
        "_inbound",
        "_sibling",
        "_sock",
        "_stream",
        "_timer",
        "bytes_down",
        "bytes_up",
        "outstanding",
    )

    def __init__(self, sibling: Sibling, join_id: int, inbound: Carried, stream: Stream, answer: bytes) -> None:
        self.bytes_up = self.bytes_down = 0
        """As the other worker said last."""
        self.outstanding = False
        self._sibling = sibling
        self._id = join_id
        self._inbound = inbound
        self._stream = stream
        self._answer = answer
        self._sock: socket.socket | None = None
        """Our descriptor of the application's socket, from when it is taken."""
        self._ending: Ending | None = None
        """How the stream ended, while the last word is outstanding."""
        self._timer: Timer | None = None

    # ---- from the other worker ----

    def answered(self, *, taken: bool) -> None:
        stream = self._stream
        if not taken:
            self._sibling.returned(self._id)
            if not stream.closed:
                stream.tunnel.accept(stream, self._answer, self._inbound)
        elif stream.closed:
            self._sibling.send(JoinCut(self._id, "the stream ended before it was answered", "CONNECT"))
        else:
            self.outstanding = True
            self._sock = stream.join(self)
            self._inbound.carrier = JoinEnd(self, stream, outbound=False)
            stream.tunnel.accept(stream, self._answer, self)

    def ended_there(self, message: JoinEnded) -> None:
        self.bytes_up, self.bytes_down = message.bytes_up, message.bytes_down
        self._settle(Ending(message.error, message.flag))

    def lost(self, ending: Ending) -> None:
        if self.outstanding:
            self._settle(ending)
        else:
            self.answered(taken=False)

    def _settle(self, ending: Ending) -> None:
        """Nothing more will be heard of the bytes."""
        self._sibling.returned(self._id)
        self.outstanding = False
        self._release(ending)
        if self._ending is not None:
            self._tell(self._ending)
        elif ending.ok:
            self._stream.end_leash()
        else:
            self._stream.abort(ending.error, ending.flag, frames.CONNECT_ERROR)

    # ---- from the stream ----

    def opened(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Only clients' streams are opened."""

    def refused(self, status: int) -> None:
        """Only clients' streams are refused."""

    def returned(self, sock: socket.socket, ending: Ending) -> None:
        """Only clients' streams are returned."""

    def leash_ended(self, ending: Ending) -> None:
        self._release(ending)
        if self.outstanding:
            self._timer = self._sibling.kit.loop.call_later(LAST_WORD, self._no_word)
            self._sibling.send(JoinCut(self._id, ending.error or "the leash of the join ended", ending.flag))

    def ended(self, ending: Ending) -> None:
        if self.outstanding:
            self._ending = ending
        else:
            self._tell(ending)

    # ---- the end ----

    def _release(self, ending: Ending) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            if not ending.ok:
                abort_on_close(sock)
            self._sibling.kit.loop.close(sock)

    def _no_word(self) -> None:
        if self.outstanding:
            self.outstanding = False
            if self._ending is not None:
                self._tell(self._ending)

    def _tell(self, ending: Ending) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._inbound.ended(ending)
