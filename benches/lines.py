"""What is measured: each line of the table, as one function over a fresh lab with a running pair of agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from benches import process
from benches.designs.base import Pair
from benches.lab import Lab
from benches.load import Generator, Load
from benches.stats import Target

MIB = 1 << 20


class Setting(NamedTuple):
    """Where and how long a line is measured."""

    lab: Lab
    pair: Pair
    generator: Generator
    seconds: float
    idle_connections: int

    def loaded(self, mode: str, clients: int) -> tuple[Load, float]:
        """Runs a mode; returns what it counted and the processor time (s) that both agents took for it."""
        self.generator.load(self.lab, "cps", 1, 0)  # the tunnel stands, set-up is a line of its own
        before = process.cpu_seconds(self.pair)
        load = self.generator.load(self.lab, mode, clients, self.seconds)
        return load, process.cpu_seconds(self.pair) - before


Measurement = Mapping[str, float]


class Line(NamedTuple):
    name: str
    group: str
    title: str
    measure: Callable[[Setting], Measurement]


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
    return {"ms": setting.generator.load(setting.lab, "cps", 1, 0).p50_us / 1000}


def memory(setting: Setting) -> Measurement:
    """Both agents after their first connection, and per connection and in all when many are open and idle."""
    setting.generator.load(setting.lab, "cps", 1, 0)
    before = process.memory(setting.pair)
    setting.generator.open_idle(setting.lab, setting.idle_connections)
    after = process.memory(setting.pair)
    return {
        "idle_rss_mib": before.rss / MIB,
        "idle_pss_mib": before.pss / MIB,
        "loaded_rss_mib": after.rss / MIB,
        "kib_per_connection": (after.pss - before.pss) / 1024 / setting.idle_connections,
    }


LINES = (
    Line("up1", "bulk", "bulk up, 1 connection", partial(bulk, mode="up", clients=1)),
    Line("up8", "bulk", "bulk up, 8 connections", partial(bulk, mode="up", clients=8)),
    Line("down1", "bulk", "bulk down, 1 connection", partial(bulk, mode="down", clients=1)),
    Line("down8", "bulk", "bulk down, 8 connections", partial(bulk, mode="down", clients=8)),
    Line("pp1", "pingpong", "64 B ping-pong", ping_pong),
    Line("pp32", "pingpong", "32 ping-pongs in parallel", partial(rate, mode="pp", clients=32)),
    Line("cps1", "connections", "new connections, 1 client", partial(rate, mode="cps", clients=1)),
    Line("cps32", "connections", "new connections, 32 clients", partial(rate, mode="cps", clients=32)),
    Line("first", "connections", "first connection", first),
    Line("memory", "memory", "memory of both agents", memory),
)

UNITS = {
    "gbps": "Gb/s",
    "cpu_s_per_gb": "CPU s/GB",
    "p50_us": "p50 us",
    "p99_us": "p99 us",
    "per_s": "per s",
    "cpu_us": "CPU us each",
    "ms": "ms",
    "idle_rss_mib": "RSS MiB",
    "idle_pss_mib": "PSS MiB",
    "loaded_rss_mib": "RSS MiB, connections idle",
    "kib_per_connection": "KiB per idle connection",
}

TARGETS = {
    **{(line, "gbps"): Target(">=", 0.9) for line in ("up1", "up8", "down1", "down8")},
    ("pp1", "p50_us"): Target("<=", 1.35),
    ("cps1", "per_s"): Target(">=", 1.0),
    ("cps32", "per_s"): Target(">=", 1.0),
    ("memory", "kib_per_connection"): Target("<=", 0.15),
}
"""Bounds that the project sets itself for ours divided by Envoy."""


def select(names: str) -> tuple[Line, ...]:
    """The lines named, by line or group, separated by commas; ValueError names what is unknown."""
    wanted = [name for name in names.split(",") if name]
    known = {line.name for line in LINES} | {line.group for line in LINES}
    unknown = sorted(set(wanted) - known)
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return tuple(line for line in LINES if not wanted or line.name in wanted or line.group in wanted)
