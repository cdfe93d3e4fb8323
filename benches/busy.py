"""Lines of the control profile: a paced message stream while the control half of the agents, or a neighbour, is busy.

Theory of operation. A file of workloads and policies is all that reaches an agent without a control plane, so control
work comes by that door: whole files, renamed into place. An agent looks at the file four times a second and reads it
when it has settled. What came into force is what its log says, and the rate that is reported is counted from there.
Both agents have the same file, so both are busy at once, on the processors that carry the stream as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import NamedTuple, Protocol

from benches import mesh
from benches.designs.dedicated import MESH_FILE
from benches.lab import BenchError, Lab, pause
from benches.lines import Measurement, Setting
from benches.load import Load

STREAM_SHARE = 3.0
"""A stream runs this many times as long as other measurements: a reload happens once in a second only."""
REWRITE = 0.8
"""Seconds between two files: the agent sees each (two looks of 0.25 s) and has time to read it."""
POLICY_PERIOD = SCRAPE_PERIOD = 1.0
TICK = 0.02
CROWD, CHANGES = 1_000, 240
"""Workloads of the file that is rewritten, and how many of them are new each time: 300 in a second are offered."""
RELOAD_LIMIT = 240.0
AGENTS = (("c", "a"), ("s", "b"))
"""Namespace and log of each."""
STRANGER = """
import time
while True:
    began = time.monotonic()
    while time.monotonic() < began + 0.2: sum(range(1000))
    time.sleep(0.6)
"""
"""Busy for about as long as reading CROWD workloads takes, as often as that happens."""
METRICS_URL = "http://127.0.0.1:15020/metrics"


class Work(Protocol):
    """What keeps the control half busy."""

    def prepare(self, setting: Setting) -> None:
        """What must have happened before the quiet stream, with which the busy one is compared."""
        ...

    def run(self, setting: Setting) -> Measurement:
        """Does it for some time; returns how much was done."""
        ...


def stream(setting: Setting, *, work: Work) -> Measurement:
    """The stream without the work, then with it."""
    setting.connect_once()
    work.prepare(setting)
    quiet, _ = setting.generator.paced(setting.lab, lambda: pause(duration(setting)))
    busy, done = setting.generator.paced(setting.lab, lambda: work.run(setting))
    return {**beside(quiet, busy), **done}


def beside(quiet: Load, busy: Load) -> Measurement:
    return {
        "quiet_p50_us": quiet.p50_us,
        "quiet_p99_us": quiet.p99_us,
        "quiet_p999_us": quiet.p999_us,
        "p50_us": busy.p50_us,
        "p99_us": busy.p99_us,
        "p999_us": busy.p999_us,
        "times_quiet": busy.p99_us / quiet.p99_us,
    }


def duration(setting: Setting) -> float:
    return setting.size.seconds * STREAM_SHARE


class Push:
    """One file with very many workloads, until both agents have it and a little longer, while it spreads."""

    def prepare(self, setting: Setting) -> None:
        write(setting.lab.directory / "large.yaml", mesh.pair() + mesh.crowd(setting.size.crowd))

    def run(self, setting: Setting) -> Measurement:
        started = time.monotonic()
        before = reloads(setting.lab)
        os.replace(setting.lab.directory / "large.yaml", setting.lab.directory / MESH_FILE)
        wait_reloaded(setting.lab, before + 1)
        taken = time.monotonic() - started
        pause(setting.size.seconds)
        return {"load_s": taken}


class Churn(NamedTuple):
    """Small changes again and again, of any of the three kinds."""

    workloads: bool = False
    policies: bool = False
    scrapes: bool = False

    def prepare(self, setting: Setting) -> None:
        if not (self.workloads or self.policies):
            return
        before = reloads(setting.lab)
        put(setting.lab, mesh.pair() + mesh.crowd(CROWD) + mesh.policy(0))
        wait_reloaded(setting.lab, before + 1)

    def run(self, setting: Setting) -> Measurement:
        versions = mesh.Versions(CROWD, CHANGES)
        period = REWRITE if self.workloads else POLICY_PERIOD
        before, started = reloads(setting.lab), time.monotonic()
        next_file = next_scrape = started
        scrapes: list[subprocess.Popen[bytes]] = []
        while (now := time.monotonic()) < started + duration(setting):
            if (self.workloads or self.policies) and now >= next_file:
                put(setting.lab, versions.next(workloads=self.workloads, policies=self.policies))
                next_file += period
            if self.scrapes and now >= next_scrape:
                scrapes += [scrape(setting.lab, side) for side, _ in AGENTS]
                next_scrape += SCRAPE_PERIOD
            pause(TICK)
        elapsed = time.monotonic() - started
        done = {}
        if self.workloads:
            done["changes_per_s"] = (reloads(setting.lab) - before) * CHANGES / elapsed
        if self.policies:
            done["policies_per_s"] = (reloads(setting.lab) - before) / elapsed
        if self.scrapes:
            done["scrapes_per_s"] = succeeded(scrapes) / len(AGENTS) / elapsed
        return done


class Strangers:
    """Nothing for the control half: processes that are no agents take the processors as a reload would.

    What a stream suffers from this it suffers from the machine.
    """

    def prepare(self, setting: Setting) -> None:
        """Nothing: the strangers begin with the busy stream."""

    def run(self, setting: Setting) -> Measurement:
        strangers = [
            setting.lab.popen(side, f"stranger-{side}", [sys.executable, "-c", STRANGER]) for side, _ in AGENTS
        ]
        pause(duration(setting))
        for stranger in strangers:
            setting.lab.end(stranger.pid)
        return {}


class SlowReader:
    """Nothing for the control half: a neighbour in the stream's own tunnel reads far less than it is sent."""

    def prepare(self, setting: Setting) -> None:
        """Nothing: the neighbour comes with the busy stream."""

    def run(self, setting: Setting) -> Measurement:
        neighbour = setting.generator.open_slow(setting.lab, 1)
        pause(duration(setting))
        setting.lab.end(neighbour)
        return {}


def scrape(lab: Lab, side: str) -> subprocess.Popen[bytes]:
    return lab.popen(side, f"scrape-{side}", ["curl", "--silent", "--fail", "--output", "/dev/null", METRICS_URL])


def succeeded(scrapes: list[subprocess.Popen[bytes]]) -> int:
    failed = sum(process.wait() != 0 for process in scrapes)
    if failed:
        raise BenchError(f"{failed} of {len(scrapes)} scrapes of {METRICS_URL} failed")
    return len(scrapes)


def put(lab: Lab, text: str) -> None:
    """The mesh file's next contents, at once."""
    new = lab.directory / "next.yaml"
    write(new, text)
    os.replace(new, lab.directory / MESH_FILE)


def write(path: os.PathLike[str], text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def reloads(lab: Lab) -> int:
    """How often every agent has put a changed file in force, by their logs."""
    return min(lab.log(log).read_text(errors="replace").count(f"reloaded {lab.directory}") for _, log in AGENTS)


def wait_reloaded(lab: Lab, count: int) -> None:
    deadline = time.monotonic() + RELOAD_LIMIT
    while reloads(lab) < count:
        if time.monotonic() > deadline:
            ends = "\n".join(lab.log_end(log) for _, log in AGENTS)
            raise BenchError(f"the mesh file was not reloaded within {RELOAD_LIMIT:g} s; the logs end:\n{ends}")
        pause(TICK)
