"""The order of a run: what is told when, and the exit codes; the stage is played."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from ztunnel.cli.demo import command
from ztunnel.cli.demo.beats import Beat
from ztunnel.cli.demo.interrupts import Interrupted, Interrupts
from ztunnel.cli.demo.output import JsonOutput, Output
from ztunnel.cli.demo.stage import StageError
from ztunnel.core.errors import PlatformError
from ztunnel.core.model.capture import CaptureMode


class PlayedStage:
    """Opens and closes, and cannot switch to the modes in `unable`."""

    unable: tuple[CaptureMode, ...] = ()
    closed = 0

    def __init__(self, interrupts: Interrupts, *, rootless: bool) -> None:
        self.rootless = rootless

    def __enter__(self) -> PlayedStage:
        return self

    def __exit__(self, *_: object) -> None:
        type(self).closed += 1

    def switch(self, mode: CaptureMode) -> None:
        if mode in self.unable:
            raise StageError(f"cannot do {mode.value}")


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    class Played(PlayedStage):
        pass

    def play_beats(output: Output, *runs: Callable[[object], str], unable: tuple[CaptureMode, ...] = ()) -> int:
        Played.unable = unable
        monkeypatch.setattr(command, "prepare", lambda: True)
        monkeypatch.setattr(command, "Stage", Played)
        monkeypatch.setattr(command, "BEATS", [Beat(f"beat {n}", f"claim {n}", run) for n, run in enumerate(runs, 1)])
        with Interrupts() as interrupts:
            code = command.run(output, interrupts, stay=False)
        assert Played.closed == 1
        return code

    return play_beats


def holds(stage: object) -> str:
    return "seen"


def breaks(stage: object) -> str:
    raise StageError("not seen")


def test_json_tells_every_beat_of_every_mode(play: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert play(JsonOutput(), holds, holds) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["rootless"], "error" in report) == (True, True, False)
    modes = ("redirect", "tproxy", "node")
    assert [(b["mode"], b["name"]) for b in report["beats"]] == [(m, b) for m in modes for b in ("beat 1", "beat 2")]
    assert report["beats"][0].keys() == {"mode", "name", "claim", "ok", "detail", "seconds"}


def test_after_a_beat_that_does_not_hold_the_next_mode_is_still_tried(
    play: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert play(JsonOutput(), holds, breaks, holds) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert [beat["ok"] for beat in report["beats"]] == [True, False, False] * 3
    assert report["beats"][1]["detail"] == "not seen"
    assert "not tried" in report["beats"][2]["detail"]


def test_a_mode_that_cannot_be_had_fails_all_its_beats_and_no_others(
    play: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert play(JsonOutput(), holds, unable=(CaptureMode.TPROXY,)) == 1
    beats = json.loads(capsys.readouterr().out)["beats"]
    assert [(beat["mode"], beat["ok"]) for beat in beats] == [("redirect", True), ("tproxy", False), ("node", True)]
    assert beats[1]["detail"] == "cannot do tproxy"


def test_an_interruption_is_told_and_the_stage_is_closed(
    play: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def is_interrupted(stage: object) -> str:
        raise Interrupted(15)

    assert play(JsonOutput(), holds, is_interrupted) == 143
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["error"]) == (False, "interrupted by SIGTERM")
    assert len(report["beats"]) == 1


def test_what_is_missing_is_a_sentence_with_its_remedy_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare() -> bool:
        raise PlatformError("no namespaces here", hint="allow them")

    monkeypatch.setattr(command, "prepare", prepare)
    with Interrupts() as interrupts:
        assert command.run(JsonOutput(), interrupts, stay=True) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "no namespaces here; allow them"


def test_without_rule_tools_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.tools, "has", lambda backend: False)
    with pytest.raises(PlatformError, match="neither nft nor iptables") as raised:
        command.prepare()
    assert "install the package" in raised.value.hint


def test_where_no_namespace_can_be_made_it_says_which_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise PlatformError("refused", hint="sysctl user.max_user_namespaces")

    monkeypatch.setattr(command, "create_netns", refuse)
    monkeypatch.setattr(command, "unshare_user_net", refuse)
    with pytest.raises(PlatformError) as raised:
        command.prepare()
    assert "sysctl" in raised.value.hint
