"""Any header list gives a CONNECT request or WireError, and what was read can be written and read again.

python fuzz/fuzz_connect.py [libFuzzer options] [corpus directory]      needs the package atheris
"""

from __future__ import annotations

import sys
from contextlib import suppress

from ztunnel.core.model.address import parse_authority
from ztunnel.core.wire.connect import (
    ConnectRequest,
    WireError,
    check_request,
    parse_baggage,
    parse_forwarded,
    parse_traceparent,
    request_headers,
    traceparent,
)

_SHORT = {
    b"m": (b":method", b"CONNECT"),
    b"a": (b":authority", b""),
    b"s": (b":scheme", b""),
    b"p": (b":path", b""),
    b"b": (b"baggage", b""),
    b"f": (b"forwarded", b""),
    b"t": (b"traceparent", b""),
    b"n": (b"x-forwarded-network", b""),
}


def headers_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Lines to headers: `m` is the right method, `a10.0.0.1:80` an authority, `name=value` anything."""
    headers = []
    for line in data.split(b"\n"):
        name, usual = _SHORT.get(line[:1], (b"", b""))
        if name:
            headers.append((name, line[1:] or usual))
        else:
            name, _, value = line.partition(b"=")
            headers.append((name, value))
    return headers


def fuzz_one_input(data: bytes) -> None:
    try:
        request = check_request(headers_of(data))
    except WireError:
        pass
    else:
        _check(request)
    text = data.decode("latin-1")
    for parse in (parse_baggage, parse_forwarded, parse_traceparent):
        with suppress(WireError):
            parse(text)
    with suppress(ValueError):
        parse_authority(text)


def _check(request: ConnectRequest) -> None:
    assert parse_authority(request.authority) == request.target
    assert 0 < request.target.port < 65536
    shown = [*request.baggage, request.forwarded_host, request.network, request.authority]
    assert all(text.isprintable() for text in shown)
    trace = traceparent(*request.trace) if request.trace else ""
    client = request.forwarded.client
    assert client is None or 0 <= client.port < 65536
    written = request_headers(request.target, traceparent=trace, network=request.network)
    again = check_request([(name.encode(), value.encode()) for name, value in written])
    assert (again.target, again.trace, again.network) == (request.target, request.trace, request.network)


def main() -> None:
    import atheris

    atheris.Setup(sys.argv, fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
