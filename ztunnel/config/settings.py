"""What the operator decided, as one frozen value that every room may read.

Each field is the environment variable of the same name in lower case; the few without a variable say so. Durations
are seconds, sizes are bytes, addresses are canonical. The defaults here are the only ones: the documentation and the
config dump are made from them. Numbers without another source are Istio ztunnel's own.

This module must not know where a value came from; that is `environ`'s job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from ztunnel.core.model.address import Address

ProxyMode = Literal["shared", "dedicated"]
Capture = Literal["redirect", "tproxy", "node", "none"]
"""The values of `link.messages.CaptureMode`, which this room may not import."""
CaptureBackend = Literal["auto", "iptables", "iptables-nft", "iptables-legacy", "nft"]
LogFormat = Literal["plain", "json"]

MAX_USER_TIMEOUT = (2**31 - 1) // 1000
"""Seconds; the kernel counts milliseconds in an int."""
ISTIO_MARK = 1337
"""0x539, the mark that Istio's rules exempt from capture."""
DEFAULT_DRAIN_DEADLINE = 5.0


class WorkloadInfo(NamedTuple):
    """Which workload a dedicated agent speaks for; written `namespace/name/serviceaccount`."""

    namespace: str
    name: str
    service_account: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}/{self.service_account}"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Made by `ztunnel.config.load`; tests may make their own, every field has a default."""

    # Role
    proxy_mode: ProxyMode = "shared"
    proxy_workload_info: WorkloadInfo | None = None
    """Set exactly when the mode is dedicated."""
    enable_proxy: bool = True
    workers: int = 1
    """Worker processes; 0 keeps the worker half in the agent's own process, as `load` does in dedicated mode.

    Measured: a control half that is busy doubles the median round trip of a worker in its own process; as processes
    both halves take 25 MB more, which one agent for a node can afford and one for each pod cannot.
    """
    same_node_join: bool = True
    ztunnel_worker_threads: str = ""
    ztunnel_cpu_limit: str = ""
    ztunnel_resource_cpu_limit: str = ""
    ztunnel_resource_cpu_request: str = ""

    # Where this agent is
    network: str = ""
    node_name: str = ""
    cluster_id: str = "Kubernetes"
    cluster_domain: str = "cluster.local"
    trust_domain: str = "cluster.local"
    pod_namespace: str = ""
    pod_name: str = ""
    service_account: str = ""
    instance_ip: str = "1.1.1.1"
    proxy_metadata: Mapping[str, str] = {}
    """From PROXY_CONFIG and ISTIO_META_*, prefix stripped; no variable of its own."""

    # Where state comes from
    local_xds_path: str = ""
    local_xds: str = ""
    xds_address: str = ""
    """Empty: no control plane."""
    xds_on_demand: bool = False
    xds_root_ca: str = "./var/run/secrets/istio/root-cert.pem"
    xds_headers: Mapping[str, str] = {}
    """From XDS_HEADER_<name>=<value>."""
    alt_xds_hostname: str = ""
    prefered_service_namespace: str = ""
    inpod_uds: str = "/var/run/ztunnel/ztunnel.sock"
    enroll_uds: str = "/var/run/ztunnel/enroll.sock"

    # Certificates
    local_ca_path: str = ""
    """Directory of the embedded CA (layout of Istio's cacerts); empty: a CA in memory."""
    ca_address: str = ""
    ca_root_ca: str = "./var/run/secrets/istio/root-cert.pem"
    ca_headers: Mapping[str, str] = {}
    """From CA_HEADER_<name>=<value>."""
    alt_ca_hostname: str = ""
    auth_token: str = ""
    secret_ttl: float = 24 * 3600.0
    fake_ca: bool = False
    crl_path: str = ""
    compliance_policy: str = ""
    tls12_enabled: bool = False

    # Capture and sockets
    capture_mode: Capture = "redirect"
    """`load` makes it `none` in dedicated mode unless the operator chose another."""
    capture_backend: CaptureBackend = "auto"
    exclude_inbound_ports: tuple[int, ...] = ()
    exclude_outbound_ports: tuple[int, ...] = ()
    exclude_inbound_cidrs: tuple[str, ...] = ()
    exclude_outbound_cidrs: tuple[str, ...] = ()
    packet_mark: int | None = ISTIO_MARK
    """None sets no mark: `load`'s default in dedicated mode without capture."""
    enable_orig_src: bool | None = None
    """True: must be possible; False: never; None: where the kernel allows."""
    ipv6_enabled: bool = True
    inpod_port_reuse: bool = True
    keepalive_enabled: bool = True
    keepalive_time: float = 180.0
    keepalive_interval: float = 180.0
    keepalive_retries: int = 9
    user_timeout_enabled: bool = False
    tcp_congestion: str = ""
    """Empty by default: the host's operator knows the network. (cubic carries 10-20 % more per CPU than BBR between
    hosts that are near each other; BBR is better over long, lossy paths.)"""
    tcp_notsent_lowat: int = 128 * 1024
    """Bytes. Keeps the kernel's queues short, so that batches are large and a small message waits behind little."""

    # Ports
    outbound_port: int = 15001
    """Fixed, like the two below: Istio's capture rules name them; no variable."""
    inbound_plaintext_port: int = 15006
    inbound_port: int = 15008
    admin_addr: tuple[Address, ...] = (Address("127.0.0.1", 15000), Address("::1", 15000))
    """To bind each; a loopback of a family that the host lacks may be passed over."""
    stats_addr: tuple[Address, ...] = (Address("::", 15020),)
    """`::` is meant as dual stack."""
    readiness_addr: tuple[Address, ...] = (Address("::", 15021),)

    # Tunnels
    pool_max_streams_per_connection: int = 100
    pool_unused_release_timeout: float = 300.0
    http2_stream_window_size: int = 4 << 20
    http2_connection_window_size: int = 16 << 20
    http2_frame_size: int = 1 << 20
    ping_interval: float = 10.0
    ping_timeout: float = 20.0
    enable_response_baggage: bool = True
    localhost_app_tunnel: bool = True

    # Time limits
    connect_timeout: float = 10.0
    tls_handshake_timeout: float = 10.0
    http2_preface_timeout: float = 10.0
    connect_response_timeout: float = 20.0
    """Our peer's own connect (10 s) and 10 s for the way there and back."""
    admin_header_timeout: float = 2.0
    connection_termination_deadline: float | None = None
    termination_grace_period_seconds: int | None = None

    # What an operator sees
    rust_log: str = "info"
    log_format: LogFormat = "plain"
    authz_policy_info_logging: bool = False
    istio_meta_istio_version: str = "unknown"

    # Later doors
    istio_meta_dns_capture: bool = True
    istio_meta_dns_proxy_addr: str = "localhost:15053"
    unstable_enable_socks5: bool = False

    # About the settings themselves; no variables
    origins: Mapping[str, str] = {}
    """Field name to where its value came from; a field that is missing has its default."""
    warnings: tuple[str, ...] = ()
    """For the log, once, when it is open."""

    @property
    def dedicated(self) -> bool:
        return self.proxy_mode == "dedicated"

    @property
    def illegal_ports(self) -> frozenset[int]:
        """Ports that no captured connection may be addressed to: they are ours, it would be a loop."""
        return frozenset((self.outbound_port, self.inbound_plaintext_port, self.inbound_port))

    @property
    def wildcard(self) -> str:
        """What listeners of all addresses bind: dual stack, or IPv4 only."""
        return "::" if self.ipv6_enabled else "0.0.0.0"

    @property
    def drain_deadline(self) -> float:
        """Seconds that open connections have to finish once the agent is told to stop.

        CONNECTION_TERMINATION_DEADLINE, else a little less than the time Kubernetes gives, so that closing with a
        reason comes before SIGKILL (the numbers are ztunnel's, config.rs).
        """
        if self.connection_termination_deadline is not None:
            return self.connection_termination_deadline
        grace = self.termination_grace_period_seconds
        if grace is None:
            return DEFAULT_DRAIN_DEADLINE
        return float(max(1, grace - 5 if grace > 10 else grace - 1))

    @property
    def user_timeout(self) -> float | None:
        """TCP_USER_TIMEOUT in seconds: what keepalive would take to give up."""
        if not self.user_timeout_enabled:
            return None
        return min(self.keepalive_time + self.keepalive_retries * self.keepalive_interval, MAX_USER_TIMEOUT)
