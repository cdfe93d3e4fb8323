import pytest

from ztunnel.config import load
from ztunnel.config.environ import VARIABLES
from ztunnel.config.settings import Settings, WorkloadInfo
from ztunnel.core.errors import ConfigError
from ztunnel.core.model.address import Address

DEDICATED = {"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "ns/pod/sa"}


def problems(environ):
    with pytest.raises(ConfigError) as raised:
        load(environ)
    return raised.value.problems


def test_an_empty_environment_gives_the_defaults():
    assert load({}) == Settings()


def test_every_variable_has_a_field_of_its_name_and_the_reverse():
    without_variable = {"proxy_metadata", "xds_headers", "ca_headers", "origins", "warnings"}
    fixed = {"outbound_port", "inbound_plaintext_port", "inbound_port"}
    alias = {"log_level"}
    fields = set(Settings.__struct_fields__)
    assert {variable.field for variable in VARIABLES} - alias == fields - without_variable - fixed
    assert len({variable.name for variable in VARIABLES}) == len(VARIABLES)


def test_an_agent_started_with_nothing_but_environment_variables():
    settings = load(
        DEDICATED
        | {
            "LOCAL_XDS_PATH": "/etc/mesh.yaml",
            "LOCAL_CA_PATH": "/var/lib/ca",
            "XDS_ADDRESS": "",
            "IPV6_ENABLED": "false",
            "ENABLE_ORIG_SRC": "true",
            "PACKET_MARK": "1337",
        }
    )
    assert settings.dedicated
    assert settings.proxy_workload_info == WorkloadInfo("ns", "pod", "sa")
    assert (settings.local_xds_path, settings.local_ca_path) == ("/etc/mesh.yaml", "/var/lib/ca")
    assert (settings.xds_address, settings.ipv6_enabled, settings.enable_orig_src) == ("", False, True)
    assert settings.packet_mark == 1337
    assert settings.wildcard == "0.0.0.0"
    assert settings.admin_addr == (Address("127.0.0.1", 15000),)
    assert settings.stats_addr == (Address("0.0.0.0", 15020),)
    assert settings.warnings == ()


def test_every_problem_is_reported_at_once():
    assert problems(
        {
            "PROXY_MODE": "sidecar",
            "SECRET_TTL": "soon",
            "HTTP2_FRAME_SIZE": "10",
            "IPV6_ENABLED": "no",
            "LOCAL_XDS": "{}",
            "LOCAL_XDS_PATH": "/x",
        }
    ) == (
        "PROXY_MODE='sidecar': must be one of shared, dedicated",
        "SECRET_TTL='soon': is not a duration such as 10s, 5m or 1h30m",
        "IPV6_ENABLED='no': must be exactly true or false",
        "HTTP2_FRAME_SIZE='10': must be between 16384 and 16777215",
        "LOCAL_XDS and LOCAL_XDS_PATH are both set: keep one",
    )


def test_dedicated_mode_needs_its_workload():
    [problem] = problems({"PROXY_MODE": "dedicated"})
    assert problem.startswith("PROXY_WORKLOAD_INFO is missing")
    [problem] = problems({"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "x"})
    assert problem == "PROXY_WORKLOAD_INFO='x': must be namespace/name/serviceaccount"


def test_dedicated_mode_cannot_capture_a_node():
    [problem] = problems(DEDICATED | {"CAPTURE_MODE": "node"})
    assert "needs PROXY_MODE=shared" in problem


def test_workload_info_in_shared_mode_is_only_noted():
    settings = load({"PROXY_WORKLOAD_INFO": "ns/pod/sa"})
    assert settings.proxy_workload_info is None
    assert settings.warnings == ("PROXY_WORKLOAD_INFO is only used with PROXY_MODE=dedicated",)


@pytest.mark.parametrize(
    ("environ", "capture", "mark"),
    [
        ({}, "redirect", 1337),
        ({"CAPTURE_MODE": "node"}, "node", 1337),
        (DEDICATED, "none", None),
        (DEDICATED | {"CAPTURE_MODE": "tproxy"}, "tproxy", 1337),
        (DEDICATED | {"PACKET_MARK": "7"}, "none", 7),
    ],
)
def test_capture_and_mark_follow_the_mode(environ, capture, mark):
    settings = load(environ)
    assert (settings.capture_mode, settings.packet_mark) == (capture, mark)


def test_an_empty_variable_counts_as_not_set():
    assert load({"IPV6_ENABLED": "", "SECRET_TTL": "", "NETWORK": ""}) == Settings()


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, ""),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, "https://istiod.istio-system.svc:15012"),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1", "XDS_ADDRESS": ""}, ""),
        ({"XDS_ADDRESS": "istiod:15012"}, "https://istiod:15012"),
        ({"XDS_ADDRESS": "http://istiod:15010"}, "http://istiod:15010"),
        ({"PROXY_CONFIG": "discoveryAddress: pilot:1"}, "https://pilot:1"),
        ({"PROXY_CONFIG": "discoveryAddress: pilot:1", "XDS_ADDRESS": ""}, ""),
    ],
)
def test_where_the_control_plane_is(environ, address):
    assert load(environ).xds_address == address


def test_variables_without_effect_never_fail_and_are_named_once():
    settings = load(
        {
            "FAKE_CA": "true",
            "XDS_ADDRESS": "istiod:15012",
            "TLS12_ENABLED": "false",
            "XDS_HEADER_x": "y",
            "XDS_ON_DEMAND": "perhaps",
        }
    )
    assert settings.warnings == (
        "XDS_ON_DEMAND='perhaps': must be exactly true or false",
        "set, but without effect in this version: XDS_ADDRESS, FAKE_CA, XDS_HEADER_*",
    )
    assert settings.xds_headers == {"x": "y"}


def test_proxy_config_is_merged_over_the_mesh_config_and_variables_win():
    mesh_config = """
defaultConfig:
  statsPort: 15888
  proxyAdminPort: 15099
  proxyMetadata:
    ISTIO_META_FOO: foo
    BAR: bar
"""
    settings = load(
        {
            "PROXY_CONFIG": '{"statsPort": 15999, "proxyMetadata": {"ISTIO_META_FOO": "two"}, "tracing": {}}',
            "ISTIO_META_BAZ": "baz",
            "ADMIN_ADDR": "127.0.0.2:15000",
        },
        mesh_config,
    )
    assert settings.stats_addr == (Address("::", 15999),)
    assert settings.admin_addr == (Address("127.0.0.2", 15000),)
    assert settings.proxy_metadata == {"FOO": "two", "BAR": "bar", "BAZ": "baz"}
    assert settings.origins["stats_addr"] == "PROXY_CONFIG statsPort"
    assert settings.origins["admin_addr"] == "ADMIN_ADDR"


@pytest.mark.parametrize("text", ["{", "[]", "statsPort: x", "statsPort: 99999", "proxyMetadata: {a: 1}"])
def test_a_bad_proxy_config_is_a_problem(text):
    [problem] = problems({"PROXY_CONFIG": text})
    assert problem.startswith("PROXY_CONFIG: ")


def test_the_meta_form_of_the_cluster_id_wins():
    assert load({"CLUSTER_ID": "a", "ISTIO_META_CLUSTER_ID": "b"}).cluster_id == "b"


def test_log_level_is_another_name_of_rust_log_and_wins():
    assert load({"LOG_LEVEL": "debug"}).rust_log == "debug"
    settings = load({"LOG_LEVEL": "debug", "RUST_LOG": "error"})
    assert (settings.rust_log, settings.origins["rust_log"]) == ("debug", "LOG_LEVEL")


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("15500", (Address("127.0.0.1", 15500), Address("::1", 15500))),
        ("*:15500", (Address("::", 15500),)),
        ("localhost:15500", (Address("127.0.0.1", 15500), Address("::1", 15500))),
        ("[::1]:15500", (Address("::1", 15500),)),
    ],
)
def test_the_admin_port_may_be_elsewhere(text, addresses):
    assert load({"ADMIN_ADDR": text}).admin_addr == addresses


def test_two_listeners_on_one_port_are_refused():
    assert problems({"ADMIN_ADDR": "15008", "STATS_ADDR": "15021"}) == (
        "ADMIN_ADDR: port 15008 is already that of HBONE",
        "READINESS_ADDR: port 15021 is already that of STATS_ADDR",
    )
