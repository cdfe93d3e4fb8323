"""What is measured: each line of a table is one function over a fresh lab with running agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from benches import process
from benches.designs.base import Agents
from benches.lab import HBONE_PORT, Lab, pause
from benches.load import Generator, Load

MIB = 1 << 20
FEW_STREAMS = 10
STEADY = 2.0
"""Least seconds for processor time of a connection: it is counted in hundredths of a second."""
SETTLING = 0.5
"""Seconds for processes that were killed to be gone."""


class Size(NamedTuple):
    """How much is measured: seconds of load, and how many of what."""

    seconds: float = 2.0
    idle_connections: int = 8_000
    streams: int = 10_000
    """Open at once in the line about scale."""
    crowd: int = 100_000
    """Workloads of a large push."""

    def quick(self) -> Size:
        """Enough to see that it works."""
        return Size(
            min(self.seconds, 0.5), min(self.idle_connections, 500), min(self.streams, 500), min(self.crowd, 5_000)
        )


class Setting(NamedTuple):
    """Where and how much a line is measured."""

    lab: Lab
    agents: Agents
    generator: Generator
    size: Size

    def loaded(self, mode: str, clients: int, seconds: float | None = None) -> tuple[Load, float]:
        """Runs a mode; returns what it counted and the processor time (s) that the agents took for it."""
        self.connect_once()  # the tunnel stands, set-up is a line of its own
        before = process.cpu_seconds(self.agents)
        load = self.generator.load(self.lab, mode, clients, seconds or self.size.seconds)
        return load, process.cpu_seconds(self.agents) - before

    def connect_once(self) -> Load:
        return self.generator.load(self.lab, "cps", 1, 0)


Measurement = Mapping[str, float]


class Line(NamedTuple):
    """`only` names the designs that can do it, if not all; `instead` has a design's variant that does it for it."""

    name: str
    group: str
    title: str
    measure: Callable[[Setting], Measurement]
    only: tuple[str, ...] = ()
    instead: Mapping[str, str] = {}


def bulk(setting: Setting, *, mode: str, clients: int) -> Measurement:
    load, cpu = setting.loaded(mode, clients)
    return {"gbps": load.bytes * 8 / load.elapsed / 1e9, "cpu_s_per_gb": cpu / (load.bytes / 1e9)}


def ping_pong(setting: Setting) -> Measurement:
    load, cpu = setting.loaded("pp", 1)
    return {"p50_us": load.p50_us, "p99_us": load.p99_us, "cpu_us": cpu / load.samples * 1e6}


def rate(setting: Setting, *, mode: str, clients: int) -> Measurement:
    load, cpu = setting.loaded(mode, clients)
    return {"per_s": load.samples / load.elapsed, "cpu_us": cpu / load.samples * 1e6}


def first(setting: Setting) -> Measurement:
    """From connect to the first byte back through agents that have never carried anything."""
    return {"ms": setting.connect_once().p50_us / 1000}


def memory(setting: Setting) -> Measurement:
    """All agents after their first connection, and per connection and in all when many are open and idle."""
    setting.connect_once()
    before = process.memory(setting.agents)
    setting.generator.open_idle(setting.lab, setting.size.idle_connections)
    after = process.memory(setting.agents)
    return {
        "idle_rss_mib": before.rss / MIB,
        "idle_pss_mib": before.pss / MIB,
        "loaded_rss_mib": after.rss / MIB,
        "kib_per_connection": (after.pss - before.pss) / 1024 / setting.size.idle_connections,
    }


def one_agent(setting: Setting) -> Measurement:
    """All processes of the server's agent, when no other of its kind shares pages with it any more."""
    setting.connect_once()
    setting.lab.end(setting.agents[0])
    pause(SETTLING)
    return {"agent_pss_mb": process.memory(setting.agents[-1:]).pss / 1e6}


def scale(setting: Setting) -> Measurement:
    """What a new connection costs when few streams are open, and when many are.

    What the agents take without any new connection (the PINGs of a thousand tunnels) is measured and left out.
    """
    lab, generator, streams = setting.lab, setting.generator, setting.size.streams
    setting.loaded("cps", 1)
    generator.open_idle(lab, FEW_STREAMS)
    few, _ = cost_of_one(setting)
    generator.open_idle(lab, streams - FEW_STREAMS)
    many, idle = cost_of_one(setting)
    return {
        "few_cpu_us": few * 1e6,
        "cpu_us": many * 1e6,
        "growth": many / few,
        "idle_cpu_ms": idle * 1e3,
        "streams": streams,
        "tunnels": lab.established("c", HBONE_PORT),
    }


def cost_of_one(setting: Setting) -> tuple[float, float]:
    """Processor time (s) of one new connection, and of a second without any."""
    seconds = max(setting.size.seconds, STEADY)
    before = process.cpu_seconds(setting.agents)
    pause(seconds)
    idle = (process.cpu_seconds(setting.agents) - before) / seconds
    load, cpu = setting.loaded("cps", 1, seconds)
    return (cpu - idle * load.elapsed) / load.samples, idle
