"""Look-up tables with shared keys."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st
from mesh_samples import service

from ztunnel.core.model.service import CidrVip, Service, Visibility
from ztunnel.worker.state.index import BestFirst, PrefixTable, best_visible


def test_the_best_of_a_key_comes_first_whatever_the_order_of_arrival() -> None:
    table: BestFirst[str, str] = BestFirst(len)
    assert table.add("k", "three")
    assert not table.add("k", "one")
    assert table.get("k") == ("one", "three")
    assert table.first("k") == "one"


def test_adding_twice_is_adding_once_and_an_empty_key_is_gone() -> None:
    table: BestFirst[str, str] = BestFirst(len)
    table.add("k", "a")
    table.add("k", "a")
    assert table.get("k") == ("a",)
    assert table.remove("k", "a")
    assert not table.remove("k", "a")
    assert (len(table), table.get("k"), table.first("k")) == (0, (), None)


CIDR_V4 = st.builds(
    lambda number, length: ip_network((number, length), strict=False),
    st.integers(0, 2**32 - 1).map(lambda number: number & 0xFF0000FF),
    st.integers(0, 32),
)
CIDR_V6 = st.builds(
    lambda number, length: ip_network((number << 112, length), strict=False),
    st.integers(0, 2**16 - 1),
    st.integers(0, 128),
)


@given(
    st.lists(
        st.tuples(CIDR_V4 | CIDR_V6, st.sampled_from(["demo", "other"]), st.booleans(), st.booleans()), max_size=8
    ),
    st.integers(0, 2**32 - 1).map(lambda number: str(ip_address(number & 0xFF0000FF))) | st.just("fd00::1"),
    st.data(),
)
def test_the_prefix_table_finds_what_a_search_through_all_prefixes_finds(
    prefixes: list[tuple[object, str, bool, bool]], ip: str, data: st.DataObject
) -> None:
    services: list[tuple[CidrVip, Service]] = []
    for number, (network, namespace, canonical, private) in enumerate(prefixes):
        vip = CidrVip("", str(network.network_address), network.prefixlen)  # type: ignore[attr-defined]
        visibility = Visibility.NAMESPACE if private else Visibility.PUBLIC
        made = service(f"s{number}", namespace=namespace, canonical=canonical, visibility=visibility, cidr_vips=(vip,))
        services.append((vip, made))
    table = PrefixTable()
    for vip, made in services:
        table.add(vip, made)
    removed = data.draw(st.sets(st.integers(0, max(0, len(services) - 1)), max_size=len(services)))
    for index in removed:
        table.remove(*services[index])
    kept = [pair for index, pair in enumerate(services) if index not in removed]

    def rank(pair: tuple[CidrVip, Service]) -> tuple[object, ...]:
        vip, made = pair
        return made.namespace != "demo", -vip.length, not made.canonical, made.namespace, made.hostname

    seen = [
        (vip, made)
        for vip, made in kept
        if ip_address(ip) in ip_network(f"{vip.ip}/{vip.length}")
        and (made.namespace == "demo" or made.visibility is Visibility.PUBLIC)
    ]
    expected = min(seen, key=rank)[1] if seen else None
    assert table.find("", ip, "demo") is expected
    assert table.find("elsewhere", ip, "demo") is None


def test_a_short_prefix_of_the_own_namespace_comes_before_a_long_one_of_another() -> None:
    short, long = CidrVip("", "10.0.0.0", 8), CidrVip("", "10.1.0.0", 16)
    own, public = service("own", namespace="demo"), service("public", namespace="other")
    table = PrefixTable()
    table.add(short, own)
    table.add(long, public)
    assert table.find("", "10.1.1.1", "demo") is own
    assert table.find("", "10.1.1.1", "third") is public


def test_a_look_up_costs_one_probe_for_each_length_however_many_prefixes_there_are() -> None:
    table = PrefixTable()
    for number in range(500):
        vip = CidrVip("", str(ip_address(number << 16)), 16)
        table.add(vip, service(f"s{number}", cidr_vips=(vip,)))
    probes = []
    inner = table._services.get
    table._services.get = lambda key: (probes.append(key), inner(key))[1]  # type: ignore[method-assign,func-returns-value]
    found = table.find("", "0.7.1.1", "demo")
    assert found is not None
    assert found.name == "s7"
    assert len(probes) == 1


def test_the_own_namespace_comes_before_what_is_canonical_and_hidden_services_stay_hidden() -> None:
    hidden = service("a", namespace="a", visibility=Visibility.NAMESPACE)
    public, own = service("b", namespace="b"), service("c", namespace="c")
    assert best_visible((hidden, public, own), "c") is own
    assert best_visible((hidden, public, own), "x") is public
    assert best_visible((hidden, public, own), "a") is hidden
    assert best_visible((hidden,), "x") is None
