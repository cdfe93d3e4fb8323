import trio
import trio.testing

from ztunnel.runtime.drain import Drain


async def test_work_that_finishes_in_time_ends_the_drain_early(autojump_clock):
    drain = Drain()
    start = trio.current_time()

    async def work():
        with drain.working("listeners"):
            await drain.wait_triggered()
            assert drain.is_draining
            await trio.sleep(2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        drain.trigger("SIGTERM", 5)
        assert await drain.wait_done() is True
    assert trio.current_time() == start + 2
    assert not drain.is_forced
    assert drain.why == "SIGTERM"


async def test_the_deadline_forces_what_is_left(autojump_clock):
    drain = Drain()
    start = trio.current_time()

    async def work():
        with drain.working("connections"):
            await drain.wait_forced()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        drain.trigger("quit", 5)
        assert drain.seconds_left() == 5
        await trio.sleep(1)
        assert drain.seconds_left() == 4
        assert await drain.wait_done() is False
        assert trio.current_time() == start + 5
        assert drain.unfinished == ("connections",)
        assert drain.seconds_left() == 0
    assert drain.unfinished == ()


async def test_forcing_ends_the_wait_at_once(autojump_clock):
    drain = Drain()
    start = trio.current_time()
    drain.trigger("SIGTERM", 60)
    with drain.working("connections"):
        async with trio.open_nursery() as nursery:

            async def second_signal():
                await trio.sleep(1)
                drain.force()

            nursery.start_soon(second_signal)
            assert await drain.wait_done() is False
    assert trio.current_time() == start + 1


async def test_forcing_without_a_trigger_is_both(autojump_clock):
    drain = Drain()
    with drain.working("x"):
        drain.force()
        assert await drain.wait_done() is False
    assert drain.why == "told to end at once"


async def test_a_second_trigger_changes_nothing(autojump_clock):
    drain = Drain()
    drain.trigger("first", 1)
    drain.trigger("second", 100)
    assert (drain.why, drain.seconds_left()) == ("first", 1)


async def test_nothing_to_finish_is_done_at_once(autojump_clock):
    drain = Drain()
    start = trio.current_time()
    drain.trigger("quit", 5)
    assert await drain.wait_done() is True
    assert trio.current_time() == start


async def test_work_taken_while_draining_counts(autojump_clock):
    drain = Drain()
    start = trio.current_time()

    async def first():
        with drain.working("first"):
            await trio.sleep(1)
            with drain.working("second"):
                await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        drain.trigger("quit", 5)
        assert await drain.wait_done() is True
    assert trio.current_time() == start + 2
