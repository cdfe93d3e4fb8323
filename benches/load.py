"""The load generator: built when its source changed, run inside a lab."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from benches.lab import SERVER_IP, SERVER_PORT, BenchError, Lab, run

SOURCE = Path(__file__).with_name("lg.c")
BUILD_LIMIT = 60.0
GRACE = 20.0
"""Seconds a client may take beyond its measured time."""
STREAM_LIMIT = 900.0
"""Seconds after which a paced stream ends by itself."""

T = TypeVar("T")


class Load(msgspec.Struct, frozen=True):
    """What the generator counted in one run; times in seconds and, where named so, microseconds."""

    bytes: int
    elapsed: float
    failures: int
    samples: int
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


class Generator:
    """The built program."""

    def __init__(self) -> None:
        self._program = SOURCE.parent / "build" / "lg"
        if not self._program.exists() or self._program.stat().st_mtime < SOURCE.stat().st_mtime:
            self._program.parent.mkdir(exist_ok=True)
            run("cc", "-O2", "-Wall", "-pthread", str(SOURCE), "-o", str(self._program), limit=BUILD_LIMIT)

    def serve(self, lab: Lab) -> None:
        pid = lab.spawn("s", "server", [str(self._program), "server", str(SERVER_PORT)])
        lab.wait_listening("s", SERVER_PORT, pid, "server")

    def load(self, lab: Lab, mode: str, clients: int, seconds: float) -> Load:
        """Runs one mode to its end; BenchError if any byte or connection was lost."""
        output = lab.run("c", *self._command(mode, clients, seconds), limit=seconds + GRACE)
        return _whole(lab, mode, clients, output)

    def paced(self, lab: Lab, during: Callable[[], T]) -> tuple[Load, T]:
        """One paced message stream for as long as `during` takes, and its result; BenchError if a byte was lost."""
        process = lab.popen("c", "paced", self._command("pq", 1, STREAM_LIMIT), talk=True)
        result = during()
        process.terminate()
        output, _ = process.communicate(timeout=GRACE)
        return _whole(lab, "pq", 1, output), result

    def open_idle(self, lab: Lab, count: int) -> None:
        """Opens `count` connections that stay open until the lab ends; BenchError if one cannot be opened."""
        self._hold(lab, "idle", count)

    def open_slow(self, lab: Lab, count: int) -> int:
        """Opens `count` connections that are sent more than they read; the process that has them."""
        return self._hold(lab, "slow", count)

    def _hold(self, lab: Lab, mode: str, count: int) -> int:
        process = lab.popen("c", mode, self._command(mode, count, 0), talk=True)
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline() or b"{}")
        if answer.get("ready") != count:
            raise BenchError(f"{mode}: {answer.get('ready', 0)} of {count} connections opened\n{agent_logs(lab)}")
        return process.pid

    def _command(self, mode: str, clients: int, seconds: float) -> tuple[str, ...]:
        return (str(self._program), mode, SERVER_IP, str(SERVER_PORT), str(clients), f"{seconds:g}")


def _whole(lab: Lab, mode: str, clients: int, output: str | bytes) -> Load:
    try:
        load = msgspec.json.decode(output, type=Load)
    except msgspec.MsgspecError as error:
        raise BenchError(f"{mode}: the generator gave no result ({error})\n{agent_logs(lab)}") from error
    if load.failures:
        raise BenchError(f"{mode}: {load.failures} of {load.samples or clients} failed\n{agent_logs(lab)}")
    return load


def agent_logs(lab: Lab) -> str:
    return "\n".join(f"agent {name}: {lab.log_end(name)}" for name in ("a", "b"))
