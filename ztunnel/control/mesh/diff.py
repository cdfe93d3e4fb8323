"""What changed between two meshes, as small slices for the workers.

Pure. Only what differs is sent; upserts come before removals and policies before the workloads that name them, so
that no moment in between knows less than either end: a workload is never there without its policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from ztunnel.control.mesh.localfile import Mesh
from ztunnel.core.model.service import Service
from ztunnel.link.messages import StateSlice
from ztunnel.runtime.slices import Steps

T = TypeVar("T")


class _Delta(NamedTuple):
    upserts: list[Any]
    removed: list[str]


def changes(old: Mesh, new: Mesh, size: int) -> Steps[list[StateSlice]]:
    """Slices of at most `size` upserts or removals each that turn `old` into `new`; none when they are equal."""
    policies = yield from _delta(old.policies, new.policies, lambda policy: policy.key)
    services = yield from _delta(old.services, new.services, _service_key)
    workloads = yield from _delta(old.workloads, new.workloads, lambda workload: workload.uid)
    fields: list[dict[str, Any]] = [
        *({"policies": part} for part in _parts(policies.upserts, size)),
        *({"services": part} for part in _parts(services.upserts, size)),
        *({"workloads": part} for part in _parts(workloads.upserts, size)),
        *({"removed_workloads": part} for part in _parts(workloads.removed, size)),
        *({"removed_services": part} for part in _parts(services.removed, size)),
        *({"removed_policies": part} for part in _parts(policies.removed, size)),
    ]
    last = len(fields) - 1
    slices = []
    for number, part in enumerate(fields):
        slices.append(StateSlice(**part, last=number == last))
        yield
    return slices


def _service_key(service: Service) -> str:
    return str(service.key)


def _delta(old: Iterable[T], new: Iterable[T], key: Callable[[T], str]) -> Steps[_Delta]:
    before = {}
    for value in old:
        before[key(value)] = value
        yield
    upserts = []
    for value in new:
        known = before.pop(key(value), None)
        if known is not value and known != value:
            upserts.append(value)
        yield
    return _Delta(upserts, list(before))


def _parts(values: list[T], size: int) -> Iterator[tuple[T, ...]]:
    for start in range(0, len(values), size):
        yield tuple(values[start : start + size])
