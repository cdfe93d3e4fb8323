"""`./dev bench`: measures every design on every line, round by round, and prints ratios.

Designs alternate within each line of each round, so that what the machine does meanwhile hits all of them alike.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from benches import lab, machine
from benches.designs.base import Design
from benches.designs.envoy import Envoy
from benches.designs.ours import Ours
from benches.designs.ztunnel import Ztunnel
from benches.lab import BenchError
from benches.lines import Line, Setting, select
from benches.load import Generator
from benches.report import Report, Sample, show, write_json

DESIGNS: dict[str, type[Design]] = {"ours": Ours, "envoy": Envoy, "ztunnel": Ztunnel}
RESULTS = Path(__file__).parent / "results"
INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell gives it."""
SPARE_FILES = 2000
"""Open files of an agent beyond one for each captured connection: tunnels, logs, libraries."""


class Bench:
    """One run: what is measured how often, and what was found."""

    def __init__(self, designs: Sequence[Design], generator: Generator, congestion: str, console: Console) -> None:
        self._designs = designs
        self._generator = generator
        self._congestion = congestion
        self._console = console
        self.samples: list[Sample] = []
        self.failures: list[str] = []
        self.congestion_seen: set[str] = set()

    def run(self, lines: Sequence[Line], rounds: int, seconds: float, connections: int) -> None:
        for round_number in range(1, rounds + 1):
            for line in lines:
                for design in self._designs:
                    self._console.print(f"round {round_number}/{rounds}: {line.title}, {design.name}", style="dim")
                    try:
                        self._measure(line, design, round_number, seconds, connections)
                    except BenchError as error:
                        self.failures.append(f"{line.title}, {design.name}, round {round_number}: {error}")
                        self._console.print(self.failures[-1], style="red", markup=False, highlight=False)

    def _measure(self, line: Line, design: Design, round_number: int, seconds: float, connections: int) -> None:
        with lab.fresh(self._congestion) as here:
            self._generator.serve(here)
            setting = Setting(here, design.start(here), self._generator, seconds, connections)
            found = line.measure(setting)
            self.congestion_seen |= here.congestion_seen()
        for metric, value in found.items():
            self.samples.append(Sample(line.name, metric, design.name, round_number, value))


def available(names: str, console: Console) -> list[Design]:
    """The named designs that can run here; those that cannot are said and left out."""
    chosen = []
    for name in names.split(","):
        if name not in DESIGNS:
            raise click.BadParameter(f"{name}; there are {', '.join(DESIGNS)}", param_hint="--designs")
        design = DESIGNS[name]()
        reason = design.missing()
        if reason:
            console.print(f"without {name}: {reason}", style="yellow")
        else:
            chosen.append(design)
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
@click.option("--quick", is_flag=True, help="One short round with fewer idle connections: does it work at all?")
@click.option("--rounds", default=3, type=click.IntRange(1), help="How often each line is measured.")
@click.option("--seconds", default=2.0, type=click.FloatRange(0.1), help="How long each measurement loads the agents.")
@click.option("--connections", default=8000, type=click.IntRange(1), help="Idle connections of the memory line.")
@click.option("--designs", default="ours,envoy,ztunnel", help="Which pairs, separated by commas.")
@click.option("--lines", "line_names", default="", help="Which lines or groups: bulk,pingpong,connections,memory.")
@click.option("--congestion", default="cubic", help="TCP congestion control of every route.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Where the JSON goes.")
def main(
    quick: bool,
    rounds: int,
    seconds: float,
    connections: int,
    designs: str,
    line_names: str,
    congestion: str,
    json_path: Path | None,
) -> None:
    """Compare our pair of agents with others, in fresh network namespaces, on this machine."""
    signal.signal(signal.SIGTERM, stop)
    console = Console(stderr=True)
    try:
        lines = select(line_names)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--lines") from error
    if quick:
        rounds, seconds, connections = 1, min(seconds, 0.5), min(connections, 500)
    chosen = available(designs, console)
    try:
        if os.geteuid() != 0:
            raise BenchError("network namespaces and the agents' marks need root")
        allow_open_files(connections)
        lab.sweep()
        bench = Bench(chosen, Generator(), congestion, console)
    except BenchError as error:
        console.print(f"the bench cannot start: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)
    versions = {design.name: design.version for design in chosen}
    interrupted = False
    try:
        bench.run(lines, rounds, seconds, connections)
    except KeyboardInterrupt:
        interrupted = True
        console.print("stopped; what was measured so far:", style="yellow")
    facts = machine.facts() | {
        "congestion control": f"{congestion} on every route; tunnels used {', '.join(sorted(bench.congestion_seen))}",
        "rounds": f"{rounds} of {seconds:g} s each",
    }
    report = Report(facts, versions, bench.samples, bench.failures)
    show(report, list(versions), Console(width=max(Console().width, 120)))
    path = json_path or RESULTS / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
    write_json(report, path)
    console.print(f"JSON: {path}", style="dim", highlight=False)
    sys.exit(INTERRUPTED if interrupted else 1 if bench.failures else 0)


if __name__ == "__main__":
    main()
