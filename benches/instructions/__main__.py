"""`./dev instructions`: shows what hot operations cost beside their baseline, or makes it the baseline."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import click
from rich.console import Console
from rich.table import Table

from benches.instructions import baseline
from benches.instructions.callgrind import Count, CountError, count


def table(counts: Mapping[str, Count], before: Mapping[str, int]) -> Table:
    """Instructions of each operation; those in the cryptography library are shown, not compared."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("operation")
    for title in ("instructions", "baseline", "change", "cryptography"):
        shown.add_column(title, justify="right")
    for line in baseline.compare(before, {name: each.own for name, each in counts.items()}):
        crypto = counts[line.name].crypto if line.name in counts else 0
        style = "red" if line.problem else "green" if line.change and line.change < -baseline.TOLERANCE else ""
        change = "" if line.change is None else f"{line.change:+.1%}"
        shown.add_row(line.name, _number(line.now), _number(line.before), change, _number(crypto), style=style)
    return shown


def _number(value: int | None) -> str:
    return f"{value:,}" if value else "-"


@click.command()
@click.option("--update", is_flag=True, help="Make what is counted now the baseline of this interpreter.")
def main(update: bool) -> None:
    """Count the instructions of hot operations (with valgrind) and compare them with the baseline."""
    messages = Console(stderr=True, soft_wrap=True)
    try:
        counts = count("hot")
    except CountError as error:
        messages.print(str(error), style="red", markup=False, highlight=False)
        sys.exit(2)
    before = baseline.load() or {}
    Console(width=max(Console().width, 120)).print(table(counts, before))
    if update:
        baseline.save({name: each.own for name, each in counts.items()})
        messages.print(f"{baseline.PATH.name} now says this for {baseline.build()}", highlight=False)
        return
    if not before:
        messages.print(f"no baseline for {baseline.build()}; --update makes this one", style="yellow", highlight=False)
    problems = [
        line for line in baseline.compare(before, {name: each.own for name, each in counts.items()}) if line.problem
    ]
    sys.exit(1 if before and problems else 0)


if __name__ == "__main__":
    main()
