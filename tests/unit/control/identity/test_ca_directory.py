from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mesh_pki import WEB

from ztunnel.control.identity import ca_directory
from ztunnel.control.identity.ca import LocalSource
from ztunnel.control.identity.ca_directory import CaDirectory, create, open_existing, open_or_create
from ztunnel.control.identity.ca_files import FILES, render_new
from ztunnel.control.identity.certificate import load_certificates
from ztunnel.core.errors import ConfigError

NOW = 1_800_000_000.0


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in FILES}


def fill(path: Path, files: dict[str, bytes]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
        (path / name).chmod(0o600)


def test_a_missing_directory_is_made_with_a_ca(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "ca"
    ca = open_or_create(path, now=NOW)
    assert sorted(file.name for file in path.iterdir()) == [".lock", *sorted(FILES)]
    assert load_certificates((path / "root-cert.pem").read_bytes()) == [ca.certificate]


def test_the_key_is_for_its_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        open_or_create(tmp_path, now=NOW)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "ca-key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "root-cert.pem").stat().st_mode) == 0o644


def test_a_second_start_uses_the_same_ca(tmp_path: Path) -> None:
    first = open_or_create(tmp_path, now=NOW)
    before = contents(tmp_path)
    assert open_or_create(tmp_path, now=NOW + 1000).certificate == first.certificate
    assert create(tmp_path, now=NOW) is False
    assert contents(tmp_path) == before


def test_an_existing_ca_in_a_directory_that_cannot_be_written_is_used_without_a_lock(tmp_path: Path) -> None:
    fill(tmp_path, render_new(name="given", now=NOW))
    open_or_create(tmp_path, now=NOW)
    assert not (tmp_path / ".lock").exists()


def test_eight_processes_at_once_see_the_same_ca(tmp_path: Path) -> None:
    """Each waits for the others at a gate (the end of its input), then opens the directory and prints what it sees."""
    path = tmp_path / "made" / "by" / "nobody"
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ztunnel.control.identity.ca_directory import open_or_create\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
        f"ca = open_or_create(Path({str(path)!r}), now={NOW})\n"
        "print(ca.certificate.serial_number)\n"
    )
    agents = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for agent in agents:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
    for agent in agents:
        assert agent.stdin is not None
        agent.stdin.close()
        agent.stdin = None
    seen = {agent.communicate(timeout=30)[0] for agent in agents}
    assert len(seen) == 1
    assert [agent.returncode for agent in agents] == [0] * 8
    assert int(seen.pop()) == open_existing(path, now=NOW).certificate.serial_number
    assert sorted(file.name for file in path.iterdir()) == [".lock", *sorted(FILES)]


def test_a_reader_never_sees_half_a_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before every rename of the creator, a reader sees either no CA or the whole one."""
    rename = os.rename
    seen = []

    def observed(source: Path, target: Path) -> None:
        try:
            open_existing(tmp_path, now=NOW)
        except ConfigError as error:
            seen.append(str(error))
        else:
            seen.append("whole")
        rename(source, target)

    monkeypatch.setattr(os, "rename", observed)
    create(tmp_path, now=NOW)
    assert seen == [f"{tmp_path} holds no CA"] * 5
    open_existing(tmp_path, now=NOW)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program runs after it."""


@pytest.mark.parametrize("step", range(5))
def test_a_creator_that_dies_at_any_step_is_followed_by_one_that_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    rename, left = os.rename, [step]

    def dying(source: Path, target: Path) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        rename(source, target)

    monkeypatch.setattr(os, "rename", dying)
    with pytest.raises(Killed):
        create(tmp_path, now=NOW)
    monkeypatch.setattr(os, "rename", rename)
    open_or_create(tmp_path, now=NOW)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", *sorted(FILES)]


def test_a_staging_directory_half_filled_is_thrown_away(tmp_path: Path) -> None:
    fill(tmp_path / ".staging", {"ca-cert.pem": b"half", "ca-key.pem": b""})
    open_or_create(tmp_path, now=NOW)
    assert not (tmp_path / ".staging").exists()


@pytest.mark.parametrize("name", ["ca-key.pem", "root-cert.pem", "cert-chain.pem"])
def test_an_incomplete_ca_is_refused_and_not_touched(tmp_path: Path, name: str) -> None:
    fill(tmp_path, {name: render_new(name="theirs", now=NOW)[name]})
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ConfigError, match=f"holds {name} but no ca-cert.pem"):
        open_or_create(tmp_path, now=NOW)
    assert (tmp_path / name).read_bytes() == before


def test_files_put_beside_an_unfinished_ca_are_not_overwritten(tmp_path: Path) -> None:
    fill(tmp_path / ".commit", render_new(name="ours", now=NOW))
    fill(tmp_path, {"ca-key.pem": b"theirs"})
    with pytest.raises(ConfigError, match=r"ca-key\.pem of somebody else"):
        open_or_create(tmp_path, now=NOW)
    assert (tmp_path / "ca-key.pem").read_bytes() == b"theirs"


def test_a_file_in_the_place_of_the_directory_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="Not a directory"):
            open_or_create(path, now=NOW)


def test_a_missing_ca_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no CA") as caught:
        open_existing(tmp_path / "ca", now=NOW)
    assert "ztunnel ca init" in caught.value.hint
    assert not (tmp_path / "ca").exists()


def test_a_key_that_others_can_read_is_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_or_create(tmp_path, now=NOW)
    (tmp_path / "ca-key.pem").chmod(0o644)
    open_or_create(tmp_path, now=NOW)
    assert "can be read by other users" in caplog.text


def test_the_files_are_read_once_until_they_change(tmp_path: Path) -> None:
    directory = CaDirectory(tmp_path)
    first = directory.open(NOW)
    assert directory.open(NOW + 60) is first
    for name in FILES:
        (tmp_path / name).unlink()
    fill(tmp_path, render_new(name="rotated", now=NOW))
    rotated = directory.open(NOW + 120)
    assert rotated.certificate.subject.rfc4514_string() == "CN=rotated"


def test_a_ca_that_breaks_later_is_reported_when_it_is_used(tmp_path: Path) -> None:
    directory = CaDirectory(tmp_path)
    directory.open(NOW)
    (tmp_path / "ca-key.pem").write_bytes(b"broken")
    with pytest.raises(ConfigError, match=r"ca-key\.pem holds no readable"):
        directory.open(NOW)


def test_threads_share_one_directory_object(tmp_path: Path) -> None:
    directory = CaDirectory(tmp_path)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(directory.open(NOW))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


async def test_a_directory_is_a_source_of_certificates(tmp_path: Path) -> None:
    issued = await LocalSource(CaDirectory(tmp_path).open, ttl=600, clock=lambda: NOW).fetch(WEB)
    assert issued.roots_pem == (tmp_path / "root-cert.pem").read_bytes()
    assert issued.not_after == NOW + 600


def test_the_lock_is_held_while_creating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second creator waits for the first and then finds its CA."""
    began, go = threading.Event(), threading.Event()
    render = ca_directory.render_new

    def slow_render(*, name: str, now: float, lifetime: float) -> dict[str, bytes]:
        began.set()
        assert go.wait(10)
        return render(name=name, now=now, lifetime=lifetime)

    monkeypatch.setattr(ca_directory, "render_new", slow_render)
    made: list[bool] = []
    first = threading.Thread(target=lambda: made.append(create(tmp_path, now=NOW)))
    second = threading.Thread(target=lambda: made.append(create(tmp_path, now=NOW)))
    first.start()
    assert began.wait(10)
    second.start()
    go.set()
    first.join()
    second.join()
    assert sorted(made) == [False, True]
    shutil.rmtree(tmp_path)
