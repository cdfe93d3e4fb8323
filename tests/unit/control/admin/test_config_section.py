"""The settings are shown under ztunnel's names and under ours, and none of them gives a secret away."""

from __future__ import annotations

import json

import pytest

from ztunnel.config import Settings
from ztunnel.config.settings import WorkloadInfo
from ztunnel.control.admin.config_section import config_section, effective


def test_every_setting_is_shown_with_its_origin() -> None:
    shown = effective(Settings(network="net1", origins={"network": "NETWORK"}))
    hidden = {"origins", "warnings", "local_xds"}
    assert set(shown) == set(Settings.__struct_fields__) - hidden
    assert shown["network"] == {"value": "net1", "origin": "NETWORK"}
    assert shown["cluster_id"]["origin"] == "default"


def test_ztunnels_forms_are_kept() -> None:
    section = config_section(
        Settings(
            proxy_mode="dedicated",
            proxy_workload_info=WorkloadInfo("ns", "name", "sa"),
            pool_unused_release_timeout=1.5,
            ipv6_enabled=False,
            xds_root_ca="SYSTEM",
            pod_name="zt",
            pod_namespace="istio-system",
            service_account="ztunnel",
        )
    )
    assert section["proxyMode"] == "Dedicated"
    assert section["proxyWorkloadInformation"] == {"name": "name", "namespace": "ns", "serviceAccount": "sa"}
    assert section["poolUnusedReleaseTimeout"] == {"secs": 1, "nanos": 500_000_000}
    assert section["adminAddr"] == {"Localhost": [False, 15000]}
    assert section["inboundAddr"] == "0.0.0.0:15008"
    assert section["xdsRootCert"] == "Default"
    assert section["ztunnelWorkload"] == {"name": "zt", "namespace": "istio-system", "serviceAccount": "ztunnel"}
    json.dumps(section)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/var/run/token", "/var/run/token"),
        ("./relative", "./relative"),
        ("", ""),
        ("eyJhbGciOi.token", "[redacted]"),
        ("-----BEGIN CERTIFICATE-----", "[redacted]"),
    ],
)
def test_a_token_is_shown_only_as_the_path_to_it(value: str, shown: str) -> None:
    assert effective(Settings(auth_token=value))["auth_token"]["value"] == shown
