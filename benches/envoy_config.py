"""Envoy configurations for HBONE: one that puts captured TCP into tunnels, one that ends tunnels. As data, no I/O.

For the benches and for the tests with a foreign peer. The windows are those of ztunnel, generous for Envoy too;
circuit breakers are opened so that only the machine limits it; frames stay at Envoy's own 16 KiB.
"""

from __future__ import annotations

from typing import Any

from benches.certs import Files

Config = dict[str, Any]

TYPE = "type.googleapis.com/envoy.extensions"
STREAM_WINDOW = 4 << 20
CONNECTION_WINDOW = 16 << 20
UNLIMITED = 1_000_000
TLS_CURVES = ["X25519MLKEM768", "X25519"]
SOL_SOCKET, SO_MARK = 1, 36


def encapsulating(
    files: Files, peer: str, *, listen: int, next_hop: tuple[str, int], access_log: str = "", mark: int | None = None
) -> Config:
    """Takes captured connections on `listen` and opens one CONNECT stream for each, to its original destination.

    `peer` is the identity that the next hop must prove; with `mark` capture rules know Envoy's own connections.
    """
    proxy = typed(
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="captured",
        cluster="hbone",
        tunneling_config={"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"},
        idle_timeout="0s",
        access_log=file_logs(access_log),
    )
    listener = {
        "address": socket_address("0.0.0.0", listen),
        "listener_filters": [
            {
                "name": "original_dst",
                "typed_config": typed("filters.listener.original_dst.v3.OriginalDst"),
            }
        ],
        "filter_chains": [{"filters": [{"name": "tcp_proxy", "typed_config": proxy}]}],
    }
    hbone = cluster("hbone", next_hop, mark)
    hbone["transport_socket"] = tls_socket("UpstreamTlsContext", files, peer)
    hbone["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
            "upstreams.http.v3.HttpProtocolOptions",
            explicit_http_config={"http2_protocol_options": windows()},
            common_http_protocol_options={"idle_timeout": "0s"},
        )
    }
    return bootstrap(listener, hbone)


def terminating(
    files: Files,
    peer: str,
    *,
    listen: int,
    application: tuple[str, int],
    access_log: str = "",
    mark: int | None = None,
) -> Config:
    """Ends the tunnels of clients that prove to be `peer`, and delivers every stream to `application`."""
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
        access_log=file_logs(access_log),
    )
    listener = {
        "address": socket_address("0.0.0.0", listen),
        "filter_chains": [
            {
                "transport_socket": tls_socket("DownstreamTlsContext", files, peer),
                "filters": [{"name": "http", "typed_config": manager}],
            }
        ],
    }
    return bootstrap(listener, cluster("application", application, mark))


def with_admin(config: Config, port: int) -> Config:
    """The same with Envoy's admin server on loopback."""
    return {**config, "admin": {"address": socket_address("127.0.0.1", port)}}


def typed(name: str, **fields: object) -> Config:
    return {"@type": f"{TYPE}.{name}", **fields}


def socket_address(host: str, port: int) -> Config:
    return {"socket_address": {"address": host, "port_value": port}}


def file_logs(path: str) -> list[Config]:
    if not path:
        return []
    return [{"name": "file", "typed_config": typed("access_loggers.file.v3.FileAccessLog", path=path)}]


def windows() -> Config:
    return {
        "initial_stream_window_size": STREAM_WINDOW,
        "initial_connection_window_size": CONNECTION_WINDOW,
    }


def cluster(name: str, target: tuple[str, int], mark: int | None) -> Config:
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), UNLIMITED)
    endpoint = {"endpoint": {"address": socket_address(*target)}}
    made = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [limits]},
    }
    if mark is not None:
        option = {"level": SOL_SOCKET, "name": SO_MARK, "int_value": mark, "state": "STATE_PREBIND"}
        made["upstream_bind_config"] = {"socket_options": [option]}
    return made


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
