"""The buffers of a loop: allocated once, shared by all its connections, overwritten by every use.

`cipher` receives from tunnel sockets, `plain` holds what TLS decrypted, `clear` holds frames to be encrypted,
`sealed` what TLS encrypted. Sizes are measured: batch size, not copying, limits bulk throughput, and reads of
512 KiB with a small TCP_NOTSENT_LOWAT were the largest single gain over 256 KiB.

They are anonymous mappings, not bytearrays, which are filled with zeros when they are made: of the 2.5 MB only what has
been used counts as memory.
"""

from __future__ import annotations

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from ztunnel.core.wire.frames import HEADER_SIZE

READ_SIZE = 512 * 1024
"""Most bytes that one read takes, from a tunnel or from an application."""

MAX_CARRY = 80 * 1024
"""Room in `plain` for an unfinished frame of the previous read (headers are limited to 64 KiB)."""

_TLS_RECORD = 16 * 1024
_TLS_OVERHEAD = 64
CORK_LIMIT = READ_SIZE + 64 * 1024


def _buffer(size: int) -> mmap:
    return mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS)


class Scratch:
    """`frame_views(size)` gives views into `clear` with room for a frame header before each."""

    def __init__(self) -> None:
        self.cipher = _buffer(READ_SIZE)
        self.plain = _buffer(MAX_CARRY + READ_SIZE + 2 * _TLS_RECORD)
        self.clear = _buffer(CORK_LIMIT + 2 * _TLS_RECORD)
        self.sealed = _buffer(len(self.clear) + (len(self.clear) // _TLS_RECORD + 2) * _TLS_OVERHEAD)
        self.cipher_view = memoryview(self.cipher)
        self.plain_view = memoryview(self.plain)
        self.clear_view = memoryview(self.clear)
        self.clear_body = self.clear_view[HEADER_SIZE:]
        """What follows the header of a frame that is the first."""
        self.sealed_view = memoryview(self.sealed)
        self.used = 0
        """Bytes in `clear` that wait to be sealed."""
        self._frame_views: dict[int, list[memoryview]] = {}

    def frame_views(self, frame_size: int) -> list[memoryview]:
        """Views for `recvmsg_into` that leave HEADER_SIZE bytes before each piece of `frame_size` bytes."""
        views = self._frame_views.get(frame_size)
        if views is None:
            step = frame_size + HEADER_SIZE
            views = [
                self.clear_view[at + HEADER_SIZE : at + step] for at in range(0, READ_SIZE // frame_size * step, step)
            ]
            if len(self._frame_views) >= 8:
                self._frame_views.clear()
            self._frame_views[frame_size] = views
        return views
