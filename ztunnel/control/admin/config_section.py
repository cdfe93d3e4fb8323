"""`config` of config_dump: the settings under ztunnel's names (reference, Appendix B), and all of them under ours.

Secrets never leave: header values are redacted (ztunnel shows them), tokens and inline PEM are replaced by a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ztunnel.config.settings import Settings

REDACTED = "[redacted]"
_SECRET_MAPS = ("xds_headers", "ca_headers")
_SECRET_UNLESS_PATH = ("auth_token", "xds_root_ca", "ca_root_ca")
_NOT_SHOWN = ("origins", "warnings", "local_xds")


def config_section(settings: Settings) -> dict[str, Any]:
    """JSON-ready."""
    info = settings.proxy_workload_info
    shown = {
        "proxy": settings.enable_proxy,
        "dnsProxy": settings.istio_meta_dns_capture,
        "windowSize": settings.http2_stream_window_size,
        "connectionWindowSize": settings.http2_connection_window_size,
        "frameSize": settings.http2_frame_size,
        "poolMaxStreamsPerConn": settings.pool_max_streams_per_connection,
        "poolUnusedReleaseTimeout": _duration(settings.pool_unused_release_timeout),
        "adminAddr": {"Localhost": [settings.ipv6_enabled, settings.admin_addr[0].port]},
        "statsAddr": {"SocketAddr": str(settings.stats_addr[0])},
        "readinessAddr": {"SocketAddr": str(settings.readiness_addr[0])},
        "inboundAddr": _wildcard(settings, settings.inbound_port),
        "inboundPlaintextAddr": _wildcard(settings, settings.inbound_plaintext_port),
        "outboundAddr": _wildcard(settings, settings.outbound_port),
        "illegalPorts": sorted(settings.illegal_ports),
        "network": settings.network,
        "localNode": settings.node_name or None,
        "proxyMode": settings.proxy_mode.capitalize(),
        "proxyWorkloadInformation": None
        if info is None
        else _workload(info.name, info.namespace, info.service_account),
        "clusterId": settings.cluster_id,
        "clusterDomain": settings.cluster_domain,
        "caAddress": settings.ca_address or None,
        "caRootCert": _root(settings.ca_root_ca),
        "altCaHostname": settings.alt_ca_hostname or None,
        "xdsAddress": settings.xds_address or None,
        "xdsRootCert": _root(settings.xds_root_ca),
        "altXdsHostname": settings.alt_xds_hostname or None,
        "preferedServiceNamespace": settings.prefered_service_namespace or None,
        "secretTtl": _duration(settings.secret_ttl),
        "xdsOnDemand": settings.xds_on_demand,
        "fakeCa": settings.fake_ca,
        "selfTerminationDeadline": _duration(settings.drain_deadline),
        "proxyMetadata": dict(settings.proxy_metadata),
        "numWorkerThreads": settings.workers or 1,
        "requireOriginalSource": settings.enable_orig_src,
        "inpodUds": settings.inpod_uds,
        "inpodPortReuse": settings.inpod_port_reuse,
        "packetMark": settings.packet_mark,
        "socketConfig": _socket_config(settings),
        "xdsHeaders": sorted(settings.xds_headers),
        "caHeaders": sorted(settings.ca_headers),
        "localhostAppTunnel": settings.localhost_app_tunnel,
        "ztunnelWorkload": _own_workload(settings),
        "ipv6Enabled": settings.ipv6_enabled,
        "crlPath": settings.crl_path or None,
        "enableEnhancedBaggage": settings.enable_response_baggage,
    }
    return shown | {"settings": effective(settings)}


def effective(settings: Settings) -> dict[str, dict[str, Any]]:
    """Every setting by its own name, with its value and where that came from."""
    return {
        field: {"value": _safe(field, getattr(settings, field)), "origin": settings.origins.get(field, "default")}
        for field in settings.__struct_fields__
        if field not in _NOT_SHOWN
    }


def _safe(field: str, value: object) -> Any:
    if field in _SECRET_MAPS and isinstance(value, Mapping):
        return dict.fromkeys(sorted(value), REDACTED)
    if field in _SECRET_UNLESS_PATH and isinstance(value, str):
        return _path_or_redacted(value)
    return msgspec.to_builtins(value, enc_hook=str)


def _path_or_redacted(value: str) -> str:
    """Paths and the word SYSTEM are no secrets; anything else may be the token or certificate itself."""
    return value if not value or value == "SYSTEM" or value.startswith(("/", "./", "../")) else REDACTED


def _root(value: str) -> Any:
    if value in ("", "SYSTEM"):
        return "Default"
    shown = _path_or_redacted(value)
    return {"Static": REDACTED} if shown == REDACTED else {"File": shown}


def _duration(seconds: float) -> dict[str, int]:
    whole = int(seconds)
    return {"secs": whole, "nanos": round((seconds - whole) * 1e9)}


def _wildcard(settings: Settings, port: int) -> str:
    return f"[::]:{port}" if settings.ipv6_enabled else f"0.0.0.0:{port}"


def _workload(name: str, namespace: str, service_account: str) -> dict[str, str]:
    return {"name": name, "namespace": namespace, "serviceAccount": service_account}


def _own_workload(settings: Settings) -> dict[str, str] | None:
    if not (settings.pod_name and settings.pod_namespace and settings.service_account):
        return None
    return _workload(settings.pod_name, settings.pod_namespace, settings.service_account)


def _socket_config(settings: Settings) -> dict[str, Any]:
    return {
        "keepaliveTime": _duration(settings.keepalive_time),
        "keepaliveInterval": _duration(settings.keepalive_interval),
        "keepaliveRetries": settings.keepalive_retries,
        "keepaliveEnabled": settings.keepalive_enabled,
        "userTimeoutEnabled": settings.user_timeout_enabled,
    }
