"""The outcome catalogue: what the other side sees, and what the flow says, for everything that can go wrong."""

from __future__ import annotations

from contextlib import suppress

import pytest
from mesh_samples import policy, service, workload
from netns_builder import Topology
from path_mesh import (
    CLIENT,
    CLIENT_ID,
    CLIENT_IP,
    MARK,
    SERVER,
    SERVER_ID,
    SERVER_IP,
    STRANGER_IP,
    VIP,
    WEB,
    Path,
    is_reset,
    path,
    run,
    status,
)
from raw_peers import HboneClient, hbone_server

from ztunnel.core.model.flow import Flow
from ztunnel.core.model.policy import Action, Match
from ztunnel.core.model.workload import Health, Protocol
from ztunnel.link.messages import CertificateFailed, CertificateForgotten, StateSlice
from ztunnel.worker.proxy import pod as pod_module

NOBODY_IN = policy("nobody", Action.ALLOW, Match(destination_ports=(1,)))
"""An ALLOW policy that allows nothing real."""


async def ask(p: Path, authority: str, *more: tuple[str, str], method: str = "CONNECT") -> int:
    """The status of one request on a tunnel of its own."""
    await p.told()

    def request() -> int:
        with HboneClient(p.client, SERVER_IP, p.pki.leaf(CLIENT_ID)) as peer:
            return peer.request(authority, *more, method=method)

    return await run(request)


def is_early(flow: Flow) -> bool:
    """Refused before its parties were known."""
    return flow.edge == -1


# ---- inbound tunnels ----


REFUSED = {
    "ip mismatch": ("10.9.9.9:8080", 400, f"ip mismatch: {SERVER_IP} != 10.9.9.9"),
    "no port": (SERVER_IP, 400, SERVER_IP),
    "port zero": (f"{SERVER_IP}:0", 400, ":0"),
    "no host": (":8080", 400, ":8080"),
    "garbage": ("::::", 400, "::::"),
    "user info": (f"root@{SERVER_IP}:8080", 400, "root@"),
    "unknown hostname": ("unknown.demo:80", 503, "unknown hostname unknown.demo"),
    "port without target": ("web.demo:81", 503, "demo/web has no target for port 81"),
    "loop 15001": (f"{SERVER_IP}:15001", 503, "loop: "),
    "loop 15006": (f"{SERVER_IP}:15006", 503, "loop: "),
    "loop 15008": (f"{SERVER_IP}:15008", 503, "loop: "),
}


async def test_a_wrong_connect_gets_its_status_and_an_early_flow(topology: Topology) -> None:
    async with path(topology, near=None) as p:
        for number, (case, (authority, expected, why)) in enumerate(REFUSED.items(), 1):
            assert await ask(p, authority) == expected, case
            flow = await p.far.flow(number)
            assert is_early(flow), case
            assert why in flow.error, case
            assert flow.source.ip == CLIENT_IP, case
        assert (await status(p.far))["connections"] == 0


async def test_anything_but_connect_gets_400(topology: Topology) -> None:
    more = ((":scheme", "https"), (":path", "/"))
    async with path(topology, near=None) as p:
        for number, method in enumerate(("GET", "POST", "connect", ""), 1):
            assert await ask(p, f"{SERVER_IP}:8080", *more, method=method) == 400, method
            assert is_early(await p.far.flow(number)), method


@pytest.mark.parametrize("authority", [f"{SERVER_IP}:8080", "web.demo:80", "WEB.demo:80"])
async def test_a_right_connect_gets_200_and_reaches_the_application(topology: Topology, authority: str) -> None:
    async with path(topology, near=None) as p:
        app = p.application()

        def talk() -> None:
            with HboneClient(p.client, SERVER_IP, p.pki.leaf(CLIENT_ID)) as peer:
                assert peer.request(authority) == 200

        await run(talk)
        await app.accept()
        flow = await p.far.flow()
    assert not is_early(flow)
    assert p.far.edges[flow.edge].source.identity == CLIENT_ID
    assert p.far.edges[flow.edge].service_hostname == "web.demo"


async def test_a_refusing_application_is_503(topology: Topology) -> None:
    async with path(topology, near=None) as p:
        assert await ask(p, f"{SERVER_IP}:9") == 503
        flow = await p.far.flow()
    assert not is_early(flow)
    assert (flow.flag, flow.error) == ("CONNECT", f"cannot connect to {SERVER_IP}:9: Connection refused")


async def test_a_denied_peer_is_401_and_the_application_never_hears_of_it(topology: Topology) -> None:
    async with path(topology, near=None) as p:
        p.far.play(StateSlice(policies=(NOBODY_IN,)))
        app = p.application()
        assert await ask(p, f"{SERVER_IP}:8080") == 401
        flow = await p.far.flow()
        app.listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            app.listener.accept()
    assert not is_early(flow)
    assert flow.flag == "DENY"
    assert "allow policies exist, but none allowed" in flow.error


async def assert_reset_at_once(p: Path) -> None:
    """A tunnel to the server's pod is reset, perhaps before its connect() has returned."""
    with suppress(ConnectionResetError):
        sock = await run(lambda: p.client.connect(SERVER_IP, 15008, mark=MARK))
        with sock:
            assert await run(is_reset, sock)


async def test_a_pod_that_the_mesh_does_not_know_is_503(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_module, "WORKLOAD_WAIT", 0.05)
    async with path(topology, near=None) as p:
        with await run(lambda: HboneClient(p.client, SERVER_IP, p.pki.leaf(CLIENT_ID))) as peer:
            await run(peer.ping)
            p.far.play(StateSlice(removed_workloads=(SERVER.uid,)))
            await p.told()
            assert await run(peer.request, f"{SERVER_IP}:8080") == 503
        await assert_reset_at_once(p)
        flows = [await p.far.flow(number) for number in (1, 2)]
    assert all(is_early(flow) for flow in flows)
    assert all("workload demo/server (server) is not known" in flow.error for flow in flows)


async def test_a_pod_that_becomes_known_in_time_is_served(topology: Topology) -> None:
    async with path(topology, near=None) as p:
        app = p.application()
        with await run(lambda: HboneClient(p.client, SERVER_IP, p.pki.leaf(CLIENT_ID))) as peer:
            p.far.play(StateSlice(removed_workloads=(SERVER.uid,)))
            await p.told()
            stream = await run(peer.open, f"{SERVER_IP}:8080")
            await run(peer.ping)  # the request before it has been looked at
            assert not app.accepted
            p.far.play(StateSlice(workloads=(SERVER,)))
            assert await run(peer.status, stream) == 200
        await app.accept()


# ---- inbound plaintext ----


async def plain_refusal(p: Path, port: int) -> Flow:
    assert await p.is_refused(SERVER_IP, port, at=p.stranger)
    assert (await status(p.far))["connections"] == 0
    return await p.far.flow()


async def test_plaintext_denied(topology: Topology) -> None:
    async with path(topology, near=None) as p:
        p.far.play(StateSlice(policies=(NOBODY_IN,)))
        flow = await plain_refusal(p, 8080)
    assert (flow.flag, str(flow.destination)) == ("DENY", f"{SERVER_IP}:8080")
    assert not is_early(flow)
    assert not p.far.edges[flow.edge].mutual_tls


async def test_plaintext_to_nobody(topology: Topology) -> None:
    async with path(topology, near=None) as p:
        flow = await plain_refusal(p, 9)
    assert (flow.flag, flow.error) == ("CONNECT", f"cannot connect to {SERVER_IP}:9: Connection refused")


@pytest.mark.parametrize("port", [15001, 15006])
async def test_plaintext_to_our_own_listeners_is_a_loop(topology: Topology, port: int) -> None:
    async with path(topology, near=None) as p:
        flow = await plain_refusal(p, port)
    assert is_early(flow) or not flow.bytes_sent
    assert "loop: " in flow.error


# ---- outbound ----


async def refusal(p: Path, ip: str = VIP, port: int = 80) -> Flow:
    """The flow of a connection that the client sees reset."""
    assert await p.is_refused(ip, port)
    assert (await status(p.near))["connections"] == 0
    return await p.near.flow()


@pytest.mark.parametrize("ip", [CLIENT_IP, "127.0.0.1"])
@pytest.mark.parametrize("port", [15001, 15006, 15008])
async def test_a_client_cannot_reach_its_own_proxy(topology: Topology, ip: str, port: int) -> None:
    async with path(topology, far=None) as p:
        await p.is_refused(ip, port, say=b"GET / HTTP/1.1\r\n\r\n")
        flow = await p.near.flow()
        assert (await status(p.near))["connections"] == 0
    if port == 15008:  # over the loopback device the rules capture nothing: a peer without TLS
        assert flow.flag == "TLS_FAILURE"
    else:
        assert "loop: " in flow.error


@pytest.mark.parametrize("port", [15001, 15006, 15008])
async def test_a_client_cannot_reach_another_proxy(topology: Topology, port: int) -> None:
    async with path(topology) as p:
        outbound = await refusal(p, SERVER_IP, port)
        inbound = await p.far.flow()
    assert "503" in outbound.error
    assert "loop: " in inbound.error


async def test_an_unknown_own_workload(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_module, "WORKLOAD_WAIT", 0.05)
    async with path(topology, far=None, workloads=(SERVER,)) as p:
        flow = await refusal(p)
    assert is_early(flow)
    assert "workload demo/client (client) is not known" in flow.error


@pytest.mark.parametrize("case", ["none", "unhealthy"])
async def test_a_service_without_healthy_endpoints(topology: Topology, case: str) -> None:
    sick = workload("server", SERVER_IP, backs={"demo/web.demo": {80: 8080}}, status=Health.UNHEALTHY)
    async with path(topology, far=None, workloads=(CLIENT,) if case == "none" else (CLIENT, sick)) as p:
        flow = await refusal(p)
    assert is_early(flow)
    assert "demo/web" in flow.error
    assert "healthy" in flow.error or "endpoint" in flow.error


async def test_a_service_port_that_nobody_declared(topology: Topology) -> None:
    async with path(topology, far=None) as p:
        flow = await refusal(p, VIP, 81)
    assert is_early(flow)
    assert "81" in flow.error


async def test_a_ca_that_refuses_the_identity(topology: Topology) -> None:
    async with path(topology, far=None) as p:
        p.near.issue = lambda identity: CertificateFailed(identity, "the token has expired")
        p.near.play(CertificateForgotten(CLIENT.identity))
        flow = await refusal(p)
    assert flow.flag == "IDENTITY_ERROR"
    assert f"no certificate for {CLIENT_ID}: the token has expired" in flow.error
    assert not is_early(flow)


async def test_a_pod_without_certificate_closes_tunnels_that_come_in(topology: Topology) -> None:
    async with path(topology, near=None) as p:
        p.far.issue = lambda identity: CertificateFailed(identity, "the token has expired")
        p.far.play(CertificateForgotten(SERVER.identity))
        await p.told()
        await assert_reset_at_once(p)
        flow = await p.far.flow()
    assert flow.flag == "IDENTITY_ERROR"
    assert is_early(flow)


async def test_a_peer_that_is_somebody_else(topology: Topology) -> None:
    async with path(topology, far=None) as p:
        impostor = "spiffe://cluster.local/ns/demo/sa/impostor"
        async with hbone_server(p.server, p.pki.leaf(impostor)) as peer:
            flow = await refusal(p)
            assert not peer.requests
    assert flow.flag == "TLS_FAILURE"
    assert f"the peer is {impostor}, expected {SERVER_ID}" in flow.error
    assert not is_early(flow)


@pytest.mark.parametrize("answer", ["400", "401", "404", "503"])
async def test_a_peer_that_refuses_the_connect(topology: Topology, answer: str) -> None:
    async with path(topology, far=None) as p, hbone_server(p.server, p.pki.leaf(SERVER_ID), answer=answer):
        flow = await refusal(p)
        assert (await status(p.near))["tunnels"] == 1, "the tunnel itself is fine"
    assert (flow.flag, flow.hbone_address) == ("CONNECT", f"{SERVER_IP}:8080")
    assert answer in flow.error


async def test_nobody_on_the_tunnel_port(topology: Topology) -> None:
    async with path(topology, far=None) as p:
        flow = await refusal(p)
    assert (flow.flag, str(flow.destination)) == ("CONNECT", f"{SERVER_IP}:15008")
    assert flow.error == f"cannot connect to {SERVER_IP}:15008: Connection refused"
    assert not is_early(flow)


async def test_nobody_at_a_plain_destination(topology: Topology) -> None:
    async with path(topology, far=None) as p:
        flow = await refusal(p, STRANGER_IP, 9)
    assert (flow.flag, flow.error) == ("CONNECT", f"cannot connect to {STRANGER_IP}:9: Connection refused")
    assert flow.why == "unknown destination, passed through"


async def test_a_workload_that_speaks_no_hbone_is_reached_plainly(topology: Topology) -> None:
    stranger = workload("stranger", STRANGER_IP, protocol=Protocol.TCP, backs={"demo/old.demo": {80: 8080}})
    old = service("old", "10.100.0.9")
    async with path(topology, far=None, workloads=(CLIENT, stranger), services=(WEB, old)) as p:
        client, served = await p.pair(p.application(at=p.stranger), "10.100.0.9", 80)
        served.close()
        client.close()
        flow = await p.near.flow()
    assert (flow.error, str(flow.destination), flow.hbone_address) == ("", f"{STRANGER_IP}:8080", "")
    assert p.near.edges[flow.edge].service_hostname == "old.demo"
