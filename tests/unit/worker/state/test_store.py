"""The store: look-ups by every key, endpoints in any order of arrival, policies, and updates in place."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_samples import mesh, policy, service, slice_of, workload

from ztunnel.core.decide import rbac
from ztunnel.core.model.address import Address, NetworkAddress
from ztunnel.core.model.connection import Connection
from ztunnel.core.model.policy import Action, Match, Policy, PolicyScope
from ztunnel.core.model.service import CidrVip, HealthPolicy, LoadBalancer, Service, Visibility
from ztunnel.core.model.workload import Health, NetworkMode, Protocol, Workload
from ztunnel.link.messages import StateSlice
from ztunnel.worker.state.index import BestFirst, PrefixTable
from ztunnel.worker.state.store import Store

BACKS = {"demo/web.demo": {80: 8080}}
WEB = service("web", "10.9.0.1")


def removal(*, workloads: Iterable[str] = (), services: Iterable[str] = (), policies: Iterable[str] = ()) -> StateSlice:
    return StateSlice(
        removed_workloads=tuple(workloads), removed_services=tuple(services), removed_policies=tuple(policies)
    )


# ---- workloads ----


def test_a_workload_is_found_by_all_its_keys_and_by_none_after_its_removal() -> None:
    pod = workload("web-1", "10.0.1.1", "fd00::11", network="net1", hostname="web-1.example.com")
    store = mesh(pod)
    found = lambda: [  # noqa: E731
        store.workload(pod.uid),
        store.workload_at("net1", "10.0.1.1"),
        store.workload_at("net1", "fd00::11"),
        store.workload_named("demo", "web-1.example.com"),
        store.workload_of("demo", "web-1", "web-1"),
    ]
    assert found() == [pod] * 5
    assert store.workload_at("", "10.0.1.1") is None
    store.apply(removal(workloads=[pod.uid]))
    assert found() == [None] * 5


def test_an_updated_workload_is_not_found_by_its_old_keys() -> None:
    store = mesh(workload("web-1", "10.0.1.1", backs=BACKS), WEB)
    moved = workload("web-1", "10.0.1.2")
    store.apply(slice_of(moved))
    assert store.workload_at("", "10.0.1.1") is None
    assert store.workload_at("", "10.0.1.2") == moved
    assert store.endpoints(WEB) == {}


def test_a_host_network_workload_is_never_found_by_address() -> None:
    host = workload("host", "10.0.4.4", network_mode=NetworkMode.HOST_NETWORK, backs=BACKS)
    store = mesh(host, WEB)
    assert store.workload_at("", "10.0.4.4") is None
    assert set(store.endpoints(WEB)) == {host.uid}


POD = workload("pod", "10.0.1.1", uid="c//Pod/demo/pod", protocol=Protocol.TCP)
ENTRY_HBONE = workload("entry", "10.0.1.1", uid="c/networking.istio.io/WorkloadEntry/demo/b")
ENTRY_TCP = workload("entry", "10.0.1.1", uid="c/networking.istio.io/WorkloadEntry/demo/a", protocol=Protocol.TCP)


@pytest.mark.parametrize("order", [(POD, ENTRY_HBONE, ENTRY_TCP), (ENTRY_TCP, ENTRY_HBONE, POD)])
def test_of_workloads_that_share_an_address_pods_win_then_hbone(order: tuple[Workload, ...]) -> None:
    store = mesh(*order)
    assert store.workload_at("", "10.0.1.1") == POD
    store.apply(removal(workloads=[POD.uid]))
    assert store.workload_at("", "10.0.1.1") == ENTRY_HBONE
    store.apply(removal(workloads=[ENTRY_HBONE.uid]))
    assert store.workload_at("", "10.0.1.1") == ENTRY_TCP


def test_a_pod_is_known_by_namespace_name_and_service_account_together() -> None:
    store = mesh(workload("web-1", "10.0.1.1", service_account="web"))
    assert store.workload_of("demo", "web-1", "web") is not None
    assert store.workload_of("demo", "web-1", "other") is None


def test_removing_what_is_not_there_is_no_error() -> None:
    store = Store()
    store.apply(removal(workloads=["gone"], services=["demo/gone"], policies=["demo/gone"]))
    assert store.revision == 1


# ---- services ----


def test_a_service_is_found_by_all_its_keys_and_by_none_after_its_removal() -> None:
    prefix = CidrVip("", "10.20.0.0", 16)
    web = service("web", "10.9.0.1", "fd09::1", cidr_vips=(prefix,))
    store = mesh(web)
    found = lambda: [  # noqa: E731
        store.service("demo", "web.demo"),
        store.service_named("web.demo", "other"),
        store.service_at("", "10.9.0.1", "other"),
        store.service_at("", "fd09::1", "other"),
        store.service_at("", "10.20.1.1", "other"),
    ]
    assert found() == [web] * 5
    assert store.service_at("net2", "10.9.0.1", "demo") is None
    store.apply(removal(services=["demo/web.demo"]))
    assert found() == [None] * 5


SHARED = (NetworkAddress("", "10.9.0.9"),)
OURS = service("s", namespace="demo", hostname="shared.example.com", vips=SHARED)
CANONICAL = service("s", namespace="zeta", hostname="shared.example.com", vips=SHARED, canonical=True)
OTHER = service("s", namespace="alpha", hostname="shared.example.com", vips=SHARED)
PRIVATE = service(
    "s", namespace="aaaa", hostname="shared.example.com", vips=SHARED, visibility=Visibility.NAMESPACE, canonical=True
)


@pytest.mark.parametrize(
    ("services", "client", "expected"),
    [
        ((OTHER, CANONICAL, OURS), "demo", OURS),
        ((OTHER, CANONICAL, OURS), "third", CANONICAL),
        ((OTHER, OURS), "third", OTHER),
        ((PRIVATE, OTHER), "third", OTHER),
        ((PRIVATE, OTHER), "aaaa", PRIVATE),
        ((PRIVATE,), "third", None),
    ],
    ids=[
        "the client's own namespace",
        "else the canonical one",
        "else the first by name",
        "a hidden one does not count",
        "except at home",
        "and is not found elsewhere",
    ],
)
def test_services_that_share_an_address_and_a_host_name(
    services: tuple[Service, ...], client: str, expected: Service | None
) -> None:
    for order in (services, services[::-1]):
        store = mesh(*order)
        assert store.service_at("", "10.9.0.9", client) == expected
        assert store.service_named("shared.example.com", client) == expected


@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        ("10.20.30.40", "exact"),
        ("10.20.30.41", "narrow"),
        ("10.20.9.9", "wide"),
        ("10.99.9.9", None),
        ("fd20::1", "six"),
    ],
)
def test_the_longest_prefix_wins_and_an_exact_address_before_all(ip: str, expected: str | None) -> None:
    store = mesh(
        service("wide", cidr_vips=(CidrVip("", "10.20.0.0", 16),)),
        service("narrow", cidr_vips=(CidrVip("", "10.20.30.0", 24),)),
        service("exact", "10.20.30.40"),
        service("six", cidr_vips=(CidrVip("", "fd20::", 64),)),
    )
    found = store.service_at("", ip, "demo")
    assert (found.name if found else None) == expected


def test_a_prefix_service_shows_new_endpoints_at_once() -> None:
    wide = service("web", cidr_vips=(CidrVip("", "10.20.0.0", 16),))
    store = mesh(wide)
    store.apply(slice_of(workload("web-1", "10.0.1.1", backs=BACKS)))
    found = store.service_at("", "10.20.1.1", "demo")
    assert found is not None
    assert len(store.endpoints(found)) == 1


# ---- endpoints ----


HEALTHY = workload("web-1", "10.0.1.1", backs=BACKS)
SICK = workload("web-2", "10.0.1.2", backs=BACKS, status=Health.UNHEALTHY)
ALLOW_ALL = service("web", "10.9.0.1", load_balancer=LoadBalancer(health_policy=HealthPolicy.ALLOW_ALL))


@pytest.mark.parametrize("order", [(WEB, HEALTHY), (HEALTHY, WEB)], ids=["service first", "workload first"])
def test_endpoints_come_from_workloads_in_any_order(order: tuple[Any, ...]) -> None:
    store = Store()
    for thing in order:
        store.apply(slice_of(thing))
    endpoint = store.endpoints(WEB)[HEALTHY.uid]
    assert (endpoint.workload_uid, endpoint.ports, endpoint.status) == (HEALTHY.uid, {80: 8080}, Health.HEALTHY)


def test_a_service_that_comes_back_finds_its_endpoints() -> None:
    store = mesh(WEB, HEALTHY)
    store.apply(removal(services=["demo/web.demo"]))
    store.apply(slice_of(WEB))
    assert set(store.endpoints(WEB)) == {HEALTHY.uid}


def test_a_workload_that_went_before_its_service_came_is_no_endpoint() -> None:
    store = mesh(HEALTHY)
    store.apply(removal(workloads=[HEALTHY.uid]))
    store.apply(slice_of(WEB))
    assert store.endpoints(WEB) == {}


def test_unhealthy_endpoints_are_shown_only_by_a_service_that_allows_all() -> None:
    assert set(mesh(WEB, HEALTHY, SICK).endpoints(WEB)) == {HEALTHY.uid}
    assert set(mesh(ALLOW_ALL, HEALTHY, SICK).endpoints(ALLOW_ALL)) == {HEALTHY.uid, SICK.uid}


def test_switching_a_live_service_to_allow_all_and_back() -> None:
    store = mesh(WEB, HEALTHY, SICK)
    store.apply(slice_of(ALLOW_ALL))
    assert set(store.endpoints(ALLOW_ALL)) == {HEALTHY.uid, SICK.uid}
    store.apply(slice_of(WEB))
    assert set(store.endpoints(WEB)) == {HEALTHY.uid}


def test_a_workload_that_recovers_is_an_endpoint_once() -> None:
    store = mesh(ALLOW_ALL, SICK)
    store.apply(slice_of(workload("web-2", "10.0.1.2", backs=BACKS)))
    assert [each.status for each in store.endpoints(ALLOW_ALL).values()] == [Health.HEALTHY]


# ---- policies ----

ANY = Match(destination_ports=(8080,))
MESH_WIDE = policy("a-global", Action.DENY, ANY, namespace="istio-system", scope=PolicyScope.GLOBAL)
DEMO_WIDE = policy("b-demo", Action.ALLOW, ANY)
OTHER_WIDE = policy("c-other", Action.ALLOW, ANY, namespace="other")
SELECTED = policy("d-selected", Action.ALLOW, ANY, scope=PolicyScope.WORKLOAD_SELECTOR)
UNSELECTED = policy("e-unselected", Action.ALLOW, ANY, scope=PolicyScope.WORKLOAD_SELECTOR)
TARGET = workload("t", "10.0.1.1", authorization_policies=("demo/d-selected",))


def keys(store: Store, pod: Workload) -> tuple[list[str], list[str]]:
    policies, unknown = store.policies_for(pod)
    return [each.key for each in policies], list(unknown)


def test_policies_of_the_mesh_the_namespace_and_the_list_apply() -> None:
    store = mesh(TARGET, UNSELECTED, SELECTED, OTHER_WIDE, DEMO_WIDE, MESH_WIDE)
    assert keys(store, TARGET) == (["demo/b-demo", "demo/d-selected", "istio-system/a-global"], [])


def test_a_listed_policy_that_is_not_known_is_named_and_denies() -> None:
    store = mesh(TARGET)
    assert keys(store, TARGET) == ([], ["demo/d-selected"])
    connection = Connection(None, Address("10.0.0.1", 1), Address("10.0.1.1", 8080))
    assert not rbac.evaluate(*store.compiled_for(TARGET), connection).allowed
    store.apply(slice_of(SELECTED))
    assert rbac.evaluate(*store.compiled_for(TARGET), connection).allowed


def test_a_policy_that_is_listed_and_applies_anyway_counts_once() -> None:
    pod = workload("t", "10.0.1.1", authorization_policies=("demo/b-demo",))
    assert keys(mesh(pod, DEMO_WIDE), pod) == (["demo/b-demo"], [])


def test_a_policy_that_changes_its_scope_moves() -> None:
    store = mesh(TARGET, DEMO_WIDE)
    store.apply(slice_of(policy("b-demo", Action.ALLOW, ANY, scope=PolicyScope.WORKLOAD_SELECTOR)))
    assert keys(store, TARGET)[0] == []


def test_the_answer_is_computed_once_until_policies_or_the_workload_change() -> None:
    store = mesh(TARGET, SELECTED)
    first = store.compiled_for(TARGET)[0]
    store.apply(slice_of(workload("stranger", "10.0.1.9"), WEB))
    assert store.compiled_for(TARGET)[0] is first
    store.apply(slice_of(DEMO_WIDE))
    assert len(store.compiled_for(TARGET)[0]) == 2
    listless = workload("t", "10.0.1.1")
    store.apply(slice_of(listless))
    assert [each.key for each in store.compiled_for(listless)[0]] == ["demo/b-demo"]


def test_an_older_copy_of_a_workload_gets_its_own_answer_and_leaves_the_current_one() -> None:
    store = mesh(TARGET, SELECTED)
    current = store.workload(TARGET.uid)
    assert current is not None
    answer = store.compiled_for(current)[0]
    assert keys(store, workload("t", "10.0.1.1")) == ([], [])
    assert store.compiled_for(current)[0] is answer


def test_each_policy_is_compiled_once_when_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def counting(each: Policy) -> rbac.CompiledPolicy:
        compiled.append(each.key)
        return rbac.compile_policy(each)

    monkeypatch.setattr("ztunnel.worker.state.store.compile_policy", counting)
    store = mesh(TARGET, SELECTED, DEMO_WIDE)
    for number in range(3):
        store.compiled_for(workload(f"w{number}", "10.0.1.1"))
    assert sorted(compiled) == ["demo/b-demo", "demo/d-selected"]


def test_a_policy_that_cannot_be_read_in_full_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ztunnel.worker.state"):
        mesh(policy("broken", Action.DENY, Match(source_ips=("10.0.0.0/99",))))
    assert caplog.messages == ["policy demo/broken: source_ips '10.0.0.0/99' cannot be read, taken as matching"]


# ---- changes ----


def test_subscribers_hear_each_applied_slice_after_it_is_in_force() -> None:
    store = Store()
    heard: list[tuple[int, Workload | None]] = []
    unsubscribe = store.subscribe(lambda change: heard.append((store.revision, store.workload(HEALTHY.uid))))
    store.apply(slice_of(HEALTHY))
    store.apply(removal(workloads=[HEALTHY.uid]))
    unsubscribe()
    unsubscribe()
    store.apply(slice_of(HEALTHY))
    assert heard == [(1, HEALTHY), (2, None)]


def test_a_subscriber_may_leave_while_it_is_told() -> None:
    store = Store()
    heard: list[str] = []
    leave = store.subscribe(lambda change: (heard.append("first"), leave()))  # type: ignore[func-returns-value]
    store.subscribe(lambda change: heard.append("second"))
    store.apply(StateSlice())
    store.apply(StateSlice())
    assert heard == ["first", "second", "second"]


def test_within_a_slice_removals_come_last() -> None:
    store = Store()
    store.apply(StateSlice(workloads=(HEALTHY,), removed_workloads=(HEALTHY.uid,)))
    assert store.workload(HEALTHY.uid) is None


def test_dumps_see_everything_that_is_known() -> None:
    store = mesh(HEALTHY, WEB, DEMO_WIDE)
    assert (list(store.workloads()), list(store.services())) == ([HEALTHY], [WEB])
    assert [each.policy for each in store.policies()] == [DEMO_WIDE]


def test_a_change_touches_only_the_entries_it_names() -> None:
    others = [workload(f"o{n}", f"10.1.0.{n}", backs={f"demo/s{n}.demo": {80: 80}}) for n in range(50)]
    services = [service(f"s{n}", f"10.9.1.{n}") for n in range(50)]
    store = mesh(*others, *services, WEB, HEALTHY)
    shown = [store.endpoints(each) for each in services]
    entries = [store._by_address.get(("", each.workload_ips[0])) for each in others]
    store.apply(slice_of(workload("web-1", "10.0.1.7", backs=BACKS), ALLOW_ALL, DEMO_WIDE))
    store.apply(removal(workloads=[HEALTHY.uid], services=["demo/web.demo"]))
    assert all(store.endpoints(each) is before for each, before in zip(services, shown, strict=True))
    assert all(
        store._by_address.get(("", each.workload_ips[0])) is before
        for each, before in zip(others, entries, strict=True)
    )


# ---- properties: any history of changes ends where a fresh store starts ----

IPS = ["10.0.0.1", "10.0.0.2", "fd00::1"]
NAMESPACES = ["demo", "other"]
SERVICE_NAMES = [f"{namespace}/{name}.demo" for namespace in NAMESPACES for name in ("s0", "s1")]
POLICY_NAMES = ["demo/p0", "demo/p1", "other/p0"]
PREFIXES = [
    CidrVip("", "10.0.0.0", 8),
    CidrVip("", "10.0.0.0", 30),
    CidrVip("", "10.0.0.3", 30),
    CidrVip("", "fd00::", 8),
]


def some(values: Iterable[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(list(values)), max_size=3).map(tuple)


WORKLOADS = st.builds(
    lambda number, namespace, ips, kind, **fields: workload(
        f"w{number}", *ips, uid=f"c/{kind}/{number}", namespace=namespace, **fields
    ),
    st.integers(0, 3),
    st.sampled_from(NAMESPACES),
    some(IPS),
    st.sampled_from(["/Pod", "Entry"]),
    backs=st.dictionaries(st.sampled_from(SERVICE_NAMES), st.just({80: 8080})),
    hostname=st.sampled_from(["", "h0", "h1"]),
    protocol=st.sampled_from(list(Protocol)),
    network_mode=st.sampled_from(list(NetworkMode)),
    status=st.sampled_from(list(Health)),
    authorization_policies=some(POLICY_NAMES),
)
SERVICES = st.builds(
    lambda name, vips, prefixes, **fields: service(
        "s", *vips, namespace=name.split("/")[0], hostname=name.split("/")[1], cidr_vips=prefixes, **fields
    ),
    st.sampled_from(SERVICE_NAMES),
    some(IPS),
    some(PREFIXES),
    canonical=st.booleans(),
    visibility=st.sampled_from(list(Visibility)),
    load_balancer=st.sampled_from([LoadBalancer(), LoadBalancer(health_policy=HealthPolicy.ALLOW_ALL)]),
)
POLICIES = st.builds(
    lambda name, scope, action: policy(name.split("/")[1], action, ANY, namespace=name.split("/")[0], scope=scope),
    st.sampled_from(POLICY_NAMES),
    st.sampled_from(list(PolicyScope)),
    st.sampled_from(list(Action)),
)
SLICES = st.builds(
    StateSlice,
    workloads=st.lists(WORKLOADS, max_size=3).map(tuple),
    services=st.lists(SERVICES, max_size=3).map(tuple),
    policies=st.lists(POLICIES, max_size=2).map(tuple),
    removed_workloads=some([f"c/{kind}/{number}" for kind in ("/Pod", "Entry") for number in range(4)]),
    removed_services=some(SERVICE_NAMES),
    removed_policies=some(POLICY_NAMES),
)


def answers(store: Store) -> dict[str, Any]:
    """Everything the store can be asked, over the small universe above."""
    workloads = sorted(store.workloads(), key=lambda each: each.uid)
    services = sorted(store.services(), key=lambda each: each.key)
    return {
        "workloads": workloads,
        "services": services,
        "policies": sorted(each.key for each in store.policies()),
        "at": {ip: store.workload_at("", ip) for ip in IPS},
        "named": {(ns, name): store.workload_named(ns, name) for ns in NAMESPACES for name in ("h0", "h1")},
        "pods": {(ns, n): store.workload_of(ns, f"w{n}", f"w{n}") for ns in NAMESPACES for n in range(4)},
        "vips": {(ip, ns): store.service_at("", ip, ns) for ip in [*IPS, "10.0.0.9"] for ns in [*NAMESPACES, "x"]},
        "hosts": {(h, ns): store.service_named(h, ns) for h in ("s0.demo", "s1.demo") for ns in [*NAMESPACES, "x"]},
        "endpoints": {each.key: dict(store.endpoints(each)) for each in services},
        "applicable": {each.uid: store.policies_for(each) for each in workloads},
    }


@given(st.lists(SLICES, max_size=6))
def test_any_history_ends_in_the_state_of_a_store_built_afresh(history: list[StateSlice]) -> None:
    store = Store()
    for change in history:
        store.apply(change)
        answers(store)
    fresh = mesh(*store.workloads(), *store.services(), *(each.policy for each in store.policies()))
    assert answers(store) == answers(fresh)


@given(st.lists(SLICES, max_size=6))
def test_when_everything_is_removed_nothing_is_left_in_any_index(history: list[StateSlice]) -> None:
    store = Store()
    for change in history:
        store.apply(change)
        answers(store)
    store.apply(
        removal(
            workloads=[each.uid for each in store.workloads()],
            services=[str(each.key) for each in store.services()],
            policies=[each.key for each in store.policies()],
        )
    )
    sizes = {
        name: len(value) for name, value in vars(store).items() if isinstance(value, dict | BestFirst | PrefixTable)
    }
    assert len(sizes) >= 10
    assert not any(sizes.values()), sizes
    assert not store._by_prefix._lengths


# ---- a new control half ----


@given(old=st.lists(SLICES, max_size=4), new=st.lists(SLICES, max_size=4))
def test_after_a_resync_only_what_was_told_again_is_there(old: list[StateSlice], new: list[StateSlice]) -> None:
    store = Store()
    for change in old:
        store.apply(change)
    fresh = Store()
    for change in new:
        fresh.apply(change)
    told = StateSlice(
        workloads=tuple(fresh.workloads()),
        services=tuple(fresh.services()),
        policies=tuple(each.policy for each in fresh.policies()),
    )
    store.begin_resync()
    store.apply(told)
    store.end_resync()
    assert answers(store) == answers(fresh)


def test_during_a_resync_nothing_is_missing() -> None:
    store = mesh(HEALTHY, WEB, DEMO_WIDE)
    store.begin_resync()
    assert store.workload(HEALTHY.uid) is HEALTHY
    store.apply(slice_of(WEB))
    assert store.workload(HEALTHY.uid) is HEALTHY
    assert store.end_resync() == removal(workloads=[HEALTHY.uid], policies=[DEMO_WIDE.key])
    assert store.workload(HEALTHY.uid) is None
    assert store.service("demo", "web.demo") is WEB
    assert store.end_resync() is None
