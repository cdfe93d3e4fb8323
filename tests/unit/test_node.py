"""One process, two halves: the end of either is the end of both, at once and with its reason."""

import gc
import logging
import sys
from collections.abc import Iterator

import pytest
import trio

from ztunnel import node
from ztunnel.config.settings import Settings, WorkloadInfo
from ztunnel.core.errors import ConfigError, PlatformError
from ztunnel.core.model.address import Address
from ztunnel.observe.logs import Logs
from ztunnel.runtime.drain import Drain
from ztunnel.worker import process
from ztunnel.worker.engine.loop import Loop

ANYWHERE = (Address("127.0.0.1", 0),)
SETTINGS = Settings(
    proxy_mode="dedicated",
    proxy_workload_info=WorkloadInfo("demo", "web", "web"),
    capture_mode="none",
    packet_mark=None,
    local_xds="workloads: []",
    admin_addr=ANYWHERE,
    stats_addr=ANYWHERE,
    readiness_addr=ANYWHERE,
    outbound_port=0,
    inbound_plaintext_port=0,
    inbound_port=0,
)


@pytest.fixture
def loop() -> Iterator[Loop]:
    """The engine's loop as the process has it: it belongs to whoever hosts the run."""
    made = Loop()
    yield made
    made.shutdown()


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """The agent sets up the garbage collector of its process; this one is the tests'."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


async def test_it_serves_until_it_is_drained(logs: Logs) -> None:
    drain = Drain()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await node.run(SETTINGS, logs, drain=drain)
            nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        while gc.get_threshold() != process.GC_THRESHOLDS:  # noqa: ASYNC110 - set once the agent is ready
            await trio.sleep(0.01)
        drain.trigger("the test", 5)
        await trio.sleep_forever()
    assert drain.is_draining


async def test_a_worker_that_crashes_ends_the_process_with_its_own_error(
    logs: Logs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def crash(*args: object) -> None:
        await trio.sleep(0.1)
        raise RuntimeError("a bug in the worker")

    monkeypatch.setattr(node.worker, "run", crash)
    with trio.fail_after(5), pytest.raises(RuntimeError, match="a bug in the worker"):
        await node.run(SETTINGS, logs)
    assert "worker crashed: RuntimeError: a bug in the worker" in caplog.text


async def test_a_control_half_that_fails_ends_the_process_with_its_own_error(logs: Logs, loop: Loop) -> None:
    with trio.fail_after(5), pytest.raises(ConfigError, match="LOCAL_XDS has 1 problem"):
        await node.run(Settings(local_xds="what: []"), logs, loop=loop)


async def test_a_port_that_is_taken_is_said(logs: Logs, loop: Loop) -> None:
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = Address("127.0.0.1", taken.getsockname()[1])
        settings = Settings(
            **{field: getattr(SETTINGS, field) for field in SETTINGS.__struct_fields__} | {"admin_addr": (address,)}
        )
        with trio.fail_after(5), pytest.raises(PlatformError, match=f"cannot listen on {address}"):
            await node.run(settings, logs, loop=loop)


def test_the_supervisors_log_may_be_lost_but_never_complains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        def write(self, text: str) -> int:
            raise OSError("no space left")

        def flush(self) -> None: ...

    monkeypatch.setattr(sys, "stdout", Full())
    with node._plain_logs(Settings()):
        logging.getLogger("ztunnel.supervisor").info("a line")
    assert capsys.readouterr().err == ""
