import logging
import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ztunnel.config.settings import Settings
from ztunnel.control.mesh.localfile import Mesh
from ztunnel.control.mesh.source import MAX_FILE, LocalSource, Statistics
from ztunnel.core.errors import ConfigError
from ztunnel.link.messages import CaptureMode, Resync, StateSlice, StateSynced

ONE = "workloads:\n- {name: a, namespace: n, workloadIps: [10.0.0.1]}\n"
TWO = ONE + "- {name: b, namespace: n, workloadIps: [10.0.0.2]}\n"
POD = "pods:\n- {name: p, netns: p, workload: n/a}\n"


class Run:
    """A source that runs, and what it said. Its reloads and its looks at the file are waited for, not slept for."""

    def __init__(self, path: Path, text: str | None = ONE) -> None:
        if text is not None:
            path.write_text(text)
        self.source = LocalSource(Settings(local_xds_path=str(path)), poll=0.001)
        self.sent = []
        self.pods = []
        self.started = trio.Event()
        self.reloaded, self.reloads = trio.open_memory_channel(100)
        self.looked, self.looks = trio.open_memory_channel(100_000)
        self.real_look, self.source._look = self.source._look, self.look
        self.real_reload, self.source.reload_now = self.source.reload_now, self.reload

    def send(self, message):
        self.sent.append(message)

    async def on_pods(self, pods):
        self.pods.append(pods)
        self.started.set()

    def look(self):
        trio.from_thread.run_sync(self.looked.send_nowait, None)
        return self.real_look()

    async def reload(self, *args):
        result = await self.real_reload(*args)
        self.reloaded.send_nowait(result)
        return result

    @asynccontextmanager
    async def running(self):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.source.run, self.send, self.on_pods)
            await self.started.wait()
            yield self
            nursery.cancel_scope.cancel()

    def names(self):
        return [
            workload.name for message in self.sent if isinstance(message, StateSlice) for workload in message.workloads
        ]


def replace(path, text):
    other = path.with_suffix(".new")
    other.write_text(text)
    os.replace(other, path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mesh.yaml"


async def test_the_whole_state_comes_first_then_synced_then_the_pods(path):
    async with Run(path, ONE + POD).running() as run:
        assert [type(message) for message in run.sent] == [StateSlice, StateSynced]
        assert run.names() == ["a"]
        assert [pod.name for pod in run.pods[0]] == ["p"]
        assert run.source.statistics() == Statistics(0, 0)


async def test_a_worker_that_comes_while_the_state_is_sent_is_told_all_of_it(path):
    run = Run(path, TWO)
    snapshots = []

    def send(message):
        snapshots.append([type(each) for each in run.source.snapshot()])

    run.send = send
    async with run.running():
        assert snapshots == [[Resync, StateSlice, StateSynced]] * 2


async def test_a_file_of_any_form_is_reloaded(path):
    async with Run(path).running() as run:
        replace(path, "workloads: [{name: c, namespace: n}]")
        assert await run.reloads.receive() is True
        assert run.names() == ["a", "c"]


async def test_a_bad_file_at_the_start_is_a_config_error(path):
    path.write_text("workloads: [{name: x}]")
    with pytest.raises(ConfigError) as raised:
        LocalSource(Settings(local_xds_path=str(path))).load()
    assert raised.value.problems == (f"{path}:1: workloads[0]: namespace is missing",)


async def test_run_loads_where_nobody_did_and_fails_alike(path):
    run = Run(path, None)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        await run.source.run(run.send, run.on_pods)
    assert run.sent == []


def test_text_that_is_not_utf_8_is_a_config_error(path):
    path.write_bytes(b"workloads: \xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text \\(byte 11\\)"):
        LocalSource(Settings(local_xds_path=str(path))).load()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
        (lambda path: (path.touch(), os.truncate(path, MAX_FILE + 1)), "is larger than 268435456 bytes"),
        (os.mkdir, "cannot be read: Is a directory"),
    ],
    ids=["pipe", "device", "huge", "directory"],
)
def test_what_is_no_file_of_a_sensible_size_is_a_config_error(path, make, why):
    make(path)
    with pytest.raises(ConfigError) as raised:
        LocalSource(Settings(local_xds_path=str(path))).load()
    assert raised.value.problems == (f"{path}: {why}",)


async def test_a_change_in_place_is_seen(path):
    async with Run(path).running() as run:
        path.write_text(TWO)
        while not await run.reloads.receive():
            pass
        assert run.names() == ["a", "b"]
        assert run.source.statistics().reloads_ok == 1


async def test_a_rename_over_the_file_is_seen(path):
    async with Run(path).running() as run:
        replace(path, TWO)
        assert await run.reloads.receive() is True
        assert run.names() == ["a", "b"]


async def test_the_symlink_swap_of_a_config_map_is_seen(tmp_path):
    for name, text in (("v1", ONE), ("v2", TWO)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mesh.yaml").write_text(text)
    (tmp_path / "data").symlink_to("v1")
    path = tmp_path / "mesh.yaml"
    path.symlink_to("data/mesh.yaml")
    async with Run(path, None).running() as run:
        (tmp_path / "data.new").symlink_to("v2")
        os.replace(tmp_path / "data.new", tmp_path / "data")
        assert await run.reloads.receive() is True
        assert run.names() == ["a", "b"]


async def test_a_bad_change_is_refused_as_a_whole_and_logged_once(path, caplog):
    caplog.set_level(logging.ERROR, "ztunnel.control.mesh")
    async with Run(path).running() as run:
        replace(path, TWO + "- {name: c}\npolicies: 5\n")
        assert await run.reloads.receive() is False
        for _ in range(10):
            await run.looks.receive()
        assert run.source.statistics() == Statistics(0, 1)
        assert [workload.name for workload in run.source.mesh.workloads] == ["a"]
        assert run.names() == ["a"]
        assert run.source.problems == (
            f"{path}:4: workloads[2]: namespace is missing",
            f"{path}:5: policies: must be a list, not '5'",
        )
        assert [record.getMessage() for record in caplog.records] == [
            f"{path} has 2 problems; the old state stays in force",
            *run.source.problems,
        ]
        replace(path, TWO)
        assert await run.reloads.receive() is True
        assert run.names() == ["a", "b"]
        assert run.source.problems == ()


async def test_a_file_that_goes_away_and_comes_back(path):
    async with Run(path).running() as run:
        path.unlink()
        assert await run.reloads.receive() is False
        assert "cannot be read" in run.source.problems[0]
        replace(path, TWO)
        assert await run.reloads.receive() is True
        assert run.names() == ["a", "b"]


async def test_half_a_file_is_not_taken_while_it_is_still_written(path):
    """Each of the first looks finds another file that would be valid; only the one that stays is read."""
    run = Run(path)
    real, looks = run.real_look, 0

    def look():
        nonlocal looks
        looks += 1
        if looks <= 6:
            replace(path, TWO if looks == 6 else "{}" + " " * looks)
        return real()

    run.real_look = look
    async with run.running():
        assert await run.reloads.receive() is True
    assert run.names() == ["a", "b"]
    assert not any(message.removed_workloads for message in run.sent if isinstance(message, StateSlice))


async def test_pods_are_told_after_the_state_and_only_when_they_changed(path):
    async with Run(path).running() as run:
        replace(path, TWO + POD)
        assert await run.reloads.receive() is True
        assert [pod.name for pod in run.pods[-1]] == ["p"]
        told = len(run.pods)
        replace(path, ONE + POD)
        assert await run.reloads.receive() is True
        assert len(run.pods) == told


async def test_inline_text_and_the_settings_defaults(path):
    settings = Settings(local_xds=ONE + POD, trust_domain="example.org", capture_mode="none")
    mesh = LocalSource(settings).load()
    assert mesh.workloads[0].trust_domain == "example.org"
    assert mesh.pods[0].capture is CaptureMode.NONE


async def test_without_a_file_the_mesh_is_empty_and_synced(autojump_clock):
    source = LocalSource(Settings())
    sent = []

    async def on_pods(pods):
        sent.append(pods)

    with trio.move_on_after(3600):
        await source.run(sent.append, on_pods)
    assert sent == [StateSynced(), ()]
    assert source.mesh == Mesh()
