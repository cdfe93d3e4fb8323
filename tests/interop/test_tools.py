"""What openssl, curl and nghttp see of a real agent: TLS and requests on 15008, the admin port, the metrics.

One agent for the whole module; the tools run in another pod with certificates of the mesh.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from agent_process import Agent
from mesh_pki import MeshPki, write_files
from netns_builder import Acceptor, Pod, Topology
from raw_peers import HboneClient

from ztunnel.control.identity.ca_directory import open_or_create
from ztunnel.core.model.identity import parse_identity
from ztunnel.link.messages import CertificateIssued

CLIENT_IP, SERVER_IP = "10.1.0.2", "10.2.0.2"
CLIENT_ID = "spiffe://cluster.local/ns/demo/sa/client"
DENIED_ID = "spiffe://cluster.local/ns/demo/sa/denied"
SERVER_ID = "spiffe://cluster.local/ns/demo/sa/server"
HBONE = f"{SERVER_IP}:15008"
BANNER = b"the application speaks first"
MESH = f"""
workloads:
- {{name: client, uid: client, namespace: demo, serviceAccount: client, protocol: HBONE, workloadIps: [{CLIENT_IP}]}}
- {{name: server, uid: server, namespace: demo, serviceAccount: server, protocol: HBONE, workloadIps: [{SERVER_IP}]}}
policies:
- name: not-denied
  namespace: demo
  scope: Namespace
  action: Deny
  rules: [[[principals: [!Exact cluster.local/ns/demo/sa/denied]]]]
"""


class World:
    """A server pod with an agent and an application, and a client pod for the tools."""

    def __init__(self, client: Pod, server: Pod, directory: Path) -> None:
        self.client = client
        self.server = server
        self._directory = directory
        (directory / "mesh.yaml").write_text(MESH)
        self.agent = Agent(
            server,
            directory,
            PROXY_MODE="dedicated",
            PROXY_WORKLOAD_INFO="demo/server/server",
            LOCAL_XDS_PATH=str(directory / "mesh.yaml"),
            IPV6_ENABLED="false",
            ENABLE_ORIG_SRC="false",
        )
        self.agent.wait_ready()

    def leaf(self, identity: str) -> CertificateIssued:
        who = parse_identity(identity)
        now = time.time()
        return open_or_create(self._directory / "ca", now=now).issue(who, ttl=3600, now=now).message(who)

    def files(self, leaf: CertificateIssued) -> Mapping[str, str]:
        """The options of curl that make it that workload; the others' are made of them."""
        chain, key, roots = write_files(self._directory / f"leaf-{leaf.identity.service_account}", leaf)
        return {"--cert": str(chain), "--key": str(key), "--cacert": str(roots)}

    def tool(self, *command: str, at: Pod | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Runs in the client pod, or in another."""
        if shutil.which(command[0]) is None:
            pytest.skip(f"needs {command[0]}; `./dev test` installs it")
        return (at or self.client).run(command, stdin=stdin, check=False, errors="replace")

    def openssl(self, *options: str, identity: str | None = CLIENT_ID) -> str:
        """What s_client says of one handshake; it ends with the server's alert or its own end of input."""
        files = self.files(self.leaf(identity or CLIENT_ID))
        mine = ("-cert", files["--cert"], "-key", files["--key"]) if identity else ()
        common = ("-connect", HBONE, "-CAfile", files["--cacert"], "-verify_return_error")
        done = self.tool("openssl", "s_client", *common, *mine, *options)
        return done.stdout + done.stderr

    def curl(self, *options: str, identity: str | None = CLIENT_ID) -> subprocess.CompletedProcess[str]:
        """To 15008. The server's certificate has no host name, so curl cannot check it; openssl does."""
        files = self.files(self.leaf(identity or CLIENT_ID))
        mine = [word for name in ("--cert", "--key") for word in (name, files[name])] if identity else []
        write = ("-o", "/dev/null", "-w", "%{http_version} %{http_code}")
        return self.tool("curl", "-sS", "-k", "-m", "5", *write, *mine, *options, f"https://{HBONE}/")

    def nghttp(self, *options: str, identity: str = CLIENT_ID) -> str:
        files = self.files(self.leaf(identity))
        mine = (f"--cert={files['--cert']}", f"--key={files['--key']}", "--no-verify-peer", "--timeout=5")
        return _without_colours(self.tool("nghttp", "-v", *mine, *options, f"https://{HBONE}/").stdout)

    def connect(self, authority: str, *options: str, identity: str = CLIENT_ID) -> str:
        """A CONNECT of nghttp, which adds :scheme and :path as libraries of old do."""
        return self.nghttp("-H:method: CONNECT", f"-H:authority: {authority}", *options, identity=identity)


@pytest.fixture(scope="module")
def world(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Topology() as topology:
        client = topology.pod("client", CLIENT_IP)
        server = topology.pod("server", SERVER_IP, node=topology.node("node2"))
        made = World(client, server, tmp_path_factory.mktemp("tools"))
        yield made
        assert made.agent.stop() == 0, made.agent.log()


@pytest.fixture
def application(world: World) -> Iterator[Acceptor]:
    with Acceptor(world.server, SERVER_IP, 8080, banner=BANNER) as server:
        yield server


# ---- TLS ----


def test_openssl_is_served_tls_13_with_the_workloads_identity(world: World) -> None:
    said = world.openssl("-alpn", "h2")
    assert "Verify return code: 0 (ok)" in said
    assert re.search(r"New, TLSv1\.3, Cipher is TLS_AES_(128|256)_GCM_SHA(256|384)", said)
    assert "Server Temp Key: X25519" in said
    assert "ALPN protocol: h2" in said
    certificate = world.tool("openssl", "x509", "-noout", "-text", stdin=said).stdout
    names = re.search(r"X509v3 Subject Alternative Name: critical\n\s*(.*)", certificate)
    assert names is not None
    assert names[1] == f"URI:{SERVER_ID}"
    assert "id-ecPublicKey" in certificate
    assert "NIST CURVE: P-256" in certificate


def test_the_hybrid_group_is_chosen_with_a_client_that_knows_it(world: World) -> None:
    """One made of OpenSSL 4, as our own engine; the openssl of Debian 12 does not know the group."""
    with HboneClient(world.client, SERVER_IP, world.leaf(CLIENT_ID)) as client:
        assert client.group == "X25519MLKEM768"


@pytest.mark.parametrize(
    ("options", "alert"),
    [
        pytest.param(["-tls1_2"], "alert protocol version", id="tls-1.2"),
        pytest.param(["-groups", "P-256"], "alert handshake failure", id="group"),
        pytest.param(["-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"], "alert handshake failure", id="cipher"),
        pytest.param(["-alpn", "http/1.1"], "alert no application protocol", id="alpn"),
    ],
)
def test_openssl_is_refused_what_hbone_is_not(world: World, options: list[str], alert: str) -> None:
    assert alert in world.openssl(*options)


@pytest.mark.parametrize("first", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"])
def test_of_the_two_suites_the_cheaper_one_is_chosen_whatever_the_client_prefers(world: World, first: str) -> None:
    suites = f"{first}:TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256"
    assert "Cipher is TLS_AES_128_GCM_SHA256" in world.openssl("-ciphersuites", suites)


def test_a_client_that_has_only_the_other_suite_gets_it(world: World) -> None:
    assert "Cipher is TLS_AES_256_GCM_SHA384" in world.openssl("-ciphersuites", "TLS_AES_256_GCM_SHA384")


def test_a_client_certificate_is_required(world: World) -> None:
    assert "alert certificate required" in world.openssl("-ign_eof", identity=None)


def test_a_client_certificate_of_another_ca_is_refused(world: World) -> None:
    files = world.files(MeshPki().leaf("spiffe://cluster.local/ns/demo/sa/impostor"))
    done = world.tool(
        "openssl", "s_client", "-connect", HBONE, "-cert", files["--cert"], "-key", files["--key"], "-ign_eof"
    )
    assert "alert unknown ca" in done.stdout + done.stderr


# ---- requests ----


def test_a_get_is_answered_400_over_http_2(world: World) -> None:
    done = world.curl("--http2")
    assert done.stdout == "2 400", done.stderr


def test_curl_over_http_1_is_refused(world: World) -> None:
    done = world.curl("--http1.1")
    assert done.returncode == 35  # no TLS connection
    assert "no application protocol" in done.stderr


def test_curl_without_a_certificate_is_refused(world: World) -> None:
    done = world.curl("--http2", identity=None)
    assert done.returncode
    assert done.stdout.endswith(" 000")


def test_nghttp_sees_the_settings_that_ztunnel_has(world: World) -> None:
    said = world.nghttp()
    assert "SETTINGS_INITIAL_WINDOW_SIZE(0x04):4194304" in said
    assert "SETTINGS_MAX_FRAME_SIZE(0x05):1048576" in said
    assert "SETTINGS_MAX_CONCURRENT_STREAMS(0x03):200" in said
    assert ":status: 400" in said


def test_nghttp_reaches_the_application_by_connect(world: World, application: Acceptor, tmp_path: Path) -> None:
    (tmp_path / "body").write_text("hello through nghttp")
    said = world.connect(f"{SERVER_IP}:8080", "-d", str(tmp_path / "body"))
    assert ":status: 200" in said
    assert BANNER.decode() + "hello through nghttp" in re.sub(r"\[ *[\d.]+\][^\n]*\n(?: {10}[^\n]*\n)*", "", said)
    assert len(application.seen) == 1


@pytest.mark.parametrize(
    ("authority", "status"),
    [
        pytest.param("nonsense", 400, id="no-port"),
        pytest.param(f"{CLIENT_IP}:8080", 400, id="another-pod"),
        pytest.param(f"{SERVER_IP}:15008", 503, id="our-own-port"),
        pytest.param(f"{SERVER_IP}:8081", 503, id="nobody-listens"),
    ],
)
def test_nghttp_is_refused_what_cannot_be_delivered(
    world: World, application: Acceptor, authority: str, status: int
) -> None:
    assert f":status: {status}" in world.connect(authority)
    assert not application.seen


def test_nghttp_of_a_denied_identity_is_answered_401(world: World, application: Acceptor) -> None:
    assert ":status: 401" in world.connect(f"{SERVER_IP}:8080", identity=DENIED_ID)
    assert not application.seen


# ---- the operator's ports ----


def _curl(world: World, path: str, *options: str) -> str:
    """Inside the agent's namespace: these ports are local."""
    done = world.tool("curl", "-sS", "--fail", "-m", "5", *options, f"http://127.0.0.1:{path}", at=world.server)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_reads_the_configuration_without_secrets(world: World) -> None:
    dump = _curl(world, "15000/config_dump")
    workloads = json.loads(dump)["workloads"]
    assert {each["name"] for each in workloads} == {"client", "server"}
    assert "PRIVATE KEY" not in dump


def test_curl_changes_the_log_level(world: World) -> None:
    _curl(world, "15000/logging?level=debug", "-X", "POST")
    assert "debug" in _curl(world, "15000/logging", "-X", "POST")
    _curl(world, "15000/logging?level=info", "-X", "POST")


def test_curl_finds_the_agent_ready_and_its_metrics(world: World) -> None:
    assert _curl(world, "15021/healthz/ready", "-w", "%{http_code}").endswith("200")
    for path in ("metrics", "stats/prometheus"):
        assert "# TYPE istio_tcp_connections_opened" in _curl(world, f"15020/{path}")


def test_the_admin_port_is_not_there_for_others(world: World) -> None:
    done = world.tool("curl", "-sS", "-m", "5", f"http://{SERVER_IP}:15000/config_dump")
    assert done.returncode == 7  # connection refused


def _without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
