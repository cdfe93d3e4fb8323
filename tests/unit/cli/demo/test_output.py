"""People see ticks, and colours only on a terminal."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ztunnel.cli.demo.beats import BEATS
from ztunnel.cli.demo.output import Result, Screen
from ztunnel.core.model.capture import CaptureMode

HELD = Result("redirect", "wire", "only TLS", True, "8 packets\non the wire 17 03", 0.5)
BROKEN = Result("redirect", "wire", "only TLS", False, "the secret crossed the wire", 0.5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stdout: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of two beats."""
    monkeypatch.setattr(sys, "stdout", stdout)
    stage: Any = SimpleNamespace(rootless=True)
    screen = Screen()
    screen.opens()
    screen.is_open(stage)
    screen.mode_begins(CaptureMode.REDIRECT)
    for result in (HELD, BROKEN):
        screen.beat_begins(BEATS[0])
        screen.beat_ends(result)
    screen.ends(False, 1.5, "")
    return stdout.getvalue() if stdout is not None else ""


def test_a_closed_output_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(None, monkeypatch) == ""


def test_in_a_file_there_are_only_words(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = show(io.StringIO(), monkeypatch)
    assert "\033" not in shown
    assert "\r" not in shown
    assert "  ✓ only TLS  0.50 s\n      8 packets\n      on the wire 17 03\n" in shown
    assert "  ✗ only TLS  0.50 s\n      the secret crossed the wire\n" in shown
    assert "in a user namespace, without root" in shown
    assert shown.endswith("Not every beat held, in 1.5 s.\n")


def test_on_a_terminal_progress_is_overwritten_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    shown = show(Terminal(), monkeypatch)
    assert f"\r\033[K  … {BEATS[0].claim}\r\033[K  \033[32m✓\033[0m only TLS" in shown
    assert "\033[31m✗\033[0m" in shown


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in show(Terminal(), monkeypatch)


def test_the_columns_of_the_picture_are_straight(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = [line for line in show(io.StringIO(), monkeypatch).splitlines() if line.strip()][1:4]
    for corner in ("┐├┘", "┌┤└"):
        assert len({line.index(mark) for line, mark in zip(picture, corner, strict=True)}) == 1, picture
