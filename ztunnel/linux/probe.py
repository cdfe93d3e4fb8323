"""Proves capture: a connection from inside a namespace that must arrive at the agent's outbound listener.

It is made to an address of the documentation range and a port that only the probe uses, and is not marked; the listener
answers it with PROBE_BANNER and closes. Anything else that happens says what is wrong with the capture.

Blocks for at most the timeout: call it from a worker thread.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from ipaddress import ip_interface

import msgspec

from ztunnel.core.errors import PlatformError
from ztunnel.core.model.address import Address
from ztunnel.core.model.capture import PROBE_BANNER, PROBE_PORT
from ztunnel.linux.redirect import tools
from ztunnel.linux.sockets import new_tcp_socket

_NOBODY = {False: "192.0.2.1", True: "2001:db8::1"}
"""RFC 5737 and RFC 3849."""


class ProbeResult(msgspec.Struct, frozen=True):
    captured: bool
    target: Address
    """What the probe tried to reach."""
    why: str
    sent: bool = True
    """False where the namespace has no route for the family, so that there is nothing to capture."""


def probe_capture(netns: int | None, *, ipv6: bool = False, timeout: float = 2.0) -> ProbeResult:
    """Whether a connection from the namespace (None: our own) is captured, and if not, why not.

    `timeout` in seconds is for the whole probe. Raises PlatformError when the namespace cannot be entered.
    """
    target = Address(_NOBODY[ipv6], PROBE_PORT)
    result = _probe(netns, target, timeout)
    if result is not None:
        return result
    for ip in _neighbours(netns, ipv6):
        result = _probe(netns, Address(ip, PROBE_PORT), timeout)
        if result is not None:
            return result
    return ProbeResult(
        False, target, f"the namespace has no {'IPv6' if ipv6 else 'IPv4'} route, so nothing can be sent", sent=False
    )


def _probe(netns: int | None, target: Address, timeout: float) -> ProbeResult | None:
    """None when there is no route to the target."""
    with new_tcp_socket(socket.AF_INET6 if ":" in target.ip else socket.AF_INET, netns) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(target)
        except TimeoutError:
            why = f"no answer in {timeout:g} s: the connection left the namespace, or nobody serves the outbound port"
            return ProbeResult(False, target, why)
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
                return None
            if error.errno == errno.ECONNREFUSED:
                return ProbeResult(
                    False, target, "refused: redirected, but the agent does not listen on the outbound port"
                )
            return ProbeResult(False, target, f"not captured: {error.strerror}")
        return _answer(sock, target)


def _answer(sock: socket.socket, target: Address) -> ProbeResult:
    said = b""
    try:
        while len(said) < len(PROBE_BANNER) and (more := sock.recv(len(PROBE_BANNER))):
            said += more
    except OSError as error:
        return ProbeResult(False, target, f"somebody accepted the probe but did not answer it: {error}")
    if said == PROBE_BANNER:
        return ProbeResult(True, target, "arrived at the outbound listener")
    return ProbeResult(False, target, f"somebody else answered the probe: {said!r}")


def _neighbours(netns: int | None, ipv6: bool) -> Iterator[str]:
    """One address of each subnet the namespace is on: the last, which is the least likely to be a workload's."""
    command = [tools.find("ip", "iproute2"), "-6" if ipv6 else "-4", "-j", "address", "show", "scope", "global", "up"]
    try:
        links = json.loads(tools.run(command, netns=netns) or "[]")
    except ValueError:
        raise PlatformError("`ip -j address` gave no JSON", hint="iproute2 4.15 or newer is needed") from None
    for link in links:
        for entry in filter(None, link.get("addr_info", ())):  # what the filter left out is shown as {}
            own = ip_interface(f"{entry['local']}/{entry['prefixlen']}")
            spare = 1 if own.version == 4 and own.network.prefixlen < 31 else 0  # network and broadcast address
            last, first = own.network[-1 - spare], own.network[spare]
            if first != last:
                yield str(first if last == own.ip else last)
