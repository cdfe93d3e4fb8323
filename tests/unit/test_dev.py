import subprocess
from pathlib import Path

DEV = Path(__file__).parents[2] / "dev"


def dev(*arguments, env=None):
    return subprocess.run([DEV, *arguments], capture_output=True, text=True, timeout=20, check=False, env=env)


def test_without_a_command_it_teaches_every_command():
    answer = dev()
    assert answer.returncode == 0
    for command in ("demo", "test", "lint", "bench", "ztunnel", "sync"):
        assert f"\n  {command} " in answer.stdout


def test_an_unknown_command_is_an_error_with_the_same_lesson():
    answer = dev("tset")
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "unknown command: tset" in answer.stderr
    assert "./dev COMMAND" in answer.stderr


def test_messages_to_a_pipe_have_no_colours():
    assert "\033" not in dev("tset").stderr
