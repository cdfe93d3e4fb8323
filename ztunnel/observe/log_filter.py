"""Which log lines are wanted: a filter in the syntax of RUST_LOG, as a value.

A filter is a comma list of `level` (for everything) and `target=level` (for a target and all beneath it). Later
directives win. Targets are logger names; `::` is read as `.`, and `target:level` is read as `target=level`, because
Istio's own help text shows it so. A target without a level is refused, as ztunnel does.

This module must not know how lines are written.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import msgspec

TRACE = 5
OFF = logging.CRITICAL + 10
LEVELS: Mapping[str, int] = {
    "off": OFF,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}
DEFAULT_SPEC = "info"
MAX_SPEC_CHARS = 4096
MAX_TARGETS = 256
"""Bound what a running agent keeps for those who change its filter over and over."""

_TARGET = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")


def level_name(number: int) -> str:
    """ztunnel's name of a level of `logging`; levels in between take the next lower name."""
    if number >= logging.ERROR:
        return "error"
    if number >= logging.WARNING:
        return "warn"
    if number >= logging.INFO:
        return "info"
    return "debug" if number >= logging.DEBUG else "trace"


class LogFilter(msgspec.Struct, frozen=True):
    """The level names in force: for everything, and for single targets."""

    default: str = "error"
    targets: Mapping[str, str] = {}

    def __str__(self) -> str:
        return ",".join([self.default, *(f"{target}={level}" for target, level in sorted(self.targets.items()))])

    def adding(self, spec: str) -> LogFilter:
        """This filter with the directives of `spec` after its own.

        Raises ValueError when a directive is not of the syntax above.
        """
        if len(spec) > MAX_SPEC_CHARS:
            raise ValueError(f"a log filter has at most {MAX_SPEC_CHARS} characters")
        default, targets = self.default, dict(self.targets)
        for directive in filter(None, (part.strip() for part in spec.split(","))):
            target, level = _parse_directive(directive)
            if target:
                targets[target] = level
            else:
                default = level
        if len(targets) > MAX_TARGETS:
            raise ValueError(f"a log filter has at most {MAX_TARGETS} targets")
        return LogFilter(default, targets)


def parse_filter(spec: str) -> LogFilter:
    """The filter that `spec` alone describes; without a bare level only errors of other targets are wanted.

    Raises ValueError with a sentence for the operator.
    """
    return LogFilter().adding(spec or DEFAULT_SPEC)


def _parse_directive(directive: str) -> tuple[str, str]:
    """(target, level); the target is empty for a bare level."""
    if directive.lower() in LEVELS:
        return "", directive.lower()
    name = directive.replace("::", ".")
    target, separator, level = name.rpartition("=") if "=" in name else name.rpartition(":")
    level = level.strip().lower()
    if not separator or level not in LEVELS:
        raise ValueError(f"{directive!r} is neither a level ({', '.join(LEVELS)}) nor target=level")
    target = target.strip()
    if not _TARGET.fullmatch(target):
        raise ValueError(f"{target!r} is not the name of a log target")
    return target, level
