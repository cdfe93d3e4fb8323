"""A leash hands links to a child, tells the supervisor that it serves, and ends with either of them."""

import socket
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from ztunnel.link.leash import hand, handed, heard_up, tell_up
from ztunnel.link.unix import socket_pair

Leash = tuple[socket.socket, socket.socket]


@pytest.fixture
def leash() -> Iterator[Leash]:
    above, below = socket_pair()
    with above, below:
        yield above, below


async def test_links_arrive_with_their_numbers_until_the_leash_ends(leash: Leash) -> None:
    above, below = leash
    here, there = socket_pair()
    with here, there:
        assert hand(above, 3, there)
        assert hand(above, 7, there)
    above.close()
    got = [each async for each in handed(below)]
    assert [each.number for each in got] == [3, 7]
    for each in got:
        assert not each.sock.get_inheritable()
        each.sock.close()


async def test_what_is_handed_is_the_very_socket(leash: Leash) -> None:
    above, below = leash
    here, there = socket_pair()
    with here:
        with there:
            hand(above, 0, there)
        async with aclosing(handed(below)) as links:
            given = await anext(links)
        with given.sock:
            given.sock.send(b"hello")
            assert here.recv(10) == b"hello"


def test_a_child_that_is_gone_or_asleep_holds_up_nobody(leash: Leash) -> None:
    above, below = leash
    here, there = socket_pair()
    with here, there:
        sent = 0
        while hand(above, sent, there):
            sent += 1
            assert sent < 100_000
        below.close()
        assert not hand(above, 0, there)


def test_the_supervisor_hears_that_a_child_serves(leash: Leash) -> None:
    above, below = leash
    assert not heard_up(above)
    tell_up(below)
    assert heard_up(above)
    below.close()
    assert not heard_up(above)


def test_a_child_whose_supervisor_is_gone_speaks_to_nobody(leash: Leash) -> None:
    above, below = leash
    above.close()
    tell_up(below)
