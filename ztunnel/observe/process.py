"""What Prometheus's clients tell of their own process, under their names; nothing of what /proc does not tell."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ztunnel.observe.exposition import Family, counter, gauge

_PROC = Path("/proc")


def families() -> Iterator[Family]:
    with suppress(OSError):
        pages, resident = (_PROC / "self/statm").read_text().split()[:2]
        size = os.sysconf("SC_PAGE_SIZE")
        yield gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", int(pages) * size)
        yield gauge("process_resident_memory_bytes", "Resident memory size in bytes.", int(resident) * size)
        yield gauge(
            "process_start_time_seconds", "Start time of the process since unix epoch in seconds.", _started_at()
        )
    cpu = os.times()
    yield counter("process_cpu_seconds", "Total user and system CPU time spent in seconds.", cpu.user + cpu.system)
    with suppress(OSError):
        opened = len(os.listdir(_PROC / "self/fd"))
        yield gauge("process_open_fds", "Number of open file descriptors.", opened)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield gauge("process_max_fds", "Maximum number of open file descriptors.", limit)


def _started_at() -> float:
    # The command name in parentheses may hold spaces; fields count from after it: the start in ticks is the 20th.
    ticks = int((_PROC / "self/stat").read_text().rpartition(")")[2].split()[19])
    rows = (_PROC / "stat").read_text().splitlines()
    booted = next(float(row.split()[1]) for row in rows if row.startswith("btime "))
    return booted + ticks / os.sysconf("SC_CLK_TCK")
