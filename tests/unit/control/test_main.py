"""The control half, played by a worker of nothing but messages: what it sends, grants and refuses, and how it ends."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from ztunnel.config.settings import Settings, WorkloadInfo
from ztunnel.control import main
from ztunnel.core.errors import ConfigError, PlatformError
from ztunnel.core.model.address import Address
from ztunnel.core.model.identity import Identity
from ztunnel.link.channel import Channel, memory_link
from ztunnel.link.messages import (
    CertificateFailed,
    CertificateForgotten,
    CertificateIssued,
    CertificateWanted,
    Down,
    Drain,
    Drained,
    PodAdded,
    PodFailed,
    PodGone,
    PodReady,
    PodRemoved,
    Priority,
    StateSlice,
    StateSynced,
    Up,
)
from ztunnel.observe.logs import Logs
from ztunnel.runtime import drain as drain_module
from ztunnel.runtime.ready import Ready

MESH = "workloads: [{name: web, uid: web, namespace: demo, serviceAccount: web, workloadIps: [10.0.0.1]}]"
ANYWHERE = (Address("127.0.0.1", 0),)
SETTINGS = Settings(
    proxy_mode="dedicated",
    proxy_workload_info=WorkloadInfo("demo", "web", "web"),
    capture_mode="none",
    packet_mark=None,
    local_xds=MESH,
    admin_addr=ANYWHERE,
    stats_addr=ANYWHERE,
    readiness_addr=ANYWHERE,
    connection_termination_deadline=30.0,
)
WEB = Identity("cluster.local", "demo", "web")


class Rig:
    """A control half that runs, and the worker's end of its link."""

    def __init__(self, settings: Settings, logs: Logs, worker: Channel[Up, Down]) -> None:
        self.settings = settings
        self.logs = logs
        self.worker = worker
        self.drain = drain_module.Drain()
        self.ready = Ready()
        self.ended = trio.Event()

    async def run(self, link: Channel[Down, Up]) -> None:
        await main.run([link], self.settings, drain=self.drain, ready=self.ready, logs=self.logs)
        self.ended.set()

    async def hear(self, kind: type) -> Down:
        """The next message of that kind; others are passed over."""
        while True:
            message = await self.worker.receive()
            if isinstance(message, kind):
                return message

    async def play_to_the_end(self) -> None:
        """Answer what a drain asks until the control half closes the link."""
        async for message in self.worker:
            if isinstance(message, Drain):
                self.worker.send(Drained(0))
            elif isinstance(message, PodRemoved):
                self.worker.send(PodGone(message.uid))


@pytest.fixture
async def rig(logs: Logs, nursery: trio.Nursery) -> AsyncIterator[Rig]:
    control, worker = memory_link()
    made = Rig(SETTINGS, logs, worker)
    nursery.start_soon(made.run, control)
    yield made
    made.drain.force()
    await made.play_to_the_end()


async def test_the_mesh_comes_before_the_pod_and_the_agent_is_ready_after_it(rig: Rig) -> None:
    kinds = [type(await rig.worker.receive()) for _ in range(3)]
    assert kinds == [StateSlice, StateSynced, PodAdded]
    assert rig.ready.pending == ("pod demo/web",)
    rig.worker.send(PodReady("demo/web"))
    await rig.ready.wait_ready()


async def test_a_pod_that_fails_keeps_the_agent_from_being_ready(rig: Rig) -> None:
    await rig.hear(PodAdded)
    rig.worker.send(PodFailed("demo/web", "the port is taken"))
    await trio.testing.wait_all_tasks_blocked()
    assert rig.ready.pending == ("pod demo/web",)


async def test_a_worker_gets_the_certificate_of_its_pod_and_of_nobody_else(rig: Rig) -> None:
    await rig.hear(PodAdded)
    stranger = Identity("cluster.local", "demo", "stranger")
    rig.worker.send(CertificateWanted(stranger, Priority.NOW))
    assert await rig.hear(CertificateFailed) == CertificateFailed(stranger, "no pod of this agent has this identity")
    rig.worker.send(CertificateWanted(WEB, Priority.NOW))
    issued = await rig.hear(CertificateIssued)
    assert isinstance(issued, CertificateIssued)
    assert issued.identity == WEB


async def test_the_end_drains_first_then_lets_the_pod_and_its_key_go(rig: Rig) -> None:
    await rig.hear(PodAdded)
    rig.worker.send(PodReady("demo/web"))
    rig.worker.send(CertificateWanted(WEB, Priority.WARMUP))
    await rig.hear(CertificateIssued)
    rig.drain.trigger("the test", 30)
    order = await rig.hear(Drain)
    assert isinstance(order, Drain)
    assert order.deadline == pytest.approx(30, abs=1)
    rig.worker.send(Drained(0))
    assert await rig.hear(PodRemoved) == PodRemoved("demo/web")
    assert not rig.ended.is_set()
    rig.worker.send(PodGone("demo/web"))
    assert await rig.hear(CertificateForgotten) == CertificateForgotten(WEB)
    await rig.ended.wait()


async def test_a_forced_end_tells_the_worker_to_close_everything_now(rig: Rig) -> None:
    await rig.hear(PodAdded)
    rig.worker.send(PodReady("demo/web"))
    rig.drain.trigger("the test", 30)
    await rig.hear(Drain)
    rig.drain.force()
    assert await rig.hear(Drain) == Drain(0)
    rig.worker.send(Drained(1))
    await rig.hear(PodRemoved)
    rig.worker.send(PodGone("demo/web"))
    await rig.ended.wait()


async def test_a_bad_mesh_is_the_end_before_anything_is_sent(logs: Logs) -> None:
    control, worker = memory_link()
    settings = Settings(local_xds="what: []", admin_addr=ANYWHERE, stats_addr=ANYWHERE, readiness_addr=ANYWHERE)
    with pytest.raises(ConfigError, match="LOCAL_XDS has 1 problem"):
        await main.run([control], settings, drain=drain_module.Drain(), ready=Ready(), logs=logs)
    assert [message async for message in worker] == []


async def test_a_worker_that_ends_takes_the_control_half_with_it(logs: Logs) -> None:
    control, worker = memory_link()
    worker.close()
    with pytest.raises(PlatformError, match="worker 0 has ended"):
        await main.run([control], SETTINGS, drain=drain_module.Drain(), ready=Ready(), logs=logs)


@pytest.mark.parametrize("asked_for", [True, False])
async def test_an_enroll_socket_is_only_needed_when_it_was_asked_for(
    logs: Logs, tmp_path: Path, asked_for: bool
) -> None:
    control, worker = memory_link()
    settings = Settings(
        enroll_uds=str(tmp_path / ("x" * 200)),
        origins={"enroll_uds": "ENROLL_UDS"} if asked_for else {},
        admin_addr=ANYWHERE,
        stats_addr=ANYWHERE,
        readiness_addr=ANYWHERE,
    )
    drain, ready = drain_module.Drain(), Ready()

    async def run() -> None:
        await main.run([control], settings, drain=drain, ready=ready, logs=logs)

    if asked_for:
        with pytest.raises(PlatformError, match="enroll socket"):
            await run()
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        assert isinstance(await worker.receive(), StateSynced)
        await ready.wait_ready()
        drain.trigger("the test", 0)
        await worker.receive()
        worker.send(Drained(0))


async def test_a_ca_that_cannot_be_used_refuses_the_start(logs: Logs, tmp_path: Path) -> None:
    in_the_way = tmp_path / "ca"
    in_the_way.write_text("no directory")
    control, _ = memory_link()
    with pytest.raises(ConfigError, match="Not a directory"):
        await Rig(msgspec.structs.replace(SETTINGS, local_ca_path=str(in_the_way)), logs, control).run(control)


async def test_a_missing_right_refuses_the_start(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    held = msgspec.structs.replace(main.rights(), mark="may not set the packet mark")
    monkeypatch.setattr(main, "rights", lambda: held)
    control, _ = memory_link()
    with pytest.raises(PlatformError, match="packet mark"):
        await Rig(msgspec.structs.replace(SETTINGS, packet_mark=0x539), logs, control).run(control)
