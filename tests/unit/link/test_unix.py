"""What only the Unix link does: descriptors, parts, slow readers, and ends that are not ours."""

import fcntl
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from ztunnel.core.model.capture import CaptureMode
from ztunnel.link import unix
from ztunnel.link.channel import Channel, ChannelClosed, VersionMismatch
from ztunnel.link.messages import VERSION, Down, Drain, PodAdded, PodFailed, StateSynced, Up

HELLO = b"\x00" + bytes(4) + str(VERSION).encode()


def added(uid: str, fd: int | None) -> PodAdded:
    return PodAdded(
        uid=uid, name="n", namespace="d", service_account="s", capture=CaptureMode.REDIRECT, netns_fd=fd, ips=("::1",)
    )


def new_file(text: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, text)
    return fd


@pytest.fixture
async def link() -> AsyncIterator[tuple[Channel[Down, Up], Channel[Up, Down]]]:
    left, right = unix.socket_pair()
    control, worker = unix.control_end(left), unix.worker_end(right)
    yield control, worker
    control.close()
    worker.close()


@pytest.fixture
async def raw() -> AsyncIterator[tuple[Channel[Down, Up], socket.socket]]:
    """A control end, and a bare socket as its other half."""
    left, right = unix.socket_pair()
    with right:
        right.settimeout(5)
        control = unix.control_end(left)
        assert right.recv(100) == HELLO
        yield control, right
        control.close()


Pair = tuple[Channel[Down, Up], Channel[Up, Down]]
Raw = tuple[Channel[Down, Up], socket.socket]


async def test_a_descriptor_is_handed_over(link: Pair) -> None:
    control, worker = link
    fd = new_file(b"namespace")
    control.send(added("a", fd))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    got = await worker.receive()
    assert isinstance(got, PodAdded)
    assert got.netns_fd is not None
    assert os.pread(got.netns_fd, 100, 0) == b"namespace"
    assert fcntl.fcntl(got.netns_fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(got.netns_fd)


async def test_who_waits_otherwise_takes_what_is_there(link: Pair) -> None:
    control, worker = link
    assert isinstance(worker, unix.UnixChannel)
    assert worker.receive_nowait() is None  # its greeting is no message
    control.send(StateSynced())
    control.close()
    assert worker.receive_nowait() == StateSynced()
    with pytest.raises(ChannelClosed):
        worker.receive_nowait()


async def test_every_descriptor_stays_with_its_message(link: Pair) -> None:
    control, worker = link
    for number in range(20):
        control.send(added(str(number), new_file(str(number).encode()) if number % 3 else None))
        control.send(StateSynced())
    for number in range(20):
        got = await worker.receive()
        assert isinstance(got, PodAdded)
        assert got.uid == str(number)
        assert (got.netns_fd is None) == (number % 3 == 0)
        if got.netns_fd is not None:
            assert os.pread(got.netns_fd, 100, 0) == got.uid.encode()
            os.close(got.netns_fd)
        assert await worker.receive() == StateSynced()


async def test_a_slow_reader_blocks_nobody_and_gets_everything_in_order(link: Pair) -> None:
    control, worker = link
    for number in range(2000):
        worker.send(PodFailed(str(number), "x" * 1000))
    seen = [await control.receive() for _ in range(2000)]
    assert [message.uid for message in seen if isinstance(message, PodFailed)] == [str(n) for n in range(2000)]


async def test_a_message_of_the_other_direction_is_refused(link: Pair) -> None:
    control, worker = link
    control.send(PodFailed("u", "x" * 100_000))  # type: ignore[arg-type]
    with pytest.raises(ChannelClosed, match="what the other half sent"):
        await worker.receive()


async def test_descriptors_that_were_never_sent_are_closed_with_the_link() -> None:
    """The leak check of every test is what proves it."""
    left, right = unix.socket_pair()
    control = unix.control_end(left)
    for number in range(1000):
        control.send(added(str(number) * 500, new_file(b"")))
    right.close()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(ChannelClosed):
        control.send(added("late", new_file(b"")))
    control.close()


async def test_descriptors_that_were_sent_and_not_received_are_closed_too(link: Pair) -> None:
    control, worker = link
    control.send(added("a", new_file(b"")))
    worker.close()
    with pytest.raises(ChannelClosed):
        control.send(added("b", new_file(b"")))


async def test_a_closed_end_goes_on_sending_to_a_slow_reader_for_a_while() -> None:
    left, right = unix.socket_pair()
    control, worker = unix.control_end(left), unix.worker_end(right)
    for number in range(100):
        worker.send(PodFailed(str(number), "x" * 10_000))
    worker.close()
    await trio.testing.wait_all_tasks_blocked()
    assert len([message async for message in control]) == 100
    control.close()


async def test_but_not_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    left, right = unix.socket_pair()
    worker = unix.worker_end(right)
    for number in range(100):
        worker.send(PodFailed(str(number), "x" * 10_000))
    began = trio.current_time()
    worker.close()
    await trio.sleep(unix.LINGER + 1)
    assert trio.current_time() - began < unix.LINGER + 2
    assert right.fileno() == -1
    left.close()


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        b"\x01",
        b"\x02" + bytes(4) + b"\xc1",
        b"\x02" + bytes(4),
        b"\x07" + bytes(4) + b"what",
        HELLO,
        b"\x02" + bytes(70_000),
    ],
    ids=["short", "no head", "no msgpack", "no message", "unknown kind", "second hello", "too large"],
)
async def test_a_packet_that_is_no_message_ends_the_link_and_the_log_says_why(
    raw: Raw, packet: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    control, other = raw
    other.send(HELLO)
    other.send(packet)
    with caplog.at_level(logging.ERROR), pytest.raises(ChannelClosed, match="what the other half sent"):
        await control.receive()
    assert "what the other half sent" in caplog.text
    with pytest.raises(ChannelClosed):
        control.send(Drain(1))


async def test_descriptors_of_such_a_packet_are_closed(raw: Raw) -> None:
    control, other = raw
    other.send(HELLO)
    fds = [new_file(b"") for _ in range(6)]
    socket.send_fds(other, [b"\x02" + bytes(4) + b"\x80"], fds)
    for fd in fds:
        os.close(fd)
    with pytest.raises(ChannelClosed):
        await control.receive()


async def test_another_version_is_refused(raw: Raw) -> None:
    control, other = raw
    other.send(b"\x00" + bytes(4) + b"99")
    with pytest.raises(VersionMismatch, match=f"version '99', this process of {VERSION}"):
        async for _ in control:
            pass


async def test_a_link_begins_with_the_version(raw: Raw) -> None:
    control, other = raw
    other.send(b"\x02" + bytes(4) + b"\x80")
    with pytest.raises(ChannelClosed, match="did not begin with its version"):
        await control.receive()


async def test_a_message_that_is_cut_off_is_none(raw: Raw) -> None:
    control, other = raw
    other.send(HELLO)
    other.send(struct.pack("!BI", 1, 0) + b"half")
    other.close()
    with pytest.raises(ChannelClosed, match="is gone"):
        await control.receive()


async def test_a_link_to_nobody_says_so() -> None:
    left, right = unix.socket_pair()
    right.close()
    control = unix.control_end(left)
    with pytest.raises(ChannelClosed):
        await control.receive()
    control.close()
