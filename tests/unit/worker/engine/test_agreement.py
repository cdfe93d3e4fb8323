"""SETTINGS and PING: what is answered, now and after the h2 connection was let go of."""

from __future__ import annotations

import struct
import weakref

import pytest

from ztunnel.core.wire import frames
from ztunnel.worker.engine.agreement import Agreement, Code, Settings
from ztunnel.worker.engine.parser import Violation

SETTINGS_ACK = frames.frame(frames.SETTINGS, frames.ACK, 0)


def settings(code: Code, value: int) -> bytes:
    return frames.frame(frames.SETTINGS, 0, 0, struct.pack("!HI", code, value))


def agreed(*, client: bool) -> Agreement:
    """Both ends know each other's SETTINGS."""
    agreement = Agreement(Settings(), client=client)
    agreement.begin()
    if not client:
        agreement.preface_received()
    assert heard(agreement, settings(Code.INITIAL_WINDOW_SIZE, 70_000)) == (
        [{Code.INITIAL_WINDOW_SIZE: 70_000}],
        SETTINGS_ACK,
    )
    assert heard(agreement, SETTINGS_ACK) == ([], b"")
    return agreement


def heard(agreement: Agreement, frame: bytes) -> tuple[list[dict[Code, int]], bytes]:
    return list(agreement.receive(frame)), agreement.answer()


def test_the_h2_connection_is_gone_once_the_ends_agree() -> None:
    agreement = Agreement(Settings(), client=True)
    agreement.begin()
    connection = weakref.ref(agreement._h2)
    assert connection() is not None
    heard(agreement, settings(Code.INITIAL_WINDOW_SIZE, 70_000))
    assert connection() is None


@pytest.mark.parametrize("client", [True, False])
def test_settings_that_come_later_are_read_and_acknowledged(client: bool) -> None:
    agreement = agreed(client=client)
    for value in (80_000, 90_000):
        changed = [{Code.INITIAL_WINDOW_SIZE: value}]
        assert heard(agreement, settings(Code.INITIAL_WINDOW_SIZE, value)) == (changed, SETTINGS_ACK)


@pytest.mark.parametrize("client", [True, False])
def test_settings_that_come_later_may_be_wrong(client: bool) -> None:
    with pytest.raises(Violation, match="invalid value"):
        heard(agreed(client=client), settings(Code.INITIAL_WINDOW_SIZE, 2**31))


@pytest.mark.parametrize("flags", [0, 0x80])
def test_a_ping_is_answered_with_its_own_bytes(flags: int) -> None:
    ping = frames.frame(frames.PING, flags, 0, b"12345678")
    assert heard(agreed(client=True), ping) == ([], frames.frame(frames.PING, frames.ACK, 0, b"12345678"))


def test_the_answer_to_a_ping_is_not_answered() -> None:
    assert heard(agreed(client=True), frames.frame(frames.PING, frames.ACK, 0, b"12345678")) == ([], b"")


@pytest.mark.parametrize(
    "frame",
    [
        frames.frame(frames.PING, 0, 0, b"1234567"),
        frames.frame(frames.PING, 0, 1, b"12345678"),
        frames.frame(frames.SETTINGS, frames.ACK, 0, bytes(6)),
        frames.frame(frames.SETTINGS, 0, 0, bytes(5)),
        frames.frame(frames.SETTINGS, 0, 1),
    ],
    ids=["short ping", "ping of a stream", "settings in an acknowledgement", "half a setting", "settings of a stream"],
)
def test_a_broken_frame_is_a_violation(frame: bytes) -> None:
    with pytest.raises(Violation):
        heard(agreed(client=False), frame)
