"""Only addresses and localhost names are local; what merely begins or ends like one is not."""

from __future__ import annotations

import pytest

from ztunnel.control.admin.guard import is_local_host


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:15000",
        "localhost.",
        "a.localhost:1",
        "127.0.0.1",
        "10.1.2.3:80",
        "[::1]",
        "[::1]:15000",
    ],
)
def test_addresses_and_localhost_names_are_local(host: str) -> None:
    assert is_local_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":",
        ":15000",
        "example.com",
        "localhost.example.com",
        "notlocalhost",
        "127.0.0.1.example.com",
        "[localhost",
        "::1",
        "1",
    ],
)
def test_everything_else_is_not(host: str) -> None:
    assert not is_local_host(host)
