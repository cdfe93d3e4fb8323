"""What operations cost when somebody last looked, for each build of the interpreter, and what differs from it.

Only the build decides: another compiler or version of CPython makes other instructions of the same code. Libraries
are not part of the key on purpose: they are locked, and one that makes a hot path dearer has to be noticed too.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PATH = Path(__file__).with_name("baseline.json")
TOLERANCE = 0.10
"""How much dearer than its baseline an operation may be. Repeated counts differ by less than 0.01."""


class Difference(NamedTuple):
    name: str
    before: int | None
    now: int | None

    @property
    def change(self) -> float | None:
        """Relative; None where one of both is missing."""
        return self.now / self.before - 1 if self.before and self.now else None

    @property
    def problem(self) -> str:
        """Empty when it may stay as it is."""
        if self.before is None:
            return "has no baseline"
        if self.now is None:
            return "is in the baseline, but no longer counted"
        dearer = self.now > self.before * (1 + TOLERANCE)
        return f"needs {self.change:+.1%} instructions" if dearer else ""


def build() -> str:
    """Names the interpreter as exactly as counts depend on it."""
    version, when = platform.python_version(), platform.python_build()[1]
    made = f"{platform.python_compiler()}, {when}"
    return f"{platform.python_implementation()} {version} ({made}) {platform.machine()}"


def load(path: Path = PATH) -> dict[str, int] | None:
    """The baseline of this interpreter, if it has one."""
    return _all(path).get(build())


def save(counts: Mapping[str, int], path: Path = PATH) -> None:
    """Replaces this interpreter's baseline and leaves those of others."""
    path.write_text(json.dumps({**_all(path), build(): dict(counts)}, indent=2, sort_keys=True) + "\n")


def compare(before: Mapping[str, int], now: Mapping[str, int]) -> list[Difference]:
    return [Difference(name, before.get(name), now.get(name)) for name in dict.fromkeys((*now, *before))]


def _all(path: Path) -> dict[str, dict[str, int]]:
    known: dict[str, dict[str, int]] = json.loads(path.read_text()) if path.exists() else {}
    return known
