import pytest

from benches import mesh
from benches.mesh import LARGEST_CROWD, Pod, Versions
from ztunnel.control.mesh.diff import changes
from ztunnel.control.mesh.localfile import parse
from ztunnel.runtime.slices import at_once


def difference(old, new):
    parts = at_once(changes(parse(old, "old"), parse(new, "new"), 1_000_000))
    return sum(len(part.workloads) for part in parts), sum(len(part.policies) for part in parts)


def test_the_agent_reads_pair_crowd_policy_and_pods():
    read = parse(mesh.pair() + mesh.crowd(3) + mesh.policy(7) + mesh.pods([Pod("here", "bench/client")]), "mesh")
    assert [workload.name for workload in read.workloads] == ["client", "server", "crowd-0", "crowd-1", "crowd-2"]
    assert len(read.policies) == 1
    assert [(pod.netns, pod.workload_name) for pod in read.pods] == [("here", "client")]


def test_every_workload_of_a_crowd_has_an_address_of_its_own():
    numbers = (0, 255, 256, 65_535, 65_536, LARGEST_CROWD - 1)
    assert len({mesh.crowd_address(number) for number in numbers}) == len(numbers)


def test_a_crowd_larger_than_its_network_is_refused():
    with pytest.raises(ValueError, match=r"do not fit into 11\.0\.0\.0/8"):
        mesh.crowd(LARGEST_CROWD + 1)


@pytest.mark.parametrize(
    ("workloads", "policies", "expected"), [(True, False, (4, 0)), (False, True, (0, 1)), (True, True, (4, 1))]
)
def test_each_version_changes_what_was_asked_for(workloads, policies, expected):
    versions = Versions(10, 4)
    first, second = (versions.next(workloads=workloads, policies=policies) for _ in range(2))
    assert difference(first, second) == expected


def test_a_reader_that_misses_a_version_finds_its_changes_in_the_next():
    versions = Versions(10, 4)
    first, _, third = (versions.next(workloads=True, policies=False) for _ in range(3))
    assert difference(first, third) == (8, 0)


def test_more_changes_than_workloads_are_refused():
    with pytest.raises(ValueError, match="5 of 4 workloads"):
        Versions(4, 5)
