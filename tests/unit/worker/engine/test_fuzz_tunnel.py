"""The fuzz targets of the engine, run over seeds and deterministic noise."""

from __future__ import annotations

import random

import pytest
from engine_pair import CONNECT

from fuzz.fuzz_frames import fuzz_one_input as fuzz_frames
from fuzz.fuzz_tunnel import BY_BYTE, CLIENT, FRAMED, GREETED, as_frames
from fuzz.fuzz_tunnel import fuzz_one_input as fuzz_tunnel
from ztunnel.core.wire import frames

CONVERSATION = (
    frames.frame(frames.HEADERS, frames.END_HEADERS, 5, CONNECT)
    + frames.frame(frames.DATA, 0, 1, b"hello")
    + frames.frame(frames.DATA, frames.PADDED, 1, b"\x02hello\0\0")
    + frames.window_update(0, 100)
    + frames.window_update(3, 100)
    + frames.ping(b"12345678")
    + frames.frame(frames.SETTINGS, 0, 0, b"\0\4\0\0\1\0")
    + frames.frame(frames.HEADERS, 0, 7, CONNECT[:5])
    + frames.frame(frames.CONTINUATION, frames.END_HEADERS, 7, CONNECT[5:])
    + frames.rst_stream(3, frames.CANCEL)
    + frames.end_stream(1)
    + frames.goaway(7, 0, "bye")
)
MODES = [role | cut | GREETED for role in (0, CLIENT) for cut in (0, BY_BYTE)]


@pytest.mark.parametrize("mode", [*MODES, 0, BY_BYTE, CLIENT])
def test_changed_conversations_end_a_tunnel_by_name_or_not_at_all(mode: int) -> None:
    chance = random.Random(mode)
    start = b"" if mode & GREETED else frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0)
    for _ in range(60):
        data = bytearray(start + CONVERSATION)
        for _ in range(chance.choice([0, 1, 1, 3, 10])):
            at = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(20)]
                    data += b"\0"
                case _:
                    data[at:at] = chance.randbytes(chance.randrange(20))
        fuzz_tunnel(bytes([mode]) + bytes(data))


@pytest.mark.parametrize("mode", [mode | FRAMED for mode in MODES])
def test_random_frames_end_a_tunnel_by_name_or_not_at_all(mode: int) -> None:
    chance = random.Random(mode)
    for _ in range(60):
        fuzz_tunnel(bytes([mode]) + chance.randbytes(chance.randrange(400)))


@pytest.mark.parametrize("mode", MODES)
def test_noise_ends_a_tunnel_by_name_or_not_at_all(mode: int) -> None:
    chance = random.Random(mode)
    for _ in range(40):
        fuzz_tunnel(bytes([mode]) + chance.randbytes(chance.randrange(300)))


def test_the_frames_of_the_fuzzer_are_frames() -> None:
    assert as_frames(b"\x10\x01\x03abc\x16\0\x01x") == frames.frame(5, 1, 1, b"abc") + frames.frame(0, 0, 1, b"x")


def test_header_blocks_are_read_like_a_full_decoder_reads_them() -> None:
    chance = random.Random(0)
    blocks = [CONNECT, frames.RESPONSE_200, b"", CONNECT * 3, CONNECT[:-1]]
    for _ in range(1000):
        block = bytearray(chance.choice(blocks) + chance.randbytes(chance.randrange(4)))
        if block:
            block[chance.randrange(len(block))] = chance.randrange(256)
        fuzz_frames(bytes(block))
