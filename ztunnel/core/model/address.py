"""IP addresses, and the names that stand for them, as the mesh writes them.

Addresses are canonical strings (IPv4-mapped IPv6 is IPv4, IPv6 is compressed lower case), because that is what
the socket calls give and take; a lookup is then one dict access with no object built.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from sys import intern
from typing import NamedTuple

MAX_AUTHORITY = 300
"""Characters: a host name of 253, a port, and room for odd forms."""
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?")
LOOPBACKS = ("127.0.0.1", "::1")


class Address(NamedTuple):
    """An IP address and a port; usable as it is in `socket.connect`."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return self.ip == "::1" or self.ip.startswith("127.")


class HostPort(NamedTuple):
    """A host name, lower case, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class NetworkAddress(NamedTuple):
    """An IP address in a named network; written `network/ip`, the empty network as `/ip`."""

    network: str
    ip: str

    def __str__(self) -> str:
        return f"{self.network}/{self.ip}"


class NamespacedHostname(NamedTuple):
    """A host name in a namespace; written `namespace/hostname`. The key of a service."""

    namespace: str
    hostname: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.hostname}"


def canonical_ip(text: str) -> str:
    """The canonical form of an IP address.

    Raises ValueError when `text` is no IP address.
    """
    if text.startswith("::ffff:") and "." in text:
        text = text[7:]
    parsed = ip_address(text)
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        if parsed.scope_id is not None:
            return str(IPv6Address(parsed.packed))
    return str(parsed)


def from_sockaddr(sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    """The Address of a socket call's answer; v4-mapped and scoped addresses are made canonical.

    Connections of one host share its text.
    """
    host = sockaddr[0]
    if ":" in host and ("." in host or "%" in host):
        host = canonical_ip(host)
    return Address(intern(host), sockaddr[1])


def parse_address(text: str) -> Address:
    """`ip:port` or `[v6]:port` to an Address.

    Raises ValueError when the text is of another form.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(f"{text!r}: brackets belong around an IPv6 address")
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address is written [address]:port")
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"{text!r} is not ip:port")
    return Address(canonical_ip(host), int(port))


def parse_authority(text: str) -> Address | HostPort:
    """`ip:port`, `[v6]:port` or `host:port`, the port from 1 to 65535 (RFC 9110 section 9.3.6).

    Raises ValueError when the text is of another form.
    """
    if len(text) > MAX_AUTHORITY:
        raise ValueError(f"an authority of {len(text)} characters")
    host, _, port = text.rpartition(":")
    if not host or not 1 <= len(port) <= 5 or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"authority {text[:100]!r} is not host:port")
    if host[0] == "[" or host.replace(".", "").isdigit():
        if "%" in host:
            raise ValueError(f"authority {text[:100]!r} has a scope, which means nothing here")
        try:
            return parse_address(text)
        except ValueError:
            raise ValueError(f"authority {text[:100]!r} holds no valid IP address") from None
    host = host.lower()
    if not _HOST.fullmatch(host):
        raise ValueError(f"authority {text[:100]!r} holds no valid host name")
    return HostPort(host, int(port))
