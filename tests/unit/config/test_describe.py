import json

from ztunnel.config import load
from ztunnel.config.describe import REDACTED, describe, to_config_dump

# ztunnel's `config` object, but for dnsResolverCfg and dnsResolverOpts (there is no resolver) and fakeSelfInbound.
ZTUNNEL_KEYS = """\
proxy dnsProxy windowSize connectionWindowSize frameSize poolMaxStreamsPerConn poolUnusedReleaseTimeout socks5Addr
adminAddr statsAddr readinessAddr inboundAddr inboundPlaintextAddr outboundAddr dnsProxyAddr illegalPorts network
localNode proxyMode proxyWorkloadInformation clusterId clusterDomain caAddress caRootCert altCaHostname xdsAddress
xdsRootCert altXdsHostname preferedServiceNamespace secretTtl xdsOnDemand fakeCa selfTerminationDeadline proxyMetadata
numWorkerThreads requireOriginalSource proxyArgs inpodUds inpodPortReuse packetMark socketConfig xdsHeaders caHeaders
localhostAppTunnel ztunnelIdentity ztunnelWorkload ipv6Enabled crlPath enableEnhancedBaggage
"""


def row(settings, name):
    return next(described for described in describe(settings) if described.name == name)


def test_each_value_tells_its_origin():
    settings = load({"NETWORK": "net1", "PROXY_CONFIG": "statsPort: 1", "LOG_LEVEL": "warn", "PROXY_MODE": "shared"})
    assert row(settings, "NETWORK")[1:3] == ("net1", "NETWORK")
    assert row(settings, "STATS_ADDR")[1:3] == ("[::]:1", "PROXY_CONFIG statsPort")
    assert row(settings, "RUST_LOG")[1:3] == ("warn", "LOG_LEVEL")
    assert row(settings, "SECRET_TTL")[1:3] == ("24h", "default")
    assert row(settings, "NODE_NAME")[1:3] == ("-", "default")
    assert row(settings, "ADMIN_ADDR")[1:3] == ("127.0.0.1:15000, [::1]:15000", "default")


def test_the_dump_has_ztunnels_keys_and_is_json():
    dump = to_config_dump(load({}), proxy_args="proxy ztunnel")
    assert set(ZTUNNEL_KEYS.split()) <= set(dump)
    assert json.loads(json.dumps(dump)) == dump
    assert dump["adminAddr"] == {"Localhost": [True, 15000]}
    assert dump["statsAddr"] == {"SocketAddr": "[::]:15020"}
    assert dump["inboundAddr"] == "[::]:15008"
    assert dump["poolUnusedReleaseTimeout"] == {"secs": 300, "nanos": 0}
    assert dump["illegalPorts"] == [15001, 15006, 15008]
    assert dump["proxyMode"] == "Shared"
    assert dump["xdsRootCert"] == {"File": "./var/run/secrets/istio/root-cert.pem"}
    assert dump["proxyArgs"] == "proxy ztunnel"
    assert dump["dnsProxy"] is False


def test_the_dump_holds_every_setting_with_its_origin():
    settings = load({"NETWORK": "net1"})
    shown = to_config_dump(settings)["settings"]
    assert list(shown) == [described.name for described in describe(settings)]
    assert shown["NETWORK"] == {"value": "net1", "origin": "NETWORK"}
    assert shown["CONNECT_TIMEOUT"] == {"value": "10s", "origin": "default"}


def test_what_depends_on_the_mode_is_shown():
    settings = load({"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "ns/pod/sa", "IPV6_ENABLED": "false"})
    dump = to_config_dump(settings)
    assert dump["proxyMode"] == "Dedicated"
    assert dump["proxyWorkloadInformation"] == {"name": "pod", "namespace": "ns", "serviceAccount": "sa"}
    assert dump["adminAddr"] == {"Localhost": [False, 15000]}
    assert dump["inboundAddr"] == "0.0.0.0:15008"
    assert dump["packetMark"] is None
    assert row(settings, "PACKET_MARK")[1:3] == ("-", "PROXY_MODE")


def test_the_agents_own_identity_needs_all_three_names():
    own = {"POD_NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel", "POD_NAME": "ztunnel-x"}
    assert to_config_dump(load(own))["ztunnelIdentity"] == "spiffe://cluster.local/ns/istio-system/sa/ztunnel"
    del own["POD_NAME"]
    assert to_config_dump(load(own))["ztunnelIdentity"] is None


def test_no_secret_is_shown():
    settings = load({"AUTH_TOKEN": "s3cret", "XDS_HEADER_AUTH": "s3cret", "CA_HEADER_AUTH": "s3cret"})
    assert "s3cret" not in json.dumps(to_config_dump(settings))
    assert "s3cret" not in str(describe(settings))
    assert to_config_dump(settings)["xdsHeaders"] == [["AUTH", REDACTED]]
    assert row(settings, "AUTH_TOKEN").value == REDACTED


def test_roots_are_shown_as_where_they_come_from():
    pem = "-----BEGIN CERTIFICATE-----"
    settings = load({"XDS_ROOT_CA": pem, "CA_ROOT_CA": "SYSTEM"})
    dump = to_config_dump(settings)
    assert (dump["xdsRootCert"], dump["caRootCert"]) == ("Static", "Default")
    assert row(settings, "XDS_ROOT_CA").value == f"({len(pem)} characters)"


def test_an_inline_mesh_is_not_printed():
    assert row(load({"LOCAL_XDS": "workloads: []"}), "LOCAL_XDS").value == "(13 characters)"
