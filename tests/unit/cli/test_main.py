"""The command as a whole: fast help, lazy commands, and failures as sentences with exit codes."""

import subprocess
import sys

import click
import pytest

from ztunnel import cli
from ztunnel.core.errors import ConfigError, PlatformError, UpstreamError


def test_help_shows_every_command_and_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("serve", "check", "show", "enroll", "unenroll", "ca", "version"):
        assert f"\n  {name} " in text
    assert "PROXY_MODE=dedicated" in text
    assert "proxy " not in text.split("Commands:")[1]


def test_help_imports_none_of_the_commands() -> None:
    script = (
        "import sys; from ztunnel.cli import run; run(['--help']); "
        "print([name for name in ('trio', 'h2', 'OpenSSL', 'yaml', 'h11') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_that_is_there_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name not in cli.cli.list_commands(click.Context(cli.cli)) and not cli.COMMANDS[name].hidden:
        assert cli.run([name, "--help"]) == 2
        return
    assert cli.run([name, "--help"]) == 0
    assert "Usage: ztunnel" in capsys.readouterr().out


def test_a_command_that_is_missing_does_not_break_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = cli._Command("ztunnel.cli.nowhere", "nowhere", "Is not there.")
    monkeypatch.setitem(cli.COMMANDS, "nowhere", missing)
    assert cli.run(["--help"]) == 0
    assert "nowhere" not in capsys.readouterr().out
    assert cli.run(["nowhere"]) == 2


def test_version_has_istios_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["version"]) == 0
    assert capsys.readouterr().out.startswith('version.BuildInfo{Version:"0.')


def test_the_option_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["version"]) == cli.run(["--version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_ctrl_c_is_quiet_also_while_the_command_is_still_being_read() -> None:
    script = """
import sys
from importlib.metadata import entry_points

class CtrlC:
    def find_spec(self, name, path, target=None):
        if name == "click":
            raise KeyboardInterrupt

sys.meta_path.insert(0, CtrlC())
[command] = entry_points(group="console_scripts", name="ztunnel")
command.load()()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (cli.EXIT_INTERRUPTED, "", "")


@pytest.mark.parametrize(
    ("closed", "code", "said"),
    [
        (">&-", 0, ""),
        (
            ">/dev/full",
            1,
            "error: what was to be written: No space left on device\n"
            "hint: make room where the output goes, and in TMPDIR\n",
        ),
    ],
)
def test_an_output_that_takes_nothing_is_no_crash(closed: str, code: int, said: str) -> None:
    command = f"exec {sys.executable} -m ztunnel version {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_those_who_want_them(
    environ: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    @click.pass_context
    def probe(context: click.Context) -> int:
        return 0 if context.color is False else 1

    monkeypatch.setattr(cli.cli, "get_command", lambda context, name: probe)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert cli.run(["version"]) == coloured


def test_every_command_fits_on_its_line_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for group in ("redirect", "ca", "demo", "show"):
        assert cli.run([group, "--help"]) == 0
        assert "..." not in capsys.readouterr().out.split("Commands:")[1]


@pytest.mark.parametrize("command", [["serve"], ["proxy"], ["proxy", "ztunnel"]])
def test_a_wrong_environment_is_told_line_by_line_with_exit_code_2(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROXY_MODE", "dedicated")
    monkeypatch.setenv("SECRET_TTL", "soon")
    assert cli.run(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: the environment has 2 problems"
    assert lines[1].startswith("  SECRET_TTL='soon'")
    assert lines[2].startswith("  PROXY_WORKLOAD_INFO is missing")
    assert lines[3].startswith("hint: ")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PlatformError("no right", hint="be root"), 2, "error: no right\nhint: be root\n"),
        (ConfigError("wrong", problems=("wrong",)), 2, "error: wrong\n"),
        (ConfigError("two", problems=("a", "b"), hint="c"), 2, "error: two\n  a\n  b\nhint: c\n"),
        (UpstreamError("nobody answers"), 1, "error: nobody answers\n"),
        (KeyboardInterrupt(), 130, ""),
        (click.UsageError("what?"), 2, "Error: what?\n"),
    ],
)
def test_failures_are_sentences_and_exit_codes(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli, "main", fail)
    assert cli.run(["anything"]) == code
    assert said in capsys.readouterr().err


def test_nobody_on_the_enroll_socket_is_said_with_what_to_do(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["enroll", "--list", "--socket", str(tmp_path / "none.sock")]) == 2
    text = capsys.readouterr().err
    assert "none.sock: No such file or directory" in text
    assert "hint: is a shared agent running" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["enroll", "--netns", "a"],
        ["enroll", "--netns", "a", "--pid", "1", "--workload", "a/b"],
        ["enroll", "--netns", "a", "--workload", "b"],
        ["enroll", "--netns", "a", "--workload", "a/b/c"],
        ["unenroll"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert "Error: " in capsys.readouterr().err
