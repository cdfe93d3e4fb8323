import os
import shutil
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


def copied(directory: Path) -> Path:
    """The door alone, with what it reads."""
    for name in ("dev", "pyproject.toml", "requirements.lock", "requirements-build.lock", "requirements-dev.lock"):
        shutil.copy(DEV.parent / name, directory)
    return directory / "dev"


def test_an_environment_that_fits_is_used_without_writing_anything(tmp_path: Path):
    door = copied(tmp_path)
    sums = subprocess.run(
        "cat pyproject.toml requirements*.lock | cksum", shell=True, cwd=tmp_path, capture_output=True, text=True
    ).stdout.strip()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".synced").write_text(f"dev {sums} {tmp_path} \n")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    answer = subprocess.run([door, "sync"], capture_output=True, text=True, timeout=20, check=False, env=environ)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert not (tmp_path / ".cache").exists()


def test_a_tree_that_cannot_be_written_to_is_said(tmp_path: Path):
    door = copied(tmp_path)
    (tmp_path / ".cache").write_text("in the way")
    answer = subprocess.run([door, "sync"], capture_output=True, text=True, timeout=20, check=False)
    assert answer.returncode == 2
    assert f"may not write to {tmp_path}" in answer.stderr
