"""What an agent lacks is one sentence before anything is served, and only what its settings ask for counts."""

import msgspec
import pytest

from ztunnel.config.settings import Settings, WorkloadInfo
from ztunnel.control.preflight import check
from ztunnel.core.errors import PlatformError
from ztunnel.linux.redirect.model import Backend
from ztunnel.linux.rights import Rights

ALL = Rights(net_admin=True, net_raw=True, sys_admin=True, enter_namespaces="", mark="", transparent="", sniff="")
NONE = Rights(
    net_admin=False,
    net_raw=False,
    sys_admin=False,
    enter_namespaces="may not enter; grant CAP_SYS_ADMIN",
    mark="may not mark; grant CAP_NET_ADMIN",
    transparent="may not",
    sniff="may not",
)
SHARED = Settings()
DEDICATED = Settings(proxy_mode="dedicated", proxy_workload_info=WorkloadInfo("demo", "web", "web"))
PLAIN = msgspec.structs.replace(DEDICATED, capture_mode="none", packet_mark=None)


def installed(*backends: Backend):
    return lambda backend: backend in backends


@pytest.mark.parametrize("settings", [SHARED, DEDICATED])
def test_with_every_right_and_any_tool_it_may_start(settings):
    for backend in Backend:
        check(settings, ALL, installed(backend))


def test_rules_from_outside_and_no_mark_need_no_rights_and_no_tools():
    check(PLAIN, NONE, installed())


def test_capture_without_net_admin_is_refused_by_the_setting_that_asks_for_it():
    with pytest.raises(PlatformError, match="CAPTURE_MODE=redirect needs CAP_NET_ADMIN") as caught:
        check(DEDICATED, NONE, installed(*Backend))
    assert "CAPTURE_MODE=none" in caught.value.hint


def test_a_mark_that_may_not_be_set_is_refused():
    with pytest.raises(PlatformError, match="may not mark"):
        check(msgspec.structs.replace(PLAIN, packet_mark=0x539), NONE, installed())


def test_a_shared_agent_must_be_able_to_enter_namespaces_but_not_for_rules_of_the_node():
    rights = msgspec.structs.replace(ALL, enter_namespaces="may not enter; grant CAP_SYS_ADMIN")
    check(DEDICATED, rights, installed(*Backend))
    check(msgspec.structs.replace(SHARED, capture_mode="node"), rights, installed(*Backend))
    with pytest.raises(PlatformError, match="may not enter"):
        check(SHARED, rights, installed(*Backend))


def test_without_tools_the_packages_are_named():
    with pytest.raises(PlatformError, match="no tool") as caught:
        check(DEDICATED, ALL, installed())
    assert "nftables or iptables" in caught.value.hint


def test_a_shared_agent_needs_tools_only_for_a_capture_that_was_asked_for():
    check(SHARED, ALL, installed())
    with pytest.raises(PlatformError, match="no tool"):
        check(msgspec.structs.replace(SHARED, origins={"capture_mode": "CAPTURE_MODE"}), ALL, installed())


def test_another_tool_than_the_one_that_was_asked_for_is_not_enough():
    settings = msgspec.structs.replace(DEDICATED, capture_backend="nft")
    with pytest.raises(PlatformError, match="nft are not installed"):
        check(settings, ALL, installed(Backend.IPTABLES_NFT))
