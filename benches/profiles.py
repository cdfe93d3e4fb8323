"""The profiles: which lines are measured on which designs, and the goals for them (ratios to the better peer)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from benches.busy import Churn, Push, SlowReader, Strangers, stream
from benches.designs.base import Design
from benches.designs.envoy import Envoy
from benches.designs.ours import CROWD_PODS, CROWD_STREAMS_PER_TUNNEL, CrowdedNodes, Dedicated, SameNode
from benches.designs.ztunnel import Ztunnel
from benches.lines import Line, bulk, first, memory, one_agent, ping_pong, rate, scale
from benches.stats import ITSELF, Goal, Metric

PEERS = ("envoy", "ztunnel")

DESIGNS: Mapping[str, Callable[[], Design]] = {
    "ours": partial(Dedicated, "ours", {}),
    "ours-w1": partial(Dedicated, "ours-w1", {"WORKERS": "1"}),
    "ours-crowd": partial(
        CrowdedNodes, "ours-crowd", {"POOL_MAX_STREAMS_PER_CONNECTION": str(CROWD_STREAMS_PER_TUNNEL)}
    ),
    "ours-join": partial(SameNode, "ours-join", {}),
    "ours-nojoin": partial(SameNode, "ours-nojoin", {"SAME_NODE_JOIN": "off"}),
    "envoy": Envoy,
    "ztunnel": Ztunnel,
}

METRICS: Mapping[str, Metric] = {
    "gbps": Metric("Gb/s", more=True),
    "cpu_s_per_gb": Metric("CPU s/GB"),
    "quiet_p50_us": Metric("quiet p50 us"),
    "quiet_p99_us": Metric("quiet p99 us"),
    "quiet_p999_us": Metric("quiet p999 us"),
    "p50_us": Metric("p50 us"),
    "p99_us": Metric("p99 us"),
    "p999_us": Metric("p999 us"),
    "times_quiet": Metric("p99 busy / quiet", compared=False),
    "per_s": Metric("per s", more=True),
    "few_cpu_us": Metric("CPU us each, few open"),
    "cpu_us": Metric("CPU us each"),
    "ms": Metric("ms"),
    "idle_rss_mib": Metric("RSS MiB"),
    "idle_pss_mib": Metric("PSS MiB"),
    "loaded_rss_mib": Metric("RSS MiB, connections idle"),
    "kib_per_connection": Metric("KiB per idle connection"),
    "agent_pss_mb": Metric("PSS MB"),
    "growth": Metric("many open / few open", compared=False),
    "idle_cpu_ms": Metric("CPU ms/s without", compared=False),
    "streams": Metric("streams open", compared=False),
    "tunnels": Metric("tunnels", compared=False),
    "load_s": Metric("s until in force", compared=False),
    "changes_per_s": Metric("workload changes/s", compared=False),
    "policies_per_s": Metric("policy changes/s", compared=False),
    "scrapes_per_s": Metric("scrapes/s of each", compared=False),
}
"""In the order of a table's rows."""

Goals = Mapping[tuple[str, str], tuple[Goal, ...]]


class Profile(NamedTuple):
    """`judged` are the designs of ours that the goals bind."""

    name: str
    title: str
    lines: tuple[Line, ...]
    designs: tuple[str, ...]
    judged: tuple[str, ...]
    goals: Goals
    notes: tuple[str, ...] = ()

    def select(self, names: str) -> tuple[Line, ...]:
        """The lines named, by line or group, separated by commas; ValueError names what is unknown."""
        wanted = [name for name in names.split(",") if name]
        known = {line.name for line in self.lines} | {line.group for line in self.lines}
        unknown = sorted(set(wanted) - known)
        if unknown:
            raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        return tuple(line for line in self.lines if not wanted or line.name in wanted or line.group in wanted)


TRAFFIC = (
    Line("up1", "bulk", "bulk up, 1 connection", partial(bulk, mode="up", clients=1)),
    Line("up8", "bulk", "bulk up, 8 connections", partial(bulk, mode="up", clients=8)),
    Line("down1", "bulk", "bulk down, 1 connection", partial(bulk, mode="down", clients=1)),
    Line("down8", "bulk", "bulk down, 8 connections", partial(bulk, mode="down", clients=8)),
    Line("pp1", "pingpong", "64 B ping-pong", ping_pong),
    Line("pp32", "pingpong", "32 ping-pongs in parallel", partial(rate, mode="pp", clients=32)),
    Line("cps1", "connections", "new connections, 1 client", partial(rate, mode="cps", clients=1)),
    Line("cps32", "connections", "new connections, 32 clients", partial(rate, mode="cps", clients=32)),
)
BULK = tuple(line.name for line in TRAFFIC if line.group == "bulk")

DEFAULT = Profile(
    name="default",
    title="Two nodes, an agent on each",
    lines=(
        *TRAFFIC,
        Line("first", "connections", "first connection", first),
        Line("memory", "memory", "memory of both agents", memory),
        Line("agent", "memory", "one agent idle, 1 worker", one_agent, instead={"ours": "ours-w1"}),
        Line(
            *("scale", "scale", f"many streams, {CROWD_PODS} pods", scale),
            only=("ours",),
            instead={"ours": "ours-crowd"},
        ),
    ),
    designs=("ours", *PEERS),
    judged=("ours",),
    goals={
        **{(line, "gbps"): (Goal(">=", 1.1), Goal(">=", 0.9, "envoy")) for line in BULK},
        **{(line, "cpu_s_per_gb"): (Goal("<=", 1.0),) for line in BULK},
        ("pp1", "p50_us"): (Goal("<=", 1.15), Goal("<=", 1.35, "envoy")),
        ("pp1", "p99_us"): (Goal("<=", 1.0),),
        ("pp32", "per_s"): (Goal(">=", 1.2),),
        ("pp32", "cpu_us"): (Goal("<=", 0.85),),
        **{(line, "per_s"): (Goal(">=", 1.2), Goal(">=", 1.0, "envoy")) for line in ("cps1", "cps32")},
        **{(line, "cpu_us"): (Goal("<=", 0.85),) for line in ("cps1", "cps32")},
        ("first", "ms"): (Goal("<=", 1.2),),
        ("memory", "kib_per_connection"): (Goal("<=", 0.15),),
        ("memory", "loaded_rss_mib"): (Goal("<=", 0.7),),
        ("agent", "agent_pss_mb"): (Goal("<=", 45, ITSELF),),
        ("scale", "growth"): (Goal("<=", 1.15, ITSELF),),
    },
)

FILE_READERS = ("ours", "ours-w1")
"""Those that read their mesh file again when it changed."""

CONTROL = Profile(
    name="control",
    title="64 B every millisecond, while the control half is busy",
    lines=(
        Line("push", "push", "a push of very many workloads", partial(stream, work=Push()), only=FILE_READERS),
        Line(
            *("changes", "churn", "200 workload changes/s", partial(stream, work=Churn(workloads=True))),
            only=FILE_READERS,
        ),
        Line("scrape", "churn", "a metrics scrape per second", partial(stream, work=Churn(scrapes=True))),
        Line(
            *("policy", "churn", "a policy change per second", partial(stream, work=Churn(policies=True))),
            only=FILE_READERS,
        ),
        Line(
            *("all", "churn", "changes, scrapes, policies", partial(stream, work=Churn(True, True, True))),
            only=FILE_READERS,
        ),
        Line("slow", "slow", "a slow reader in the same tunnel", partial(stream, work=SlowReader())),
        Line("strangers", "strangers", "other processes busy instead", partial(stream, work=Strangers())),
    ),
    designs=("ours", "ours-w1", "ztunnel"),
    judged=FILE_READERS,
    goals={
        **{
            (line, "times_quiet"): (Goal("<=", 2.0, ITSELF),) for line in ("push", "changes", "scrape", "policy", "all")
        },
        ("slow", "times_quiet"): (Goal("<=", 1.5, ITSELF),),
    },
    notes=(
        "ours is one process (WORKERS=0, the default of a dedicated agent); ours-w1 is a control and a worker process.",
        "Istio's ztunnel reads its local file only once, so only the scrape applies to it.",
        "Workloads and policies come by the local file, which both agents read anew as a whole, at the same time.",
        "Other processes that are as busy as that show what the machine adds, whoever keeps it busy.",
    ),
)

NODE = Profile(
    name="node",
    title="One node: both pods on it",
    lines=(*TRAFFIC, Line("memory", "memory", "memory of all agents", memory)),
    designs=("ours-join", "ours-nojoin", *PEERS),
    judged=("ours-join",),
    goals={
        **{(line, "gbps"): (Goal(">=", 3.0, "ztunnel"),) for line in BULK},
        **{(line, "cpu_s_per_gb"): (Goal("<=", 0.15, "ztunnel"),) for line in BULK},
        ("pp1", "p50_us"): (Goal("<=", 0.7, "ztunnel"),),
        ("pp32", "per_s"): (Goal(">=", 1.3, "ztunnel"),),
    },
    notes=(
        "Ours is one agent for both pods, which it captures itself; the peers are a pair of dedicated agents.",
        "ours-nojoin has SAME_NODE_JOIN=off: every byte goes through mTLS HBONE, as between nodes.",
    ),
)

PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (DEFAULT, CONTROL, NODE)}
