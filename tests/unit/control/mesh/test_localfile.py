import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.control.mesh.localfile import Mesh, Pod, parse
from ztunnel.core.errors import ConfigError
from ztunnel.core.model.address import NamespacedHostname, NetworkAddress
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.policy import Match, MatchKind, ServiceAccountMatch, StringMatch
from ztunnel.core.model.service import BalanceMode, CidrVip, IpFamilies, Scope, Visibility
from ztunnel.core.model.workload import (
    ApplicationTunnel,
    GatewayAddress,
    Health,
    Locality,
    NetworkMode,
    Protocol,
    TunnelProtocol,
)
from ztunnel.link.messages import CaptureMode

DOCS = Path(__file__).parents[4] / "docs" / "mesh-file.md"
FULL = Path(__file__).parents[3] / "golden" / "mesh" / "full.yaml"
ISTIO = Path(__file__).parents[5] / "shared/vectors/ztunnel-data/examples/localhost.yaml"

WORKLOAD = "workloads:\n- {name: a, namespace: n, workloadIps: [10.0.0.1]%s}\n"
POLICY = "policies:\n- {name: p, namespace: n, scope: Namespace, action: Allow, rules: [[[%s]]]}\n"


def problems(text, **options):
    with pytest.raises(ConfigError) as raised:
        parse(text, "mesh.yaml", **options)
    return raised.value.problems


def the_match(text):
    [policy] = parse(POLICY % text, "m").policies
    [[[match]]] = policy.rules
    return match


@pytest.mark.skipif(not ISTIO.exists(), reason=f"ztunnel's example is not here ({ISTIO})")
def test_ztunnels_own_example_means_the_same_here():
    mesh = parse(ISTIO.read_text(), "localhost.yaml")
    assert [(w.name, w.workload_ips, w.protocol) for w in mesh.workloads] == [
        ("local", ("127.0.0.1",), Protocol.HBONE),
        ("local-tcp", ("127.0.0.2",), Protocol.TCP),
    ]
    ours, remote = mesh.services
    assert ours.vips == (NetworkAddress("", "127.10.0.1"),)
    assert remote.vips == (NetworkAddress("remote", "127.10.0.2"),)
    assert ours.subject_alt_names == ("spiffe://cluster.local/ns/default/sa/local",)
    for workload in mesh.workloads:
        assert workload.services == {str(service.key): {80: 8080} for service in (ours, remote)}
    [policy] = mesh.policies
    assert policy.rules == (((Match(not_destination_ports=(9999,)),),),)


def test_every_key_reaches_the_model():
    mesh = parse(FULL.read_text(), "full.yaml")
    web, batch = mesh.workloads
    assert web.uid == "cluster1//v1/Pod/shop/web-1"
    assert web.workload_ips == ("10.0.1.5", "fd00::5")
    assert (web.network, web.protocol, web.network_mode) == ("net1", Protocol.HBONE, NetworkMode.STANDARD)
    assert web.identity == Identity("example.org", "shop", "web")
    assert (web.node, web.workload_name, web.workload_type) == ("node-a", "web", "deployment")
    assert (web.canonical_name, web.canonical_revision, web.native_tunnel) == ("web", "v2", True)
    assert web.application_tunnel == ApplicationTunnel(TunnelProtocol.PROXY, 15088)
    assert web.waypoint == GatewayAddress(NamespacedHostname("shop", "waypoint.shop.svc"), True, 15009)
    assert web.network_gateway == GatewayAddress(NetworkAddress("net2", "192.0.2.9"), False, 15008)
    assert web.authorization_policies == ("shop/only-web",)
    assert (web.status, web.cluster_id, web.capacity) == (Health.HEALTHY, "cluster1", 3)
    assert web.locality == Locality("r1", "z1", "s1")
    assert batch.status is Health.UNHEALTHY

    service = mesh.services[0]
    assert service.key == NamespacedHostname("shop", "web.shop.svc")
    assert service.vips == (NetworkAddress("net1", "10.96.0.1"), NetworkAddress("", "10.96.0.2"))
    assert service.cidr_vips == (CidrVip("net1", "10.97.0.0", 16),)
    assert service.ports == {80: 8080, 443: 0}
    assert service.waypoint == GatewayAddress(NetworkAddress("", "10.0.1.6"), False, 15008)
    assert [waypoint.weight for waypoint in service.weighted_waypoints] == [9]
    assert service.load_balancer.routing_preferences == (Scope.NETWORK, Scope.REGION, Scope.ZONE)
    assert service.load_balancer.mode is BalanceMode.FAILOVER
    assert (service.ip_families, service.canonical, service.visibility) == (
        IpFamilies.DUAL,
        True,
        Visibility.NAMESPACE,
    )

    [policy] = mesh.policies
    assert policy.dry_run
    [[first, second], [third]] = policy.rules[0]
    assert first.not_namespaces == (StringMatch(MatchKind.SUFFIX, "-old"),)
    assert first.not_principals == (StringMatch(MatchKind.EXACT, "example.org/ns/shop/sa/bad"),)
    assert second.service_accounts == (ServiceAccountMatch("shop", "web"),)
    assert second.not_service_accounts == (ServiceAccountMatch("shop", "db"),)
    assert third == Match(
        source_ips=("10.0.0.0/8", "fd00::/8"),
        not_source_ips=("10.0.9.9/32",),
        destination_ips=("10.0.1.5/32",),
        not_destination_ips=("10.0.2.0/24",),
        destination_ports=(80,),
        not_destination_ports=(9999,),
    )


def test_pods_name_their_workload_and_what_depends_on_it():
    assert parse(FULL.read_text(), "full.yaml").pods == (
        Pod(
            uid="web-1",
            name="web-1",
            workload_uid="cluster1//v1/Pod/shop/web-1",
            workload_name="web-1",
            identity=Identity("example.org", "shop", "web"),
            ips=("10.0.1.5", "fd00::5"),
            netns="web",
            capture=CaptureMode.TPROXY,
        ),
        Pod(
            uid="42",
            name="batch-1",
            workload_uid="Kubernetes//Pod/shop/batch-1",
            workload_name="batch-1",
            identity=Identity("cluster.local", "shop", "default"),
            ips=("10.0.1.6",),
            capture=CaptureMode.NODE,
            interface="veth7",
        ),
    )


def test_a_pod_that_says_nothing_is_captured_as_the_settings_say():
    text = WORKLOAD % "" + "pods:\n- {name: x, netns: /run/netns/x, workload: n/a}\n"
    [pod] = parse(text, "m", capture=CaptureMode.NONE).pods
    assert (pod.capture, pod.netns) == (CaptureMode.NONE, "/run/netns/x")


def test_endpoints_of_a_service_are_merged_into_the_workload():
    text = (
        WORKLOAD % ", uid: u1, services: {n/s: {80: 8080}}"
        + "services:\n- {name: s, namespace: n, hostname: s}\n"
        + "- {name: t, namespace: n, hostname: t, ports: {90: 9090}, endpoints: {e: {workloadUid: u1}, }}\n"
    )
    [workload] = parse(text, "m").workloads
    assert workload.services == {"n/s": {80: 8080}, "n/t": {90: 9090}}


def test_the_trust_domain_default_is_the_settings_own():
    [workload] = parse(WORKLOAD % "", "m", trust_domain="example.net").workloads
    assert str(workload.identity) == "spiffe://example.net/ns/n/sa/default"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ('!Exact "x"', MatchKind.EXACT, "x"),
        ("!Prefix x", MatchKind.PREFIX, "x"),
        ("!Suffix x", MatchKind.SUFFIX, "x"),
        ("!Presence []", MatchKind.PRESENCE, ""),
        ("Exact: x", MatchKind.EXACT, "x"),
        ("Prefix: x", MatchKind.PREFIX, "x"),
        ("Suffix: x", MatchKind.SUFFIX, "x"),
        ("Presence: []", MatchKind.PRESENCE, ""),
        ("Presence: ", MatchKind.PRESENCE, ""),
    ],
)
def test_both_forms_of_a_string_match(text, kind, value):
    assert the_match(f"{{principals: [{text}]}}").principals == (StringMatch(kind, value),)


@pytest.mark.parametrize(
    "text",
    ["x", "!Other x", "Other: x", "{Exact: x, Prefix: y}", '!Exact ""', "Exact: ", "Presence: [x]", "!Exact [x]", "{}"],
)
def test_a_string_match_of_no_known_form_is_refused(text):
    [problem] = problems(POLICY % f"{{principals: [{text}]}}")
    assert "policies[0].rules[0][0][0].principals[0]" in problem


@pytest.mark.parametrize("key", ["principals", "notSourceIps", "destinationPorts", "serviceAccounts"])
@pytest.mark.parametrize("value", ["[]", ""])
def test_an_empty_restriction_is_refused_because_it_would_match_anything(key, value):
    [problem] = problems(POLICY % f"{{{key}: {value}}}")
    assert f"{key}: must not be empty" in problem


@pytest.mark.parametrize("rules", ["rules: [[[{}]]]", "rules: []", "rules: ", "dryRun: false"])
def test_a_policy_may_match_nothing(rules):
    text = f"policies:\n- {{name: p, namespace: n, scope: Namespace, action: Allow, {rules}}}\n"
    assert len(parse(text, "m").policies) == 1


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        (", protocol: hbone", "workloads[0].protocol: must be one of TCP, HBONE, not 'hbone'"),
        (", capacity: -1", "workloads[0].capacity: must be between 0 and 4294967295, not -1"),
        (
            ", capacity: " + "9" * 5000,
            "workloads[0].capacity: must be between 0 and 4294967295, not a number of 5000 digits",
        ),
        (", nativeTunnel: yes", "workloads[0].nativeTunnel: must be true or false, not 'yes'"),
        (", services: {n: {80: 80}}", "workloads[0].services.n: 'n' is not namespace/hostname"),
        (", services: {n/s: {http: 80}}", "workloads[0].services.n/s.http: 'http' is no port"),
        (", services: {n/s: {80: 70000}}", "workloads[0].services.n/s.80: must be between 0 and 65535, not 70000"),
        (", workloadIp: 10.0.0.1", "workloads[0].workloadIp: unknown key; did you mean workloadIps?"),
        (", waypoint: {destination: x}", "workloads[0].waypoint.destination: must be network/ip or namespace/hostname"),
        (", waypoint: {}", "workloads[0].waypoint: destination is missing"),
        (", waypoint: 5", "workloads[0].waypoint: must be a mapping"),
        (", workloadType: vm", "workloads[0].workloadType: must be one of deployment, cronjob, pod, job, not 'vm'"),
        (", trustDomain: ''", "workloads[0].trustDomain: must not be empty"),
        (", authorizationPolicies: p", "workloads[0].authorizationPolicies: must be a list, not 'p'"),
    ],
)
def test_a_bad_value_is_named_by_path_and_line(fields, where):
    [problem] = problems(WORKLOAD % fields)
    assert problem.startswith(f"mesh.yaml:2: {where}")


@pytest.mark.parametrize(
    ("service", "where"),
    [
        ("vips: [10.0.0.1]", "services[0].vips[0]: must be network/ip, not '10.0.0.1'"),
        ("vips: [/10.0.0]", "services[0].vips[0]: '10.0.0' is not an IP address"),
        ("cidrVips: [/10.0.0.0]", "services[0].cidrVips[0]: must be network/ip/length"),
        ("loadBalancer: {mode: Random}", "services[0].loadBalancer.mode: must be one of Standard"),
        ("endpoints: {e: {workloadUid: }}", "services[0].endpoints: e is no workload of this file"),
    ],
)
def test_a_bad_service_is_named_by_path_and_line(service, where):
    [problem] = problems(f"services:\n- {{name: s, namespace: n, hostname: s, {service}}}\n")
    assert problem.startswith(f"mesh.yaml:2: {where}")


def test_all_mistakes_are_listed_at_once_in_the_order_of_lines():
    assert problems(
        """\
services:
- name: s
  hostname: s
workloads:
- name: a
  namespace: n
  workloadIps:
  - 10.0.0.1
  - 10.0.0.999
  protocol: UDP
metadata: {}
"""
    ) == (
        "mesh.yaml:2: services[0]: namespace is missing",
        "mesh.yaml:9: workloads[0].workloadIps[1]: '10.0.0.999' does not appear to be an IPv4 or IPv6 address",
        "mesh.yaml:10: workloads[0].protocol: must be one of TCP, HBONE, not 'UDP'",
        "mesh.yaml:11: metadata: unknown key; known are workloads, services, policies, pods",
    )


def test_references_that_lead_nowhere_are_all_listed():
    assert problems(
        """\
workloads:
- name: a
  namespace: n
  waypoint: {destination: n/way}
  authorizationPolicies: [n/p]
  services:
    n/s: {80: 80}
services:
- {name: t, namespace: n, hostname: t, waypoint: {destination: n/way}, endpoints: {gone: {}}}
pods:
- name: x
  netns: x
  workload: n/b
"""
    ) == (
        "mesh.yaml:4: workloads[0].waypoint.destination: n/way is no service of this file",
        "mesh.yaml:5: workloads[0].authorizationPolicies: n/p is no policy of this file",
        "mesh.yaml:7: workloads[0].services.n/s: n/s is no service of this file",
        "mesh.yaml:9: services[0].waypoint.destination: n/way is no service of this file",
        "mesh.yaml:9: services[0].endpoints: gone is no workload of this file",
        "mesh.yaml:13: pods[0].workload: n/b is no workload of this file",
    )


def test_names_are_unique():
    twice = """\
workloads:
- {name: a, namespace: n, workloadIps: [10.0.0.1]}
- {name: a, namespace: n}
- {name: b, namespace: n, workloadIps: ["::ffff:10.0.0.1"]}
services:
- {name: s, namespace: n, hostname: s}
- {name: t, namespace: n, hostname: s}
policies:
- {name: p, namespace: n, scope: Global, action: Deny}
- {name: p, namespace: n, scope: Namespace, action: Deny}
pods:
- {name: x, netns: x, workload: n/b}
- {name: x, netns: x, workload: n/b}
"""
    assert problems(twice) == (
        "mesh.yaml:3: workloads[1]: uid Kubernetes//Pod/n/a is already in line 2",
        "mesh.yaml:4: workloads[2]: address /10.0.0.1 is already that of a",
        "mesh.yaml:7: services[1]: service n/s is already in line 6",
        "mesh.yaml:10: policies[1]: policy n/p is already in line 9",
        "mesh.yaml:13: pods[1]: pod x is already in line 12",
        "mesh.yaml:13: pods[1]: netns x is already in line 12",
    )


def test_host_network_workloads_share_the_address_of_their_node():
    text = WORKLOAD % ", networkMode: HostNetwork" + "- {name: b, namespace: n, workloadIps: [10.0.0.1]}\n"
    assert len(parse(text, "m").workloads) == 2


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        ("workload: n/a", "netns is missing: capture redirect happens in the pod's namespace"),
        ("workload: n/a, capture: node", "interface is missing"),
        ("workload: n/a, netns: x, interface: e", "interface: only capture node has one"),
        ("workload: n/a, netns: x, capture: ebpf", "capture: must be one of redirect, tproxy, node, none"),
    ],
)
def test_a_pod_that_cannot_be_captured_is_refused(pod, why):
    [problem] = problems(WORKLOAD % "" + f"pods:\n- {{name: x, {pod}}}\n")
    assert why in problem


def test_the_name_of_several_workloads_needs_the_uid():
    text = "workloads:\n- {uid: u1, name: a, namespace: n}\n- {uid: u2, name: a, namespace: n}\npods:\n"
    assert "several workloads: give the uid" in problems(text + "- {name: x, netns: x, workload: n/a}")[0]
    assert parse(text + "- {name: x, netns: x, workload: u2}", "m").pods[0].workload_uid == "u2"


def test_endpoints_may_not_contradict_the_workload():
    text = WORKLOAD % ", uid: u, services: {n/s: {80: 1}}" + (
        "services:\n- {name: s, namespace: n, hostname: s, endpoints: {u: {port: {80: 2}, status: Unhealthy}}}\n"
    )
    assert problems(text) == (
        "mesh.yaml:4: services[0].endpoints: u itself has other ports for n/s",
        "mesh.yaml:4: services[0].endpoints: u itself is Healthy; set its status there",
    )


def test_a_file_with_nothing_in_it_is_refused_and_an_empty_mesh_is_not():
    assert problems("# later\n") == ("mesh.yaml:1: is empty; a mesh with nothing in it is written {}",)
    assert parse("{}", "m") == parse("workloads:\nservices: []\n", "m")


def test_no_yaml_is_one_problem():
    assert problems("workloads: [\n")[0].startswith("mesh.yaml:2: not YAML: ")


def test_the_example_of_the_documentation_is_a_mesh():
    [example] = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    mesh = parse(example, "example")
    assert [pod.name for pod in mesh.pods] == ["client"]
    assert mesh.workloads[1].services == {"default/echo.default.svc": {80: 8080}}


WORDS = [
    "workloads",
    "services",
    "policies",
    "pods",
    "name",
    "rules",
    "principals",
    "ports",
    "!Exact",
    "80",
    "x",
    "&a",
    "*a",
]
PIECES = st.sampled_from([*WORDS, *":{}[],?!~'|#", '"', ": ", "- ", " ", "\n", "\n  "])


def outcome(text):
    """The mesh, or the problems."""
    try:
        return parse(text, "m")
    except ConfigError as error:
        return error.problems


def is_mesh_or_problems(result):
    return isinstance(result, Mesh) or (result and all(re.match(r"m:\d+: ", problem) for problem in result))


@given(st.lists(PIECES, max_size=40).map("".join) | st.text(st.characters(codec=None), max_size=60))
def test_any_text_is_a_mesh_or_a_list_of_problems_with_lines(text):
    assert is_mesh_or_problems(outcome(text))


@given(st.data())
def test_a_mesh_with_any_one_line_missing_is_a_mesh_or_a_list_of_problems(data):
    lines = FULL.read_text().splitlines(keepends=True)
    gone = data.draw(st.integers(0, len(lines) - 1))
    assert is_mesh_or_problems(outcome("".join(lines[:gone] + lines[gone + 1 :])))


def test_text_that_no_encoding_has_is_one_problem():
    assert outcome("workloads: \udc80") == ("m:1: not YAML: a character that is no Unicode text",)
