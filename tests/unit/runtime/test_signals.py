import os
import signal

import trio

from ztunnel.runtime.drain import Drain
from ztunnel.runtime.signals import follow, stop_on_signals


async def test_the_first_signal_drains_and_the_second_ends_at_once():
    drain = Drain()
    told = []
    send, receive = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, receive, drain, 7, told.append)
        await send.send(signal.SIGTERM)
        await drain.wait_triggered()
        assert drain.why == "SIGTERM"
        assert not drain.is_forced
        await send.send(signal.SIGINT)
        await drain.wait_forced()
    assert told == [
        "SIGTERM: stopping, open work has 7 s; a second signal ends it at once",
        "SIGINT again: ending at once",
    ]


async def test_a_signal_after_another_reason_to_drain_ends_at_once():
    drain = Drain()
    drain.trigger("quitquitquit", 60)
    send, receive = trio.open_memory_channel(1)
    await send.send(signal.SIGTERM)
    await follow(receive, drain, 5, lambda line: None)
    assert drain.is_forced
    assert drain.why == "quitquitquit"


async def test_real_signals_are_caught():
    drain = Drain()
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signals, drain, 5)
        os.kill(os.getpid(), signal.SIGTERM)
        await drain.wait_triggered()
        os.kill(os.getpid(), signal.SIGTERM)
        await drain.wait_forced()
