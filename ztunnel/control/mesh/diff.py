"""What changed between two meshes, as small slices for the workers.

Pure. Only what differs is sent; upserts come before removals and policies before the workloads that name them, so
that no moment in between knows less than either end: a workload is never there without its policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ztunnel.control.mesh.localfile import Mesh
from ztunnel.core.model.service import Service
from ztunnel.link.messages import StateSlice

T = TypeVar("T")


def changes(old: Mesh, new: Mesh, size: int) -> list[StateSlice]:
    """Slices of at most `size` upserts or removals each that turn `old` into `new`; none when they are equal."""
    policies, removed_policies = _delta(old.policies, new.policies, lambda policy: policy.key)
    services, removed_services = _delta(old.services, new.services, _service_key)
    workloads, removed_workloads = _delta(old.workloads, new.workloads, lambda workload: workload.uid)
    fields: list[dict[str, Any]] = [
        *({"policies": part} for part in _parts(policies, size)),
        *({"services": part} for part in _parts(services, size)),
        *({"workloads": part} for part in _parts(workloads, size)),
        *({"removed_workloads": part} for part in _parts(removed_workloads, size)),
        *({"removed_services": part} for part in _parts(removed_services, size)),
        *({"removed_policies": part} for part in _parts(removed_policies, size)),
    ]
    last = len(fields) - 1
    return [StateSlice(**part, last=number == last) for number, part in enumerate(fields)]


def _service_key(service: Service) -> str:
    return str(service.key)


def _delta(old: Iterable[T], new: Iterable[T], key: Callable[[T], str]) -> tuple[list[T], list[str]]:
    before = {key(value): value for value in old}
    after = {key(value): value for value in new}
    upserts = [value for name, value in after.items() if before.get(name) != value]
    return upserts, [name for name in before if name not in after]


def _parts(values: list[T], size: int) -> Iterator[tuple[T, ...]]:
    for start in range(0, len(values), size):
        yield tuple(values[start : start + size])
