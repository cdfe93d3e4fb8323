"""How values are written in the environment: each form turns text into a value, or says in one sentence why not.

Pure; must not know which variables there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any, NamedTuple

from ztunnel.config.settings import WorkloadInfo
from ztunnel.core.model.address import canonical_ip

UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
LONGEST = 100 * 365 * 86400.0
"""Seconds: a century, which every clock and certificate can say."""
LEVELS = ("off", "error", "warn", "info", "debug", "trace")
_TRUST_DOMAIN = re.compile(r"[A-Za-z0-9._-]{1,255}")
_PIECE = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d)", re.ASCII)


class Form(NamedTuple):
    """`parse` raises ValueError with a sentence that fits behind `NAME='text': `."""

    name: str
    parse: Callable[[str], Any]


class BindText(NamedTuple):
    """A listen address before the defaults and IPV6_ENABLED are known; an empty host keeps the default one."""

    host: str
    port: int


def duration_seconds(text: str) -> float:
    """`10s`, `5m`, `1h30m`, `250ms`, or a bare number of seconds."""
    plain = f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else text
    pieces = _PIECE.findall(plain)
    if not pieces or "".join(number + unit for number, unit in pieces) != plain:
        raise ValueError("is not a duration such as 10s, 5m or 1h30m")
    seconds = sum(float(number) * UNITS[unit] for number, unit in pieces)
    if seconds > LONGEST:
        raise ValueError("is longer than a century")
    return seconds


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be exactly true or false")
    return text == "true"


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("must be on or off")
    return text == "on"


def _limit(text: str) -> float:
    seconds = duration_seconds(text)
    if seconds <= 0:
        raise ValueError("must be longer than nothing")
    return seconds


def period(low: int, high: int) -> Form:
    """A duration in a closed range of seconds."""

    def parse(text: str) -> float:
        seconds = duration_seconds(text)
        if not low <= seconds <= high:
            raise ValueError(f"must be between {low}s and {high}s")
        return seconds

    return Form("duration", parse)


def integer(low: int, high: int) -> Form:
    """A decimal (or 0x) number in a closed range."""

    def parse(text: str) -> int:
        try:
            value = int(text, 0) if text[:2].lower() == "0x" else int(text)
        except ValueError:
            raise ValueError("is not a whole number") from None
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return Form("number", parse)


def size(low: int, high: int) -> Form:
    return Form("bytes", integer(low, high).parse)


def choice(*values: str) -> Form:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"must be one of {', '.join(values)}")
        return text

    return Form("\\|".join(f"`{value}`" for value in values), parse)


def _items(text: str) -> list[str]:
    return [item for item in (part.strip() for part in text.split(",")) if item]


def _ports(text: str) -> tuple[int, ...]:
    parse = integer(1, 65535).parse
    try:
        return tuple(dict.fromkeys(parse(item) for item in _items(text)))
    except ValueError as error:
        raise ValueError(f"must be ports with commas between: one {error}") from None


def canonical_cidr(text: str) -> str:
    """`10.1.2.3/8` to `10.0.0.0/8`; a bare address is a prefix of its full length. Raises ValueError."""
    return str(ip_network(text, strict=False))


def _cidrs(text: str) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(canonical_cidr(item) for item in _items(text)))
    except ValueError as error:
        raise ValueError(f"must be CIDRs with commas between: {error}") from None


def _workload_info(text: str) -> WorkloadInfo:
    parts = text.split("/")
    if len(parts) != 3 or not all(parts):
        raise ValueError("must be namespace/name/serviceaccount")
    return WorkloadInfo(*parts)


def _bind(text: str) -> BindText:
    host, _, port = text.rpartition(":")
    number = integer(1, 65535).parse
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        if host in ("", "*", "localhost"):
            return BindText(host, number(port))
        return BindText(canonical_ip(host), number(port))
    except ValueError:
        raise ValueError("must be a port, localhost:port, *:port, ip:port or [ip]:port") from None


def _log_filter(text: str) -> str:
    for item in _items(text):
        level = item.rpartition("=")[2]
        if level.lower() not in LEVELS:
            raise ValueError(f"{item!r} has no level: write level or target=level, levels are {', '.join(LEVELS)}")
    return text


def _trust_domain(text: str) -> str:
    if not _TRUST_DOMAIN.fullmatch(text):
        raise ValueError("is no trust domain: that is at most 255 letters, digits, '.', '_' and '-'")
    return text


def _ip(text: str) -> str:
    try:
        return canonical_ip(text)
    except ValueError:
        raise ValueError("is not an IP address") from None


def with_scheme(text: str) -> str:
    """A control plane's address; without a scheme it is https."""
    return text if not text or "://" in text else f"https://{text}"


TEXT = Form("text", str)
PATH = Form("path", str)
URL = Form("address", with_scheme)
BOOLEAN = Form("`true`\\|`false`", _boolean)
SWITCH = Form("`on`\\|`off`", _switch)
DURATION = Form("duration", duration_seconds)
LIMIT = Form("duration", _limit)
PORTS = Form("ports", _ports)
CIDRS = Form("CIDRs", _cidrs)
BIND = Form("listen address", _bind)
WORKLOAD = Form("namespace/name/serviceaccount", _workload_info)
LOG_FILTER = Form("levels", _log_filter)
TRUST_DOMAIN = Form("text", _trust_domain)
IP = Form("IP address", _ip)
