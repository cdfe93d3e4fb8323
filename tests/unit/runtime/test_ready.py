import logging

import trio

from ztunnel.runtime.ready import Ready


async def test_ready_is_no_guards_left():
    ready = Ready()
    assert ready.is_ready
    proxy, state = ready.guard("proxy"), ready.guard("state manager")
    assert ready.pending == ("proxy", "state manager")
    proxy.release()
    assert not ready.is_ready
    state.release()
    assert ready.is_ready
    assert ready.pending == ()


async def test_a_name_is_pending_until_all_of_its_guards_are_released():
    ready = Ready()
    first, second = ready.guard("pods"), ready.guard("pods")
    first.release()
    first.release()
    assert ready.pending == ("pods",)
    second.release()
    assert ready.is_ready


async def test_waiting_sees_readiness_that_flips_back(autojump_clock):
    ready = Ready()
    guard = ready.guard("cni")
    times = []

    async def wait():
        await ready.wait_ready()
        times.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        start = trio.current_time()
        await trio.sleep(1)
        guard.release()
        again = ready.guard("cni")
        await trio.sleep(1)
        assert times == []
        again.release()
    assert times == [start + 2]


async def test_the_log_tells_names_and_durations(autojump_clock, caplog):
    caplog.set_level(logging.INFO, "ztunnel.runtime.ready")
    ready = Ready()
    with ready.guard("state"):
        proxy = ready.guard("proxy")
        await trio.sleep(1.5)
    await trio.sleep(0.5)
    proxy.release()
    assert [record.getMessage() for record in caplog.records] == [
        "no longer waiting for state after 1.500 s; still for proxy",
        "no longer waiting for proxy after 2.000 s; for nothing more, after 2.000 s in all",
    ]
