from hypothesis import given
from hypothesis import strategies as st

from ztunnel.control.mesh.diff import changes
from ztunnel.control.mesh.localfile import Mesh
from ztunnel.core.model.policy import Action, Policy, PolicyScope
from ztunnel.core.model.service import Service
from ztunnel.core.model.workload import Workload
from ztunnel.runtime.slices import at_once


def workload(uid, capacity=1):
    return Workload(uid=uid, name=uid, namespace="n", capacity=capacity)


def service(name, canonical=False):
    return Service(name=name, namespace="n", hostname=name, canonical=canonical)


def policy(name, dry_run=False):
    return Policy(name=name, namespace="n", scope=PolicyScope.GLOBAL, action=Action.ALLOW, dry_run=dry_run)


names = st.sampled_from("abcdef")
meshes = st.builds(
    lambda w, s, p: Mesh(
        tuple(workload(*item) for item in w.items()),
        tuple(service(*item) for item in s.items()),
        tuple(policy(*item) for item in p.items()),
    ),
    st.dictionaries(names, st.integers(1, 2)),
    st.dictionaries(names, st.booleans()),
    st.dictionaries(names, st.booleans()),
)


def content(mesh):
    return (
        {w.uid: w for w in mesh.workloads},
        {str(s.key): s for s in mesh.services},
        {p.key: p for p in mesh.policies},
    )


@given(old=meshes, new=meshes, size=st.integers(1, 4))
def test_applying_the_slices_turns_old_into_new(old, new, size):
    workloads, services, policies = content(old)
    slices = at_once(changes(old, new, size))
    for part in slices:
        workloads.update({w.uid: w for w in part.workloads})
        services.update({str(s.key): s for s in part.services})
        policies.update({p.key: p for p in part.policies})
        for uid in part.removed_workloads:
            del workloads[uid]
        for key in part.removed_services:
            del services[key]
        for key in part.removed_policies:
            del policies[key]
    assert (workloads, services, policies) == content(new)
    assert [part.last for part in slices] == [False] * (len(slices) - 1) + [True] * bool(slices)


@given(old=meshes, new=meshes, size=st.integers(1, 4))
def test_a_slice_is_small_and_never_empty(old, new, size):
    for part in at_once(changes(old, new, size)):
        upserts = len(part.workloads) + len(part.services) + len(part.policies)
        removals = len(part.removed_workloads) + len(part.removed_services) + len(part.removed_policies)
        assert 1 <= upserts + removals <= size


def test_equal_meshes_need_nothing():
    mesh = Mesh((workload("a"),), (service("s"),), (policy("p"),))
    assert at_once(changes(mesh, mesh, 10)) == []


def test_only_what_differs_is_sent():
    old = Mesh((workload("a"), workload("b")))
    [part] = at_once(changes(old, Mesh((workload("a"), workload("b", 7))), 10))
    assert part.workloads == (workload("b", 7),)


def test_policies_are_there_before_and_go_after_the_workloads_that_name_them():
    full = Mesh((workload("a"),), (service("s"),), (policy("p"),))
    kinds = [
        [field for field in part.__struct_fields__ if field != "last" and getattr(part, field)]
        for part in at_once(changes(Mesh(), full, 10)) + at_once(changes(full, Mesh(), 10))
    ]
    assert kinds == [
        ["policies"],
        ["services"],
        ["workloads"],
        ["removed_workloads"],
        ["removed_services"],
        ["removed_policies"],
    ]
