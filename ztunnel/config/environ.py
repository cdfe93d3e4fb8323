"""The table of environment variables, and how Settings are made from an environment.

The table is the single list: parsing, `describe`, the documentation and the tests all read it. Every mistake is
reported at once. Variables of Istio's ztunnel that this agent does not act on yet are in the table (`later`): they
never stop a start, and those set to something of consequence are named in one warning.

Precedence, lowest first: default, `defaultConfig` of the mesh config file, PROXY_CONFIG, the variable itself. A
variable that is empty counts as not set, except where empty says something (XDS_ADDRESS, CA_ADDRESS).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
import yaml

from ztunnel.config import forms
from ztunnel.config.forms import BindText, Form
from ztunnel.config.settings import Settings
from ztunnel.core.errors import ConfigError
from ztunnel.core.model.address import Address

META_PREFIX = "ISTIO_META_"


class Variable(NamedTuple):
    """One environment variable; its default is the Settings field's, unless `default` describes a computed one."""

    name: str
    form: Form
    sentence: str
    default: str = ""
    later: bool = False
    """Known to Istio's ztunnel or planned; accepted, without effect so far."""
    empty: bool = False
    """An empty value is a value."""

    @property
    def field(self) -> str:
        return self.name.lower()


class Group(NamedTuple):
    title: str
    variables: tuple[Variable, ...]


V = Variable
MAX_WINDOW = 2**31 - 1  # RFC 9113, 6.9.1
KEEPALIVE = forms.period(1, 32767)  # what the kernel takes: include/net/tcp.h, MAX_TCP_KEEPIDLE

GROUPS = (
    Group(
        "Role",
        (
            V("PROXY_MODE", forms.choice("shared", "dedicated"), "One agent for a node's pods, or for one workload."),
            V("PROXY_WORKLOAD_INFO", forms.WORKLOAD, "The workload of a dedicated agent; required there."),
            V("SAME_NODE_JOIN", forms.SWITCH, "Join both ends directly when they live in this agent."),
            V("WORKERS", forms.integer(0, 256), "Worker processes; 0: all in one process (default if dedicated)."),
            V("ENABLE_PROXY", forms.BOOLEAN, "Run the proxy (false: only the DNS proxy).", later=True),
            V("ZTUNNEL_WORKER_THREADS", forms.TEXT, "Threads of Istio's ztunnel, number or NN%.", later=True),
            V("ZTUNNEL_CPU_LIMIT", forms.TEXT, "Cores that percentages count from.", later=True),
            V("ZTUNNEL_RESOURCE_CPU_LIMIT", forms.TEXT, "The container's CPU limit.", later=True),
            V("ZTUNNEL_RESOURCE_CPU_REQUEST", forms.TEXT, "The container's CPU request.", later=True),
        ),
    ),
    Group(
        "Where this agent is",
        (
            V("NETWORK", forms.TEXT, "Name of the network that plain addresses belong to."),
            V("NODE_NAME", forms.TEXT, "Name of this node."),
            V("CLUSTER_ID", forms.TEXT, "Name of the cluster; `ISTIO_META_CLUSTER_ID` wins."),
            V("TRUST_DOMAIN", forms.TRUST_DOMAIN, "SPIFFE trust domain where none is given."),
            V("CLUSTER_DOMAIN", forms.TEXT, "DNS domain of the cluster.", later=True),
            V("POD_NAMESPACE", forms.TEXT, "Namespace of the agent's own pod.", later=True),
            V("POD_NAME", forms.TEXT, "Name of the agent's own pod.", later=True),
            V("SERVICE_ACCOUNT", forms.TEXT, "Service account of the agent's own pod.", later=True),
            V("INSTANCE_IP", forms.IP, "Address that names the agent to the control plane.", later=True),
        ),
    ),
    Group(
        "Where state comes from",
        (
            V("LOCAL_XDS_PATH", forms.PATH, "YAML file of workloads, services, policies and pods; watched."),
            V("LOCAL_XDS", forms.TEXT, "The same as inline YAML; only one of both."),
            V("ENROLL_UDS", forms.PATH, "Unix socket on which `ztunnel enroll` adds pods."),
            V(
                "XDS_ADDRESS",
                forms.URL,
                "Control plane; empty: none.",
                default="`https://istiod.istio-system.svc:15012` inside Kubernetes, else empty",
                later=True,
                empty=True,
            ),
            V("XDS_ON_DEMAND", forms.BOOLEAN, "Ask for workloads when they are needed.", later=True),
            V("XDS_ROOT_CA", forms.TEXT, "Roots of the control plane: path, `SYSTEM` or PEM.", later=True),
            V("ALT_XDS_HOSTNAME", forms.TEXT, "Further accepted name of the control plane.", later=True),
            V("PREFERED_SERVICE_NAMESPACE", forms.TEXT, "Namespace that wins among equal host names.", later=True),
            V("INPOD_UDS", forms.PATH, "Unix socket of Istio's CNI agent.", later=True),
        ),
    ),
    Group(
        "Certificates",
        (
            V("LOCAL_CA_PATH", forms.PATH, "Directory of the embedded CA (cacerts layout); empty: in memory."),
            V("SECRET_TTL", forms.period(1, int(forms.LONGEST)), "Validity of workload certificates."),
            V(
                "CA_ADDRESS",
                forms.URL,
                "Istio CA; empty: the embedded CA.",
                default="as XDS_ADDRESS",
                later=True,
                empty=True,
            ),
            V("CA_ROOT_CA", forms.TEXT, "Roots of the CA's server: path, `SYSTEM` or PEM.", later=True),
            V("ALT_CA_HOSTNAME", forms.TEXT, "Further accepted name of the CA's server.", later=True),
            V("AUTH_TOKEN", forms.TEXT, "Path of the token file, or the token.", later=True),
            V("FAKE_CA", forms.BOOLEAN, "Self-signed certificates, for tests.", later=True),
            V("CRL_PATH", forms.PATH, "Certificate revocation list.", later=True),
            V("COMPLIANCE_POLICY", forms.TEXT, "`pqc`: only the X25519MLKEM768 key exchange.", later=True),
            V("TLS12_ENABLED", forms.BOOLEAN, "Accept TLS 1.2 also.", later=True),
        ),
    ),
    Group(
        "Capture and sockets",
        (
            V(
                "CAPTURE_MODE",
                forms.choice("redirect", "tproxy", "node", "none"),
                "How traffic of pods that do not say otherwise is captured; `none`: rules come from outside.",
                default="`redirect`; dedicated: `none`",
            ),
            V(
                "CAPTURE_BACKEND",
                forms.choice("auto", "iptables", "iptables-nft", "iptables-legacy", "nft"),
                "What the rules are installed with.",
            ),
            V("EXCLUDE_INBOUND_PORTS", forms.PORTS, "Destination ports that are not captured on the way in."),
            V("EXCLUDE_OUTBOUND_PORTS", forms.PORTS, "Destination ports that are not captured on the way out."),
            V("EXCLUDE_INBOUND_CIDRS", forms.CIDRS, "Sources that are not captured on the way in."),
            V("EXCLUDE_OUTBOUND_CIDRS", forms.CIDRS, "Destinations that are not captured on the way out."),
            V(
                "PACKET_MARK",
                forms.integer(1, 2**32 - 1),
                "SO_MARK of the agent's own sockets.",
                default="`1337`; dedicated without capture: no mark",
            ),
            V(
                "ENABLE_ORIG_SRC",
                forms.BOOLEAN,
                "Keep the client's address towards the application.",
                default="where the kernel allows",
            ),
            V("IPV6_ENABLED", forms.BOOLEAN, "Listen and connect by IPv6 also."),
            V("INPOD_PORT_REUSE", forms.BOOLEAN, "SO_REUSEPORT, so that two agents can overlap in an upgrade."),
            V("KEEPALIVE_ENABLED", forms.BOOLEAN, "TCP keepalive."),
            V("KEEPALIVE_TIME", KEEPALIVE, "Idle time before the first probe."),
            V("KEEPALIVE_INTERVAL", KEEPALIVE, "Time between probes."),
            V("KEEPALIVE_RETRIES", forms.integer(1, 127), "Probes without answer that end a connection."),
            V("USER_TIMEOUT_ENABLED", forms.BOOLEAN, "TCP_USER_TIMEOUT of time + retries x interval."),
            V(
                "TCP_CONGESTION",
                forms.TEXT,
                "Congestion control of our sockets; empty: the host's choice.",
            ),
            V("TCP_NOTSENT_LOWAT", forms.size(0, MAX_WINDOW), "Unsent bytes at which a socket is full; 0: the host's."),
        ),
    ),
    Group(
        "Ports",
        (
            V("ADMIN_ADDR", forms.BIND, "Admin port.", default="`localhost:15000`"),
            V("STATS_ADDR", forms.BIND, "Metrics port.", default="`*:15020`"),
            V("READINESS_ADDR", forms.BIND, "Readiness port.", default="`*:15021`"),
        ),
    ),
    Group(
        "Tunnels",
        (
            V("POOL_MAX_STREAMS_PER_CONNECTION", forms.integer(1, 2**31 - 1), "Streams of one pooled tunnel."),
            V("POOL_UNUSED_RELEASE_TIMEOUT", forms.LIMIT, "Time after which an idle tunnel is closed."),
            V("HTTP2_STREAM_WINDOW_SIZE", forms.size(65535, MAX_WINDOW), "Flow control window of a stream."),
            V("HTTP2_CONNECTION_WINDOW_SIZE", forms.size(65535, MAX_WINDOW), "Flow control window of a tunnel."),
            V("HTTP2_FRAME_SIZE", forms.size(16384, 2**24 - 1), "Largest frame that is accepted."),
            V("PING_INTERVAL", forms.LIMIT, "Time between PINGs on a tunnel."),
            V("PING_TIMEOUT", forms.LIMIT, "Time without PING answer that ends a tunnel."),
            V("ENABLE_RESPONSE_BAGGAGE", forms.BOOLEAN, "Say in CONNECT answers who answers."),
            V("LOCALHOST_APP_TUNNEL", forms.BOOLEAN, "Deliver application tunnels to loopback.", later=True),
        ),
    ),
    Group(
        "Time limits",
        (
            V("CONNECT_TIMEOUT", forms.LIMIT, "TCP connect to a next hop or an application."),
            V("TLS_HANDSHAKE_TIMEOUT", forms.LIMIT, "TLS handshake, either side."),
            V("HTTP2_PREFACE_TIMEOUT", forms.LIMIT, "HTTP/2 preface and first SETTINGS, either side."),
            V("CONNECT_RESPONSE_TIMEOUT", forms.LIMIT, "Answer to a CONNECT."),
            V("ADMIN_HEADER_TIMEOUT", forms.LIMIT, "Request header on the admin, metrics and readiness ports."),
            V(
                "CONNECTION_TERMINATION_DEADLINE",
                forms.DURATION,
                "Time for open connections when the agent stops.",
                default="from the next, else `5s`",
            ),
            V(
                "TERMINATION_GRACE_PERIOD_SECONDS",
                forms.integer(0, 10**6),
                "Kubernetes' grace period; the deadline is 5 s less (10 or below: 1 s less).",
            ),
        ),
    ),
    Group(
        "What an operator sees",
        (
            V("RUST_LOG", forms.LOG_FILTER, "Log levels: `level` or `target=level`, commas between."),
            V("LOG_LEVEL", forms.LOG_FILTER, "Another name of RUST_LOG; wins.", default="RUST_LOG"),
            V("LOG_FORMAT", forms.choice("plain", "json"), "Form of a log line."),
            V("ISTIO_META_ISTIO_VERSION", forms.TEXT, "Version that the build metric names."),
            V("AUTHZ_POLICY_INFO_LOGGING", forms.BOOLEAN, "Log policy decisions at info.", later=True),
        ),
    ),
    Group(
        "Other doors",
        (
            V("ISTIO_META_DNS_CAPTURE", forms.BOOLEAN, "Answer captured DNS queries.", later=True),
            V("ISTIO_META_DNS_PROXY_ADDR", forms.TEXT, "Where DNS queries are answered.", later=True),
            V("UNSTABLE_ENABLE_SOCKS5", forms.BOOLEAN, "SOCKS5 listener on 15080.", later=True),
        ),
    ),
)
VARIABLES = tuple(variable for group in GROUPS for variable in group.variables)
HEADER_PREFIXES = ("XDS_HEADER_", "CA_HEADER_")


Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class ProxyConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The fields of Istio's ProxyConfig that ztunnel honours; the many others are passed over."""

    discovery_address: str | None = None
    proxy_admin_port: Port = 0
    stats_port: Port = 0
    proxy_metadata: dict[str, str] = {}


class _Draft:
    """Values, their origins and the problems so far."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.idle: list[str] = []

    def put(self, field: str, value: object, origin: str) -> None:
        self.values[field] = value
        self.origins[field] = origin

    def read(self, variable: Variable, environ: Mapping[str, str]) -> None:
        text = environ.get(variable.name)
        if text is None or not (text or variable.empty):
            return
        try:
            value = variable.form.parse(text)
        except ValueError as error:
            problem = f"{variable.name}={text!r}: {error}"
            (self.notes if variable.later else self.problems).append(problem)
            return
        if variable.later and value and value != _default(variable):
            self.idle.append(variable.name)
        self.put(variable.field, value, variable.name)


def load(environ: Mapping[str, str], mesh_config: str = "") -> Settings:
    """The settings of an environment.

    `mesh_config` is the text of Istio's mesh config file, where there is one. Raises ConfigError whose `problems`
    name every variable that is wrong.
    """
    draft = _Draft()
    _read_proxy_config(draft, environ, mesh_config)
    for variable in VARIABLES:
        draft.read(variable, environ)
    _read_prefixed(draft, environ)
    _complete(draft, environ)
    _check(draft)
    if draft.problems:
        count = "1 problem" if len(draft.problems) == 1 else f"{len(draft.problems)} problems"
        raise ConfigError(
            f"the environment has {count}: " + "; ".join(draft.problems),
            problems=tuple(draft.problems),
            hint="docs/configuration.md lists every variable",
        )
    if draft.idle:
        draft.notes.append(f"set, but without effect in this version: {', '.join(draft.idle)}")
    return Settings(**draft.values, origins=draft.origins, warnings=tuple(draft.notes))


def _default(variable: Variable) -> object:
    defaults = Settings()
    return getattr(defaults, variable.field, None)


def _read_proxy_config(draft: _Draft, environ: Mapping[str, str], mesh_config: str) -> None:
    metadata: dict[str, str] = {}
    for origin, text in (("mesh config", mesh_config), ("PROXY_CONFIG", environ.get("PROXY_CONFIG", ""))):
        if not text:
            continue
        try:
            document = yaml.safe_load(text)
            if origin == "mesh config" and isinstance(document, dict):
                document = document.get("defaultConfig")
            config = msgspec.convert({} if document is None else document, ProxyConfig)
        except yaml.YAMLError as error:
            draft.problems.append(f"{origin}: is not YAML: {' '.join(str(error).split())}")
            continue
        except msgspec.ValidationError as error:
            draft.problems.append(f"{origin}: {error}")
            continue
        metadata.update({key.removeprefix(META_PREFIX): value for key, value in config.proxy_metadata.items()})
        if config.discovery_address:
            draft.put("xds_address", forms.with_scheme(config.discovery_address), f"{origin} discoveryAddress")
        if config.proxy_admin_port:
            draft.put("admin_addr", BindText("", config.proxy_admin_port), f"{origin} proxyAdminPort")
        if config.stats_port:
            draft.put("stats_addr", BindText("", config.stats_port), f"{origin} statsPort")
    metadata.update({k.removeprefix(META_PREFIX): v for k, v in environ.items() if k.startswith(META_PREFIX)})
    if metadata:
        draft.put("proxy_metadata", metadata, f"PROXY_CONFIG, {META_PREFIX}*")


def _read_prefixed(draft: _Draft, environ: Mapping[str, str]) -> None:
    for prefix in HEADER_PREFIXES:
        headers = {name.removeprefix(prefix): value for name, value in environ.items() if name.startswith(prefix)}
        if headers:
            draft.put(prefix.lower().removesuffix("_") + "s", headers, f"{prefix}*")
            draft.idle.append(f"{prefix}*")


def _complete(draft: _Draft, environ: Mapping[str, str]) -> None:
    """Fills in what depends on other values."""
    values = draft.values
    if cluster := environ.get("ISTIO_META_CLUSTER_ID"):
        draft.put("cluster_id", cluster, "ISTIO_META_CLUSTER_ID")
    if "log_level" in values:
        draft.put("rust_log", values.pop("log_level"), draft.origins.pop("log_level"))
    if "KUBERNETES_SERVICE_HOST" in environ:
        for field in ("xds_address", "ca_address"):
            if field not in values:
                draft.put(field, "https://istiod.istio-system.svc:15012", "KUBERNETES_SERVICE_HOST")
    if values.get("proxy_mode") == "dedicated":
        if "capture_mode" not in values:
            draft.put("capture_mode", "none", "PROXY_MODE")
        if "workers" not in values:
            draft.put("workers", 0, "PROXY_MODE")
        if values["capture_mode"] == "none" and "packet_mark" not in values:
            draft.put("packet_mark", None, "PROXY_MODE")
    _complete_addresses(draft)


def _complete_addresses(draft: _Draft) -> None:
    ipv6 = draft.values.get("ipv6_enabled", True)
    for field, host, port in (
        ("admin_addr", "localhost", 15000),
        ("stats_addr", "*", 15020),
        ("readiness_addr", "*", 15021),
    ):
        bind = draft.values.get(field, BindText(host, port))
        draft.values[field] = _addresses(bind.host or host, bind.port, ipv6)


def _addresses(host: str, port: int, ipv6: bool) -> tuple[Address, ...]:
    if host == "localhost":
        return (Address("127.0.0.1", port), Address("::1", port)) if ipv6 else (Address("127.0.0.1", port),)
    if host == "*":
        return (Address("::" if ipv6 else "0.0.0.0", port),)
    return (Address(host, port),)


def _check(draft: _Draft) -> None:
    """What is wrong only together."""
    values, problems = draft.values, draft.problems
    if values.get("local_xds") and values.get("local_xds_path"):
        problems.append("LOCAL_XDS and LOCAL_XDS_PATH are both set: keep one")
    dedicated = values.get("proxy_mode") == "dedicated"
    told = "proxy_workload_info" in values or any(p.startswith("PROXY_WORKLOAD_INFO=") for p in problems)
    if dedicated and not told:
        problems.append("PROXY_WORKLOAD_INFO is missing: PROXY_MODE=dedicated needs namespace/name/serviceaccount")
    if not dedicated and "proxy_workload_info" in values:
        draft.values.pop("proxy_workload_info")
        draft.notes.append("PROXY_WORKLOAD_INFO is only used with PROXY_MODE=dedicated")
    if dedicated and values.get("capture_mode") == "node":
        problems.append("CAPTURE_MODE=node serves many pods: it needs PROXY_MODE=shared")
    ports: dict[int, str] = {15001: "outbound capture", 15006: "plaintext capture", 15008: "HBONE"}
    for field in ("admin_addr", "stats_addr", "readiness_addr"):
        port = values[field][0].port
        name = field.upper()
        if port in ports:
            problems.append(f"{name}: port {port} is already that of {ports[port]}")
        ports.setdefault(port, name)
