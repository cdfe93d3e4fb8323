"""`./dev bench`: measures every design on every line, round by round, and prints ratios.

Designs alternate within each line of each round, so that what the machine does meanwhile hits all of them alike.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from benches import lab, machine
from benches.designs.base import Design
from benches.lab import BenchError
from benches.lines import FEW_STREAMS, Line, Setting, Size
from benches.load import Generator
from benches.mesh import LARGEST_CROWD
from benches.profiles import DESIGNS, PROFILES, Profile
from benches.report import Report, Sample, show, write_json

RESULTS = Path(__file__).parent / "results"
FULL = Size()
TABLE_WIDTH = 180
"""Columns that the widest table needs."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell gives it."""
SPARE_FILES = 2000
"""Open files of an agent beyond one for each captured connection: tunnels, pods, logs, libraries."""


class Bench:
    """One run: what is measured how often, and what was found."""

    def __init__(self, designs: Mapping[str, Design], generator: Generator, congestion: str, console: Console) -> None:
        self._designs = designs
        self._generator = generator
        self._congestion = congestion
        self._console = console
        self.samples: list[Sample] = []
        self.failures: list[str] = []
        self.congestion_seen: set[str] = set()

    def run(self, lines: Sequence[Line], rounds: int, size: Size) -> None:
        for round_number in range(1, rounds + 1):
            for line in lines:
                for name in self._designs:
                    if line.only and name not in line.only:
                        continue
                    self._console.print(f"round {round_number}/{rounds}: {line.title}, {name}", style="dim")
                    try:
                        self._measure(line, name, round_number, size)
                    except BenchError as error:
                        self.failures.append(f"{line.title}, {name}, round {round_number}: {error}")
                        self._console.print(self.failures[-1], style="red", markup=False, highlight=False)

    def _measure(self, line: Line, name: str, round_number: int, size: Size) -> None:
        design = DESIGNS[line.instead[name]]() if name in line.instead else self._designs[name]
        with lab.fresh(self._congestion) as here:
            self._generator.serve(here)
            found = line.measure(Setting(here, design.start(here), self._generator, size))
            self.congestion_seen |= here.congestion_seen()
        for metric, value in found.items():
            self.samples.append(Sample(line.name, metric, name, round_number, value))


def available(profile: Profile, names: str, console: Console) -> dict[str, Design]:
    """The named designs that can run here; those that cannot are said and left out."""
    chosen = {}
    for name in names.split(",") if names else profile.designs:
        if name not in DESIGNS:
            raise click.BadParameter(f"{name}; there are {', '.join(DESIGNS)}", param_hint="--designs")
        design = DESIGNS[name]()
        reason = design.missing()
        if reason:
            console.print(f"without {name}: {reason}", style="yellow")
        else:
            chosen[name] = design
    return chosen


def allow_open_files(connections: int) -> None:
    """Lets the processes started from here open as many files as this user may; BenchError when that is too few."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < connections + SPARE_FILES:
        raise BenchError(f"{connections} connections need more than the {hard} open files allowed (ulimit -Hn)")


def stop(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM takes the same way out as Ctrl-C: through every `finally`."""
    raise KeyboardInterrupt


@click.command(context_settings={"show_default": True})
@click.option(
    "--profile", "profile_name", default="default", type=click.Choice(list(PROFILES)), help="What is compared."
)
@click.option("--quick", is_flag=True, help="One short round with fewer connections: does it work at all?")
@click.option("--rounds", default=3, type=click.IntRange(1), help="How often each line is measured.")
@click.option("--seconds", default=FULL.seconds, type=click.FloatRange(0.1), help="How long a measurement lasts.")
@click.option("--connections", default=FULL.idle_connections, type=click.IntRange(1), help="Idle connections (memory).")
@click.option("--streams", default=FULL.streams, type=click.IntRange(FEW_STREAMS + 1), help="Open streams (scale).")
@click.option("--crowd", default=FULL.crowd, type=click.IntRange(1, LARGEST_CROWD), help="Workloads of a large push.")
@click.option("--designs", default="", help="Which designs, separated by commas; else those of the profile.")
@click.option("--lines", "line_names", default="", help="Which lines or groups, separated by commas; else all.")
@click.option("--congestion", default="cubic", help="TCP congestion control of every route.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Where the JSON goes.")
def main(
    profile_name: str,
    quick: bool,
    rounds: int,
    seconds: float,
    connections: int,
    streams: int,
    crowd: int,
    designs: str,
    line_names: str,
    congestion: str,
    json_path: Path | None,
) -> None:
    """Compare our agents with others, in fresh network namespaces, on this machine."""
    signal.signal(signal.SIGTERM, stop)
    console = Console(stderr=True)
    profile = PROFILES[profile_name]
    try:
        lines = profile.select(line_names)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--lines") from error
    size = Size(seconds, connections, streams, crowd)
    if quick:
        rounds, size = 1, size.quick()
    chosen = available(profile, designs, console)
    try:
        if os.geteuid() != 0:
            raise BenchError("network namespaces and the agents' marks need root")
        allow_open_files(max(size.idle_connections, size.streams))
        lab.sweep()
        bench = Bench(chosen, Generator(), congestion, console)
    except BenchError as error:
        console.print(f"the bench cannot start: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)
    versions = {name: design.version for name, design in chosen.items()}
    interrupted = False
    try:
        bench.run(lines, rounds, size)
    except KeyboardInterrupt:
        interrupted = True
        console.print("stopped; what was measured so far:", style="yellow")
    facts = machine.facts() | {
        "congestion control": f"{congestion} on every route; tunnels used {', '.join(sorted(bench.congestion_seen))}",
        "rounds": f"{rounds} of {size.seconds:g} s each",
    }
    report = Report(profile.name, facts, versions, bench.samples, bench.failures)
    show(report, list(versions), Console(width=max(Console().width, TABLE_WIDTH)))
    path = json_path or RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}-{profile.name}.json"
    write_json(report, path)
    console.print(f"JSON: {path}", style="dim", highlight=False)
    sys.exit(INTERRUPTED if interrupted else 1 if bench.failures else 0)


if __name__ == "__main__":
    main()
