"""Messages as bytes, for links between processes: msgpack, decoded to exactly the values that were sent.

Most of it is msgspec's: every message is a tagged struct, and decoding checks every field. Two things are not:

* the body of an Answer is anything; here it is what the questions' answers are made of (see `_exact_body`);
* a file descriptor does not travel in bytes. `encode` gives it beside them, `decode` takes the one that arrived.

Both ends are of one version (the channel sees to that), so nothing here is lenient.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from ztunnel.link.messages import Answer, Counters, Down, JoinOffered, OpenConnection, PodAdded, Sideways, Up

Out = TypeVar("Out")
In = TypeVar("In")

_FD_FIELDS: dict[type, str] = {PodAdded: "netns_fd", JoinOffered: "sock_fd"}
"""Messages that hand over a descriptor, and the field that holds it."""
_ENCODER = msgspec.msgpack.Encoder()
_CONNECTIONS = tuple[OpenConnection, ...]


class UndecodableError(Exception):
    """These bytes are no message. Any descriptor that came with them is still the caller's."""


class Encoded(msgspec.Struct, frozen=True):
    data: bytes
    fd: int | None
    """To be handed over with the bytes; the sender's own is closed once it is."""


class Codec(Generic[Out, In]):
    """What one end of a link says and understands."""

    def __init__(self, understood: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(understood)

    def encode(self, message: Out) -> Encoded:
        field = _FD_FIELDS.get(type(message))
        return Encoded(_ENCODER.encode(message), None if field is None else getattr(message, field))

    def decode(self, data: bytes | bytearray | memoryview, fds: list[int]) -> In:
        """The message; it owns the descriptor in `fds`. Raises UndecodableError."""
        try:
            message = self._decoder.decode(data)
            if isinstance(message, Answer):
                message = msgspec.structs.replace(message, body=_exact_body(message.body))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UndecodableError(str(error)) from None
        field = _FD_FIELDS.get(type(message))
        expected = 0 if field is None or getattr(message, field) is None else 1
        if len(fds) != expected:
            name = type(message).__name__
            raise UndecodableError(f"{name} comes with {expected} descriptors, and there were {len(fds)}")
        if field is not None and fds:
            changed: Any = {field: fds[0]}
            message = msgspec.structs.replace(message, **changed)  # type: ignore[type-var]
        return message


def _exact_body(body: Any) -> Any:
    """An answer's body as the worker made it: rows are a tuple of OpenConnection, Counters are Counters."""
    if isinstance(body, list):
        return msgspec.convert(body, _CONNECTIONS)
    if isinstance(body, dict) and body.get("type") == Counters.__name__:
        return msgspec.convert(body, Counters)
    return body


CONTROL: Codec[Down, Up] = Codec(Up)
"""The control half's end."""
WORKER: Codec[Up, Down] = Codec(Down)
"""A worker's end."""
SIBLING: Codec[Sideways, Sideways] = Codec(Sideways)
"""Either end between two workers."""
