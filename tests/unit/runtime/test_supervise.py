import logging

import pytest
import trio

from ztunnel.core.errors import PlatformError
from ztunnel.runtime.supervise import causes, open_supervisor


async def fail(error):
    raise error


async def nested_fail(error):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(fail, error)


async def test_a_crash_takes_all_down_and_arrives_unwrapped(caplog):
    error = KeyError("bug")

    async def agent():
        async with open_supervisor() as tasks:
            tasks.spawn("healthy", trio.sleep_forever)
            tasks.spawn("pods", nested_fail, error)

    with pytest.raises(KeyError) as raised:
        await agent()
    assert raised.value is error
    [record] = caplog.records
    assert record.levelno == logging.CRITICAL
    assert record.getMessage() == "pods crashed: KeyError: 'bug'"
    assert record.exc_info[1] is error


async def test_an_expected_failure_is_one_line_without_traceback(caplog):
    with pytest.raises(PlatformError):
        async with open_supervisor() as tasks:
            tasks.spawn("admin", fail, PlatformError("port 15000 is taken"))
    [record] = caplog.records
    assert record.getMessage() == "admin ended: port 15000 is taken"
    assert not record.exc_info


async def test_a_failure_that_travels_through_two_tasks_is_logged_once(caplog):
    async def parent(tasks):
        await tasks.start("child", child)

    async def child(task_status):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        async with open_supervisor() as tasks:
            tasks.spawn("parent", parent, tasks)
    assert [record.getMessage() for record in caplog.records] == ["child crashed: ValueError: no"]


async def test_start_gives_the_value_and_the_task_lives_on():
    async def serve(port, task_status):
        task_status.started(port + 1)
        await trio.sleep_forever()

    async with open_supervisor() as tasks:
        assert await tasks.start("admin", serve, 41) == 42
        assert tasks.alive == ("admin",)
        tasks.stop()
    assert tasks.alive == ()


async def test_a_task_may_end_by_itself(caplog):
    async def short():
        await trio.lowlevel.checkpoint()

    async with open_supervisor() as tasks:
        tasks.spawn("short", short)
    assert caplog.records == []


async def test_cancellation_from_outside_is_no_failure(caplog):
    with trio.CancelScope() as scope:
        async with open_supervisor() as tasks:
            tasks.spawn("a", trio.sleep_forever)
            tasks.spawn("b", nested_fail_never)
            scope.cancel()
    assert scope.cancelled_caught
    assert caplog.records == []


async def nested_fail_never():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(trio.sleep_forever)


async def test_two_failures_at_once_are_both_logged(caplog):
    both = ExceptionGroup("both", [OSError("one"), ExceptionGroup("deep", [ValueError("two")])])
    with pytest.raises(OSError, match="one"):
        async with open_supervisor() as tasks:
            tasks.spawn("pair", fail, both)
    assert [record.getMessage() for record in caplog.records] == [
        "pair crashed: OSError: one",
        "pair crashed: ValueError: two",
    ]


def test_causes_of_a_plain_error_is_itself():
    error = OSError("x")
    assert list(causes(error)) == [error]
