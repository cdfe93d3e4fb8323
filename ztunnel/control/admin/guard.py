"""Who may speak to the admin port: tools on this machine, not web pages that a browser on it was led to.

A page can make a browser send requests to 127.0.0.1, directly or by a name of its own that it rebinds to loopback.
So the Host must be an IP address or a localhost name (rebinding needs a name of its own), and an Origin, which only
browsers send, must be one of those too.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from ztunnel.control.admin.asgi import Request, Response, text

REFUSED = "refused: the admin port answers requests addressed to an IP address or localhost, and no web pages\n"


def refuse_strangers(request: Request) -> Response | None:
    """403 for what is refused."""
    return None if _is_local(request) else text(REFUSED, 403)


def _is_local(request: Request) -> bool:
    hosts = request.headers("host")
    if len(hosts) > 1 or any(not is_local_host(host) for host in hosts):
        return False
    return all(is_local_host(_host_of(origin)) for origin in request.headers("origin"))


def is_local_host(host: str) -> bool:
    """Whether `name[:port]`, `v4[:port]` or `[v6][:port]` is an IP address or a localhost name (RFC 6761, 6.3)."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name = host
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    name = name.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
