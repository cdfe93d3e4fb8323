"""Any header block gives None or what a full HPACK decoder reads; headers that are written are read again.

python fuzz/fuzz_frames.py [libFuzzer options] [corpus directory]      needs the package atheris
"""

from __future__ import annotations

import sys

import hpack

from ztunnel.core.wire import frames


def fuzz_one_input(data: bytes) -> None:
    plain = frames.decode_plain(data)
    if plain is not None and len(data) < 16_384:
        assert plain == [(bytes(name), bytes(value)) for name, value in hpack.Decoder().decode(data, raw=True)]
    headers = [
        (name.decode("latin-1") or "x", value.decode("latin-1"))
        for name, _, value in (line.partition(b"=") for line in data.split(b"\n"))
    ]
    block = frames.encode_headers(headers)
    again = frames.decode_plain(block)
    if again is not None:
        assert again == [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    if len(data) >= frames.HEADER_SIZE:
        high, low, kind, flags, stream = frames.unpack_header(data, 0)
        packed = bytearray(frames.HEADER_SIZE)
        frames.pack_header(packed, 0, high, low, kind, flags, stream)
        assert bytes(packed) == data[: frames.HEADER_SIZE]


def main() -> None:
    import atheris

    atheris.Setup(sys.argv, fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
