"""The CONNECT request of HBONE: its authority and the headers that travel with it, built and read.

Reading trusts nobody: any bytes give a value or WireError, sizes are bounded, and what is read holds no control
characters. What decides where bytes go (method, authority) must be right or the request is refused with 400; the
other headers only inform telemetry, so a broken one is ignored as if it were absent.

References: RFC 9110 section 9.3.6 and RFC 9113 section 8.5 (CONNECT), RFC 7239 (Forwarded), W3C Baggage, W3C Trace
Context; key names and order as ztunnel sends them (istio/ztunnel src/proxy/outbound.rs, src/baggage.rs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from ztunnel.core.model.address import MAX_AUTHORITY, Address, HostPort, parse_address, parse_authority
from ztunnel.core.model.workload import Workload
from ztunnel.core.wire.frames import encode_header, encode_headers, literal_size

MAX_BAGGAGE = 8192
"""Characters; what W3C Baggage obliges everybody to pass on."""
MAX_FORWARDED = 2048
"""Characters; ours have less than 400."""
MAX_NETWORK = 253
"""Characters of x-forwarded-network."""

_VISIBLE = re.compile(r"[\x21-\x7e]+(?:[ \t]+[\x21-\x7e]+)*")
"""A field value: visible characters, blanks only between (RFC 9110 section 5.5)."""
_WORD = re.compile(r"[\x21-\x7e]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ESCAPED = re.compile(r"\\(.)")
_PAIR = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s",;]+))\s*(?:[;,]|\Z)""", re.ASCII)
_USUAL_FORWARDED = re.compile(rb"""for="[^"\\\x00-\x20\x7f-\xff]*"(?:;host=([!#$%&'*+.^_`|~0-9A-Za-z-]+))?""")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_BAGGAGE_ESCAPED = re.compile(r"[^\x21\x23\x24\x26-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]")
"""Everything but W3C's baggage-octet, and the percent sign itself."""
_BAGGAGE_KEYS = {
    "k8s.cluster.name": "cluster",
    "k8s.namespace.name": "namespace",
    "service.name": "service",
    "service.version": "revision",
    "cloud.region": "region",
    "cloud.availability_zone": "zone",
}
_WORKLOAD_TYPES = ("deployment", "cronjob", "pod", "job")


class WireError(ValueError):
    """What was received is not a CONNECT request of ours; the text says why. Answered with status 400."""


class Baggage(NamedTuple):
    """What a peer says about its workload; empty where it says nothing. Only the certificate proves anything."""

    cluster: str = ""
    namespace: str = ""
    workload: str = ""
    workload_type: str = ""
    """deployment, cronjob, pod or job."""
    service: str = ""
    revision: str = ""
    region: str = ""
    zone: str = ""


class Forwarded(NamedTuple):
    """For whom a request was made, as far as its Forwarded header says."""

    node: str = ""
    """The client as it was written: an address, or something hidden."""
    host: str = ""
    """Host name of the service that the client addressed, lower case."""

    @property
    def client(self) -> Address | None:
        """The client's address; port 0 when only the IP was told, None when hidden or unknown (RFC 7239 section 6)."""
        for candidate in (self.node, f"{self.node}:0"):
            try:
                return parse_address(candidate)
            except ValueError:
                continue
        return None


class TraceParent(NamedTuple):
    trace_id: int
    parent_id: int


class ConnectRequest(NamedTuple):
    """A CONNECT request that may be obeyed, if policy agrees.

    What only informs is read when it is asked for; each header stands alone, a broken one counts as absent.
    """

    target: Address | HostPort
    informing: Mapping[bytes, bytes] = {}
    """Header values as they came."""

    @property
    def authority(self) -> str:
        """The target in canonical form: `ip:port`, `[v6]:port` or `host:port`."""
        return str(self.target)

    @property
    def forwarded(self) -> Forwarded:
        try:
            return parse_forwarded(_text(self.informing.get(b"forwarded", b""), MAX_FORWARDED))
        except WireError:
            return Forwarded()

    @property
    def forwarded_host(self) -> str:
        """As `forwarded` has it; the form that peers like us send is read at a glance."""
        value = self.informing.get(b"forwarded", b"")
        usual = _USUAL_FORWARDED.fullmatch(value) if len(value) <= MAX_FORWARDED else None
        if usual is None:
            return self.forwarded.host
        host: bytes | None = usual[1]
        return "" if host is None else host.decode("latin-1").lower()

    @property
    def baggage(self) -> Baggage:
        try:
            return parse_baggage(_text(self.informing.get(b"baggage", b""), MAX_BAGGAGE))
        except WireError:
            return Baggage()

    @property
    def trace(self) -> TraceParent | None:
        try:
            return parse_traceparent(_text(self.informing.get(b"traceparent", b""), 55))
        except WireError:
            return None

    @property
    def network(self) -> str:
        """x-forwarded-network: where the request came from; only through a gateway."""
        try:
            return _text(self.informing.get(b"x-forwarded-network", b""), MAX_NETWORK, _WORD)
        except WireError:
            return ""


# ---- reading ----


def check_request(headers: list[tuple[bytes, bytes]]) -> ConnectRequest:
    """The request that a header list makes, in HTTP/2's form (lower-case names, pseudo-headers first).

    Only plain CONNECT: `:scheme` and `:path`, which old HTTP/2 libraries add to it, are ignored; `:protocol`
    (extended CONNECT) is not spoken here. Raises WireError.
    """
    pseudo: dict[bytes, bytes] = {}
    informing: dict[bytes, bytes] = {}
    past_pseudo = False
    for name, value in headers:
        if name in _INFORMING:
            past_pseudo = True
            informing[name] = value if name not in informing else _joined(name, informing[name], value)
        elif name[:1] != b":":
            past_pseudo = True
        elif past_pseudo:
            raise WireError(f"pseudo-header {_shown(name)} after other headers")
        elif name not in _PSEUDO:
            raise WireError(f"pseudo-header {_shown(name)} has no place in a plain CONNECT")
        elif name in pseudo:
            raise WireError(f"more than one {_shown(name)}")
        else:
            pseudo[name] = value
    method = pseudo.get(b":method", b"")
    if method != b"CONNECT":
        raise WireError(f"method {_shown(method)} instead of CONNECT")
    if b":authority" not in pseudo:
        raise WireError("CONNECT without :authority")
    return ConnectRequest(_target(pseudo[b":authority"]), informing)


@lru_cache(maxsize=4096)
def _target(authority: bytes) -> Address | HostPort:
    """Remembered, because the same few targets come again and again. Raises WireError."""
    text = _text(authority, MAX_AUTHORITY)
    try:
        return parse_authority(text)
    except ValueError as error:
        raise WireError(str(error)) from None


def parse_baggage(text: str) -> Baggage:
    """Known keys of a Baggage header; unknown ones and properties are skipped, of equal keys the first counts.

    Raises WireError when the text is too long or a value holds control characters.
    """
    if len(text) > MAX_BAGGAGE:
        raise WireError(f"baggage of {len(text)} characters")
    found: dict[str, str] = {}
    for member in text.split(","):
        key, equals, rest = member.partition("=")
        key = key.strip(" \t")
        field = _BAGGAGE_KEYS.get(key)
        kind = ""
        if field is None:
            kind = key[4:-5] if key.startswith("k8s.") and key.endswith(".name") else ""
            if kind not in _WORKLOAD_TYPES:
                continue
            field = "workload"
        if equals and field not in found:
            found[field] = _unescaped(rest.partition(";")[0].strip(" \t"))
            if kind:
                found["workload_type"] = kind
    return Baggage(**found)


def parse_forwarded(text: str) -> Forwarded:
    """The first element of a Forwarded header: the client nearest to the origin. Raises WireError."""
    if len(text) > MAX_FORWARDED:
        raise WireError(f"forwarded of {len(text)} characters")
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None:
            raise WireError(f"forwarded {text[:100]!r} is no list of name=value pairs")
        name, quoted, token = pair.groups()
        name = name.lower()
        if name in found:
            raise WireError(f"forwarded {text[:100]!r} names {name!r} twice")
        found[name] = token if quoted is None else _ESCAPED.sub(r"\1", quoted) if "\\" in quoted else quoted
        at = pair.end()
        if text[at - 1] == ",":
            break
    host = found.get("host", "")
    if host and not _WORD.fullmatch(host):
        raise WireError(f"forwarded {text[:100]!r} holds no valid host")
    return Forwarded(found.get("for", ""), host.lower())


def parse_traceparent(text: str) -> TraceParent:
    """Raises WireError unless the text is a trace parent of version 00's form with ids that are not zero."""
    found = _TRACEPARENT.fullmatch(text)
    if found is None or found[1] == "ff":
        raise WireError(f"traceparent {text[:60]!r} is not 00-<32 hex>-<16 hex>-<2 hex>")
    trace = TraceParent(int(found[2], 16), int(found[3], 16))
    if not trace.trace_id or not trace.parent_id:
        raise WireError(f"traceparent {text!r} has an id of zero")
    return trace


# ---- building ----


def request_headers(
    authority: str | Address | HostPort,
    *,
    baggage: str = "",
    forwarded: str = "",
    traceparent: str = "",
    network: str = "",
) -> list[tuple[str, str]]:
    """The whole header list of a CONNECT request; empty values are left out.

    Raises WireError when a value cannot be a header's.
    """
    headers = [(":method", "CONNECT"), (":authority", str(authority))]
    optional = (
        ("baggage", baggage),
        ("forwarded", forwarded),
        ("traceparent", traceparent),
        ("x-forwarded-network", network),
    )
    headers += [(name, value) for name, value in optional if value]
    for name, value in headers:
        if not _VISIBLE.fullmatch(value):
            raise WireError(f"{name} cannot be {value[:100]!r}")
    return headers


class RequestForm:
    """The encoded header block of a CONNECT, for all connections of a route; `fill` adds what is a connection's own.

    Raises WireError when `host` cannot be written.
    """

    __slots__ = ("_head", "_host")

    def __init__(self, authority: str, baggage: str, host: str) -> None:
        self._head = encode_headers([(":method", "CONNECT"), (":authority", authority), ("baggage", baggage)])
        self._host = _forwarded_host(host).encode("latin-1")

    def fill(self, client: Address, trace_id: int, parent_id: int, offer: bytes = b"") -> bytes:
        """The same as `encode_headers` gives with `forwarded` and `traceparent`; `offer` is one more encoded header."""
        who = b'for="%b"%b' % (str(client).encode("latin-1"), self._host)
        trace = b"00-%032x-%016x-00" % ((trace_id & (1 << 128) - 1) or 1, (parent_id & (1 << 64) - 1) or 1)
        return b"".join((self._head, offer, _FORWARDED, literal_size(len(who)), who, _TRACEPARENT_HEAD, trace))


def baggage(workload: Workload) -> str:
    """The Baggage header that describes a workload; a request's source, a response's destination.

    Values are percent-encoded where W3C Baggage wants it, so that none can pass for another key.
    """
    kind = workload.workload_type.lower()
    members = (
        ("k8s.cluster.name", workload.cluster_id),
        ("k8s.namespace.name", workload.namespace),
        (f"k8s.{kind}.name", workload.workload_name if kind in _WORKLOAD_TYPES else ""),
        ("service.name", workload.canonical_name),
        ("service.version", workload.canonical_revision),
        ("cloud.region", workload.locality.region),
        ("cloud.availability_zone", workload.locality.zone),
    )
    return ",".join([f"{key}={_escaped(value)}" for key, value in members if value])


def forwarded(client: Address, host: str = "") -> str:
    """The Forwarded header for a client that addressed `host`, a service's host name ("" if none is known).

    Raises WireError when `host` cannot be written.
    """
    return f'for="{client}"{_forwarded_host(host)}'


def traceparent(trace_id: int, parent_id: int) -> str:
    """A trace parent that is not sampled, from 128 and 64 random bits; zero, which is no id, becomes one."""
    return f"00-{(trace_id & (1 << 128) - 1) or 1:032x}-{(parent_id & (1 << 64) - 1) or 1:016x}-00"


# ---- inside ----

_FORWARDED = encode_header("forwarded", "")[:-1]
_TRACEPARENT_HEAD = encode_header("traceparent", traceparent(1, 1))[: -len(traceparent(1, 1))]
"""Encoded headers up to their values; that of `forwarded` lacks its size."""
_PSEUDO = frozenset((b":method", b":authority", b":scheme", b":path"))
_INFORMING = frozenset((b"baggage", b"forwarded", b"traceparent", b"x-forwarded-network"))
_LISTS = frozenset((b"baggage", b"forwarded"))


def _joined(name: bytes, before: bytes, value: bytes) -> bytes:
    """List headers continue over several lines (RFC 9110 section 5.3); of the others more than one means nothing."""
    return before + b"," + value if name in _LISTS else b""


def _forwarded_host(host: str) -> str:
    if not host:
        return ""
    if _TOKEN.fullmatch(host):
        return f";host={host}"
    if not _WORD.fullmatch(host):
        raise WireError(f"forwarded cannot hold the host {host[:100]!r}")
    quoted = re.sub(r'(["\\])', r"\\\1", host)
    return f';host="{quoted}"'


def _text(value: bytes, limit: int, form: re.Pattern[str] = _VISIBLE) -> str:
    """A header value as text of `form`: visible characters and inner blanks. Raises WireError."""
    if len(value) > limit:
        raise WireError(f"a header value of {len(value)} bytes, more than {limit}")
    text = value.decode("latin-1")
    if not form.fullmatch(text):
        raise WireError(f"a header value holds characters that have no place in it: {_shown(value)}")
    return text


def _shown(value: bytes) -> str:
    """Bytes of a peer for a message: short, and harmless in a log."""
    return repr(value[:60])[1:]


def _escaped(value: str) -> str:
    return _BAGGAGE_ESCAPED.sub(
        lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode(errors="replace")), value
    )


def _unescaped(value: str) -> str:
    text = unquote_to_bytes(value).decode("utf-8", "replace") if "%" in value else value
    if not text.isprintable():
        raise WireError("a baggage value holds control characters")
    return text
