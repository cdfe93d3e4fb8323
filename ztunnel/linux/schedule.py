"""How the kernel shares processors between this process and others, beyond niceness.

Linux 6.12 and later let a task choose the length of its turns. A shorter turn is no smaller share: it comes sooner
and is over sooner. Whoever wakes with a shorter turn than that of the running task need not wait until the latter's
is over, which is one tick of the clock, up to 10 ms.
"""

from __future__ import annotations

import ctypes
import platform

_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275)}
"""System calls sched_setattr and sched_getattr; libc has them only since glibc 2.41."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    """struct sched_attr, its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def set_turn(seconds: float) -> bool:
    """Ask for turns of this length (0.1 to 100 ms) for the calling thread and those that it starts.

    Needs no rights. False where the kernel does not know of it, or refuses; then nothing has changed.
    """
    wanted = int(seconds * 1e9)
    attributes = _read()
    if attributes is None:
        return False
    set_number, _ = _NUMBERS[platform.machine()]
    attributes.runtime = wanted
    if _libc.syscall(set_number, 0, ctypes.byref(attributes), 0) != 0:
        return False
    return turn() == seconds


def turn() -> float | None:
    """Seconds of a turn of the calling thread; None where the kernel does not tell."""
    attributes = _read()
    return None if attributes is None or attributes.runtime == 0 else attributes.runtime / 1e9


def _read() -> _Attributes | None:
    if platform.machine() not in _NUMBERS:
        return None
    attributes = _Attributes()
    _, get_number = _NUMBERS[platform.machine()]
    if _libc.syscall(get_number, 0, ctypes.byref(attributes), ctypes.sizeof(attributes), 0) != 0:
        return None
    return attributes
