"""Settings shown: to the operator with the origin of each value, and to tools in the shape of ztunnel's config_dump.

Secrets never leave here: tokens and the values of extra headers are shown as redacted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ztunnel.config.environ import VARIABLES
from ztunnel.config.settings import Settings
from ztunnel.core.model.address import Address

REDACTED = "(redacted)"
SECRETS = frozenset({"auth_token"})
Dump = dict[str, Any]


class Described(NamedTuple):
    """A row of `ztunnel config`."""

    name: str
    value: str
    origin: str
    """The variable or file that set it, else `default`."""
    sentence: str


def describe(settings: Settings) -> list[Described]:
    """Every setting that has a variable, in the order of the table."""
    rows = []
    for variable in VARIABLES:
        if hasattr(settings, variable.field):
            value = getattr(settings, variable.field)
            origin = settings.origins.get(variable.field, "default")
            rows.append(Described(variable.name, _shown(variable.field, value), origin, variable.sentence))
    return rows


def _shown(field: str, value: object) -> str:
    if value is None or value == "" or value == ():
        return "-"
    if field in SECRETS:
        return REDACTED
    if field == "local_xds" or "-----BEGIN" in str(value):
        return f"({len(str(value))} characters)"
    return written(value)


def written(value: object) -> str:
    """A value as it could be written in the environment."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return duration(value)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return ", ".join(str(item) for item in value)
    return str(value)


def duration(seconds: float) -> str:
    """`90.0` is `1m30s`."""
    text, rest = "", seconds
    for unit, length in (("h", 3600), ("m", 60)):
        count, rest = divmod(rest, length)
        text += f"{count:.0f}{unit}" if count else ""
    return text + f"{rest:g}s" if rest or not text else text


def to_config_dump(settings: Settings, *, proxy_args: str = "") -> Dump:
    """`config` of a config_dump: ztunnel's keys, then `settings`, all of ours by variable with their origins.

    Listener addresses are text and the others objects, because they are of two types in ztunnel (src/config.rs).
    """
    s = settings
    return {
        "proxy": s.enable_proxy,
        "dnsProxy": False,  # there is none yet, whatever ISTIO_META_DNS_CAPTURE says
        "windowSize": s.http2_stream_window_size,
        "connectionWindowSize": s.http2_connection_window_size,
        "frameSize": s.http2_frame_size,
        "poolMaxStreamsPerConn": s.pool_max_streams_per_connection,
        "poolUnusedReleaseTimeout": _duration(s.pool_unused_release_timeout),
        "socks5Addr": None,
        "adminAddr": _bind(s.admin_addr),
        "statsAddr": _bind(s.stats_addr),
        "readinessAddr": _bind(s.readiness_addr),
        "inboundAddr": str(Address(s.wildcard, s.inbound_port)),
        "inboundPlaintextAddr": str(Address(s.wildcard, s.inbound_plaintext_port)),
        "outboundAddr": str(Address(s.wildcard, s.outbound_port)),
        "dnsProxyAddr": s.istio_meta_dns_proxy_addr,
        "illegalPorts": sorted(s.illegal_ports),
        "network": s.network,
        "localNode": s.node_name or None,
        "proxyMode": s.proxy_mode.capitalize(),
        "proxyWorkloadInformation": _workload_info(s),
        "clusterId": s.cluster_id,
        "clusterDomain": s.cluster_domain,
        "caAddress": s.ca_address or None,
        "caRootCert": _root(s.ca_root_ca),
        "altCaHostname": s.alt_ca_hostname or None,
        "xdsAddress": s.xds_address or None,
        "xdsRootCert": _root(s.xds_root_ca),
        "altXdsHostname": s.alt_xds_hostname or None,
        "preferedServiceNamespace": s.prefered_service_namespace or None,
        "secretTtl": _duration(s.secret_ttl),
        "xdsOnDemand": s.xds_on_demand,
        "fakeCa": s.fake_ca,
        "selfTerminationDeadline": _duration(s.drain_deadline),
        "proxyMetadata": dict(s.proxy_metadata),
        "numWorkerThreads": s.workers or 1,
        "requireOriginalSource": s.enable_orig_src,
        "proxyArgs": proxy_args,
        "inpodUds": s.inpod_uds,
        "inpodPortReuse": s.inpod_port_reuse,
        "packetMark": s.packet_mark,
        "socketConfig": _socket_config(s),
        "xdsHeaders": _redacted(s.xds_headers),
        "caHeaders": _redacted(s.ca_headers),
        "localhostAppTunnel": s.localhost_app_tunnel,
        "ztunnelIdentity": _own_identity(s),
        "ztunnelWorkload": _own_workload(s),
        "ipv6Enabled": s.ipv6_enabled,
        "crlPath": s.crl_path or None,
        "enableEnhancedBaggage": s.enable_response_baggage,
        "settings": {row.name: {"value": row.value, "origin": row.origin} for row in describe(s)},
    }


def _duration(seconds: float) -> Dump:
    whole, nanos = divmod(round(seconds * 1_000_000_000), 1_000_000_000)
    return {"secs": whole, "nanos": nanos}


def _bind(addresses: tuple[Address, ...]) -> Dump:
    first = addresses[0]
    if first.ip == "127.0.0.1" and all(address.is_loopback for address in addresses):
        return {"Localhost": [len(addresses) > 1, first.port]}
    return {"SocketAddr": str(first)}


def _workload_info(settings: Settings) -> Dump | None:
    info = settings.proxy_workload_info
    if info is None:
        return None
    return {"name": info.name, "namespace": info.namespace, "serviceAccount": info.service_account}


def _root(text: str) -> object:
    if text == "SYSTEM":
        return "Default"
    return "Static" if "-----BEGIN" in text else {"File": text}


def _socket_config(s: Settings) -> Dump:
    return {
        "keepaliveTime": _duration(s.keepalive_time),
        "keepaliveInterval": _duration(s.keepalive_interval),
        "keepaliveRetries": s.keepalive_retries,
        "keepaliveEnabled": s.keepalive_enabled,
        "userTimeoutEnabled": s.user_timeout_enabled,
    }


def _redacted(headers: Mapping[str, str]) -> list[list[str]]:
    return [[name, REDACTED] for name in headers]


def _own_workload(s: Settings) -> Dump | None:
    if not (s.pod_namespace and s.service_account and s.pod_name):
        return None
    return {"name": s.pod_name, "namespace": s.pod_namespace, "serviceAccount": s.service_account}


def _own_identity(s: Settings) -> str | None:
    if _own_workload(s) is None:
        return None
    return f"spiffe://{s.trust_domain}/ns/{s.pod_namespace}/sa/{s.service_account}"
