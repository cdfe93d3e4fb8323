"""Authorization on the real path: before the application is dialled, by who and whence, and again when it changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from mesh_samples import policy, workload
from netns_builder import Acceptor, Pod, Topology
from path_mesh import (
    CLIENT_IP,
    SERVER,
    SERVER_IP,
    STRANGER_IP,
    VIP,
    VIP6,
    Path,
    is_reset,
    path,
    read_exactly,
    run,
    status,
)

from ztunnel.core.model.policy import Action, Match, MatchKind, Policy, PolicyScope, ServiceAccountMatch, StringMatch

EXACT, PREFIX, SUFFIX, PRESENCE = MatchKind.EXACT, MatchKind.PREFIX, MatchKind.SUFFIX, MatchKind.PRESENCE

IS_THE_CLIENT = {
    "namespace": Match(namespaces=(StringMatch(EXACT, "demo"),)),
    "namespace prefix": Match(namespaces=(StringMatch(PREFIX, "de"),)),
    "principal": Match(principals=(StringMatch(EXACT, "cluster.local/ns/demo/sa/client"),)),
    "principal suffix": Match(principals=(StringMatch(SUFFIX, "/sa/client"),)),
    "any principal": Match(principals=(StringMatch(PRESENCE),)),
    "service account": Match(service_accounts=(ServiceAccountMatch("demo", "client"),)),
    "source": Match(source_ips=("10.1.0.0/16",)),
    "destination": Match(destination_ips=(SERVER_IP,)),
    "port": Match(destination_ports=(8080,)),
    "not another principal": Match(not_principals=(StringMatch(EXACT, "cluster.local/ns/demo/sa/other"),)),
    "not another source": Match(not_source_ips=("10.9.0.0/16",)),
    "all at once": Match(namespaces=(StringMatch(EXACT, "demo"),), source_ips=(CLIENT_IP,), destination_ports=(8080,)),
}
"""Each matches a connection of the client to the server's port 8080 in a tunnel."""
IS_NOT_THE_CLIENT = {
    "principal": Match(principals=(StringMatch(EXACT, "cluster.local/ns/demo/sa/other"),)),
    "service account": Match(service_accounts=(ServiceAccountMatch("other", "client"),)),
    "source": Match(source_ips=("10.9.0.0/16",)),
    "port": Match(destination_ports=(9090,)),
    "one of two": Match(namespaces=(StringMatch(EXACT, "demo"),), destination_ports=(9090,)),
}


def allow(*matches: Match, **fields: object) -> Policy:
    return policy("rule", Action.ALLOW, *matches, **fields)


def deny(*matches: Match, **fields: object) -> Policy:
    return policy("rule", Action.DENY, *matches, **fields)


async def is_let_through(p: Path, app: Acceptor, ip: str = VIP, port: int = 80, at: Pod | None = None) -> bool:
    """Whether the application greets a new connection; if not, nobody has dialled it."""
    before = len(app.seen)
    try:
        sock = await p.connect(ip, port, at=at)
        if await run(sock.recv, 1) == b"!":
            return True
    except ConnectionResetError:
        pass
    assert len(app.seen) == before, "refused, but only after the application was dialled"
    return False


@asynccontextmanager
async def served(topology: Topology, *policies: Policy) -> AsyncIterator[tuple[Path, Acceptor]]:
    async with path(topology) as p:
        p.play(policies=policies)
        with Acceptor(p.server, None, 8080, banner=b"!") as app:
            yield p, app


async def test_every_matcher_decides_for_a_peer_with_an_identity(topology: Topology) -> None:
    async with served(topology) as (p, app):
        for name, match in IS_THE_CLIENT.items():
            p.play(policies=(allow(match),))
            assert await is_let_through(p, app), f"allow {name}"
            p.play(policies=(deny(match),))
            assert not await is_let_through(p, app), f"deny {name}"
        for name, match in IS_NOT_THE_CLIENT.items():
            p.play(policies=(allow(match),))
            assert not await is_let_through(p, app), f"allow only {name}"
            p.play(policies=(deny(match),))
            assert await is_let_through(p, app), f"deny only {name}"


async def test_plaintext_has_no_identity(topology: Topology) -> None:
    """It never matches a positive principal, whatever its address, and always passes a negative one."""
    everybody = StringMatch(PRESENCE)
    cases = [
        (allow(Match(principals=(everybody,))), False),
        (allow(Match(namespaces=(StringMatch(EXACT, "demo"),))), False),
        (allow(Match(not_principals=(everybody,))), True),
        (deny(Match(not_principals=(everybody,))), False),
        (deny(Match(principals=(everybody,))), True),
        (allow(Match(source_ips=(STRANGER_IP,))), True),
        (deny(Match(source_ips=(STRANGER_IP,))), False),
        (allow(Match(destination_ports=(8080,))), True),
    ]
    async with served(topology) as (p, app):
        for rule, expected in cases:
            p.play(policies=(rule,))
            assert await is_let_through(p, app, SERVER_IP, 8080, p.stranger) is expected, rule


async def test_the_caller_of_a_captured_plain_connection_is_nobody_even_in_the_mesh(topology: Topology) -> None:
    """A workload that is known by its address proves nothing without a certificate."""
    stranger = workload("stranger", STRANGER_IP)
    async with served(topology, allow(Match(principals=(StringMatch(SUFFIX, "/sa/stranger"),)))) as (p, app):
        p.play(workloads=(stranger,))
        assert not await is_let_through(p, app, SERVER_IP, 8080, p.stranger)


async def test_deny_goes_before_allow_and_allow_closes_the_rest(topology: Topology) -> None:
    anyone, client = Match(not_destination_ports=(1,)), IS_THE_CLIENT["principal"]
    async with served(topology, allow(anyone)) as (p, app):
        assert await is_let_through(p, app)
        p.play(policies=(policy("second", Action.DENY, client),))
        assert not await is_let_through(p, app)
        p.play(removed_policies=("demo/second",))
        assert await is_let_through(p, app)


async def test_scopes_reach_whom_they_name(topology: Topology) -> None:
    rule = deny(IS_THE_CLIENT["port"], scope=PolicyScope.WORKLOAD_SELECTOR)
    elsewhere = deny(IS_THE_CLIENT["port"], namespace="other")
    everywhere = deny(IS_THE_CLIENT["port"], namespace="istio-system", scope=PolicyScope.GLOBAL)
    async with served(topology, rule, elsewhere) as (p, app):
        assert await is_let_through(p, app), "a selector policy that selects nobody, a policy of another namespace"
        p.play(workloads=(msgspec.structs.replace(SERVER, authorization_policies=("demo/rule",)),))
        assert not await is_let_through(p, app), "selected"
        p.play(workloads=(SERVER,))
        assert await is_let_through(p, app)
        p.play(policies=(everywhere,))
        assert not await is_let_through(p, app), "a policy of the root namespace"


async def test_a_policy_that_is_listed_but_not_known_lets_nobody_in(topology: Topology) -> None:
    async with served(topology) as (p, app):
        p.play(workloads=(msgspec.structs.replace(SERVER, authorization_policies=("demo/missing",)),))
        assert not await is_let_through(p, app)
        flow = await p.far.flow()
    assert flow.flag == "DENY"
    assert "demo/missing" in flow.error


async def test_a_dry_run_changes_nothing(topology: Topology) -> None:
    async with served(topology, deny(IS_THE_CLIENT["port"], dry_run=True)) as (p, app):
        assert await is_let_through(p, app)


async def test_the_flow_names_the_policy(topology: Topology) -> None:
    async with served(topology, deny(IS_THE_CLIENT["port"])) as (p, app):
        assert not await is_let_through(p, app)
        inbound, outbound = await p.far.flow(), await p.near.flow()
    assert inbound.error == "connection closed due to policy rejection: explicitly denied by: demo/rule"
    assert "401" in outbound.error


# ---- while connections are open ----


@pytest.mark.parametrize("carrier", ["hbone", "hbone6", "plaintext"])
async def test_open_connections_are_looked_at_again(topology: Topology, carrier: str) -> None:
    async with served(topology) as (p, app):
        where = {"hbone": (VIP, 80), "hbone6": (VIP6, 80), "plaintext": (SERVER_IP, 8080)}[carrier]
        sock = await p.connect(*where, at=p.stranger if carrier == "plaintext" else p.client)
        assert await run(sock.recv, 1) == b"!"
        p.play(policies=(deny(Match(destination_ports=(9090,))),))
        await run(sock.sendall, b"still open")
        assert await run(read_exactly, sock, 10) == b"still open"
        p.play(policies=(deny(Match(destination_ports=(8080,))),))
        assert await run(is_reset, sock)
        flow = await p.far.flow()
        assert not (await status(p.far))["connections"]
        assert app.seen
    assert flow.flag == "DENY"
    assert flow.error == "connection closed due to policy change: explicitly denied by: demo/rule"
    assert (flow.bytes_sent, flow.bytes_received) == (11, 10)


async def test_a_selector_that_newly_selects_the_pod_closes_its_connections(topology: Topology) -> None:
    """The policy is old, the workload's list of policies is new (Istio's ztunnel has a gap there)."""
    async with served(topology, deny(IS_THE_CLIENT["port"], scope=PolicyScope.WORKLOAD_SELECTOR)) as (p, _app):
        sock = await p.connect()
        assert await run(sock.recv, 1) == b"!"
        p.play(workloads=(msgspec.structs.replace(SERVER, authorization_policies=("demo/rule",)),))
        assert await run(is_reset, sock)
        assert (await p.far.flow()).flag == "DENY"


async def test_an_allow_that_is_withdrawn_closes_what_it_had_let_in(topology: Topology) -> None:
    other = policy("other", Action.ALLOW, IS_NOT_THE_CLIENT["principal"])
    async with served(topology, allow(IS_THE_CLIENT["principal"]), other) as (p, _app):
        sock = await p.connect()
        assert await run(sock.recv, 1) == b"!"
        p.play(removed_policies=("demo/rule",))
        assert await run(is_reset, sock)
        assert "none allowed" in (await p.far.flow()).error


async def test_a_change_in_slices_counts_when_it_is_whole(topology: Topology) -> None:
    """In between, policies contradict each other; nobody may be cut for that."""
    async with served(topology, allow(IS_THE_CLIENT["principal"])) as (p, _app):
        sock = await p.connect()
        assert await run(sock.recv, 1) == b"!"
        p.play(policies=(allow(IS_NOT_THE_CLIENT["principal"]),), last=False)
        p.play(policies=(policy("second", Action.ALLOW, IS_THE_CLIENT["principal"]),))
        await run(sock.sendall, b"still open")
        assert await run(read_exactly, sock, 10) == b"still open"


async def test_two_hundred_open_connections_are_looked_at_and_only_those_denied_are_closed(topology: Topology) -> None:
    async with served(topology) as (p, _app):
        stay = [await p.connect() for _ in range(100)]
        go = [await p.connect(SERVER_IP, 8080, at=p.stranger) for _ in range(100)]
        for sock in (*stay, *go):
            assert await run(sock.recv, 1) == b"!"
        p.play(policies=(allow(Match(principals=(StringMatch(PRESENCE),))),))
        await p.far.flow(100)
        for sock in go:
            assert await run(is_reset, sock)
        assert (await status(p.far))["connections"] == 100
        for sock in stay:
            await run(sock.sendall, b"x")
            assert await run(sock.recv, 1) == b"x"
    assert {flow.flag for flow in p.far.flows[:100]} == {"DENY"}
