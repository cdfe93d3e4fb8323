import json
from pathlib import Path

from ztunnel.control.mesh import render
from ztunnel.control.mesh.localfile import parse
from ztunnel.core.model.service import HealthPolicy, LoadBalancer, Service
from ztunnel.core.model.workload import Health, Workload

GOLDEN = Path(__file__).parents[3] / "golden" / "mesh"


def full():
    return parse((GOLDEN / "full.yaml").read_text(), "full.yaml")


def state(workloads, services=(), policies=()):
    """What a config_dump shows of a mesh."""
    behind = {}
    render.add_endpoints(behind, workloads)
    return {
        "workloads": list(render.workloads(workloads)),
        "services": list(render.services(services, behind)),
        "policies": list(render.policies(policies)),
        "stagedServices": dict(render.staged(services, behind)),
    }


def static(mesh):
    return {key: list(values) for key, values in render.static(mesh.workloads, mesh.services, mesh.policies).items()}


def test_the_dump_of_a_mesh_with_every_key_is_the_golden_one():
    mesh = full()
    dump = state(mesh.workloads, mesh.services, mesh.policies) | {"staticConfig": static(mesh)}
    assert json.dumps(dump, indent=2) + "\n" == (GOLDEN / "config_dump.json").read_text()


def test_the_static_config_reads_back_as_the_same_mesh():
    mesh = full()
    again = parse(json.dumps(static(mesh)), "dump.json")
    assert (again.workloads, again.services, again.policies) == (mesh.workloads, mesh.services, mesh.policies)


def test_an_unhealthy_endpoint_is_shown_only_where_it_is_used():
    sick = Workload(uid="u", name="w", namespace="n", status=Health.UNHEALTHY, services={"n/s": {80: 80}})
    service = Service(name="s", namespace="n", hostname="s")
    assert state([sick], [service])["services"][0]["endpoints"] == {}
    all_used = Service(
        name="s", namespace="n", hostname="s", load_balancer=LoadBalancer(health_policy=HealthPolicy.ALLOW_ALL)
    )
    shown = state([sick], [all_used])["services"][0]["endpoints"]
    assert shown == {"u": {"workloadUid": "u", "port": {"80": 80}, "status": "Unhealthy"}}


def test_endpoints_of_a_service_that_is_not_known_are_staged():
    workload = Workload(uid="u", name="w", namespace="n", services={"n/later": {80: 8080}})
    assert state([workload])["stagedServices"] == {
        "n/later": {"u": {"workloadUid": "u", "port": {"80": 8080}, "status": "Healthy"}}
    }


def test_lists_are_sorted_as_ztunnel_sorts_them():
    workloads = [Workload(uid=uid, name=uid, namespace="n") for uid in ("b", "a")]
    services = [Service(name=name, namespace="n", hostname=name) for name in ("t", "s")]
    shown = state(workloads, services)
    assert [w["uid"] for w in shown["workloads"]] == ["a", "b"]
    assert [s["hostname"] for s in shown["services"]] == ["s", "t"]
