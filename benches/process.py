"""What a process and its descendants cost, from /proc: processor time and memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """Bytes resident, and bytes with shared pages divided among those that share them."""

    rss: int
    pss: int


def family(pid: int) -> Iterator[int]:
    """The process and all its living descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time so far of the processes, their living descendants and their children already ended (s)."""
    total = 0
    for pid in pids:
        for member in family(pid):
            # The command name in parentheses may hold spaces; fields count from after it: utime is the 12th.
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def memory(pids: Iterable[int]) -> Memory:
    """Memory of the processes and their living descendants."""
    rss = pss = 0
    for pid in pids:
        for member in family(pid):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name == "Rss":
                    rss += int(value.split()[0]) * 1024
                elif name == "Pss":
                    pss += int(value.split()[0]) * 1024
    return Memory(rss, pss)
