"""config_dump: what its sections are, and how they are written.

The shapes of the mesh are `mesh.render`'s, those of the settings `config.describe`'s; here are the sections that only
the agent itself can tell. A large dump is written in pieces, so that traffic in the same process does not wait for it.
"""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice

import msgspec
import trio

from ztunnel.config.describe import to_config_dump
from ztunnel.control.admin.source import AdminSource, PodView
from ztunnel.control.mesh import render
from ztunnel.control.mesh.render import Endpoints, Shape
from ztunnel.core.model.connection import Direction
from ztunnel.core.model.workload import Workload
from ztunnel.link.messages import OpenConnection

PIECE = 64
"""Entries of a list that are rendered without a pause: about 1 ms."""


async def sections(source: AdminSource) -> Shape:
    """The dump, as `pretty` takes it."""
    mesh = await source.mesh()
    static = await source.static()
    connections = await source.connections()
    behind = await _endpoints(mesh.workloads)
    staged: Shape = {}
    for key, endpoints in render.staged(mesh.services, behind):
        staged[key] = endpoints
        await trio.lowlevel.checkpoint()
    return {
        "workloads": render.workloads(mesh.workloads),
        "services": render.services(mesh.services, behind),
        "policies": render.policies(mesh.policies),
        "stagedServices": staged,
        "staticConfig": render.static(static.workloads, static.services, static.policies),
        "version": _version(source),
        "config": to_config_dump(source.settings, proxy_args=source.proxy_args),
        "certificates": list(source.certificates()),
        "workloadState": workload_state(source.pods(), connections),
    }


async def _endpoints(workloads: Sequence[Workload]) -> Endpoints:
    found: Endpoints = {}
    for start in range(0, len(workloads), PIECE):
        render.add_endpoints(found, workloads[start : start + PIECE])
        await trio.lowlevel.checkpoint()
    return found


def workload_state(pods: Sequence[PodView], connections: Sequence[OpenConnection]) -> Shape:
    """`workloadState`: each pod with its open connections; what istioctl does not know of them is ours."""
    state: Shape = {
        pod.uid: {
            "state": "Up" if pod.up else "Pending",
            "connections": {"inbound": [], "outbound": []},
            "info": {"name": pod.name, "namespace": pod.namespace, "serviceAccount": pod.service_account},
        }
        for pod in sorted(pods, key=lambda each: each.uid)
    }
    for connection in connections:
        if connection.pod in state:
            side = "outbound" if connection.direction == Direction.OUTBOUND.value else "inbound"
            state[connection.pod]["connections"][side].append(_connection(connection))
    return state


def _connection(connection: OpenConnection) -> Shape:
    return {
        "src": connection.source,
        "originalDst": connection.original_destination or None,
        "actualDst": connection.actual_destination,
        "protocol": connection.protocol,
        "id": connection.id,
        "opened": connection.opened,
        "bytesSent": connection.bytes_sent,
        "bytesReceived": connection.bytes_received,
        "why": connection.why,
    }


def _version(source: AdminSource) -> dict[str, str]:
    return {
        "version": source.version,
        "gitRevision": "unknown",
        "rustVersion": "",
        "pythonVersion": platform.python_version(),
        "buildProfile": "release",
        "buildStatus": "unknown",
        "istioVersion": source.settings.istio_meta_istio_version,
        "cryptoProvider": source.crypto_provider,
    }


async def pretty(value: object, depth: int = 0) -> AsyncIterator[str]:
    """JSON, indented by two, in pieces: an iterator is a list that is made while it is written.

    Iterators may stand in the outermost object and in the objects in that; these two levels are written key by key.
    """
    margin = "\n" + "  " * depth
    if isinstance(value, Iterator):
        before = f"[{margin}  "
        while entries := list(islice(value, PIECE)):
            yield before + f",{margin}  ".join(_json(entry, depth + 1) for entry in entries)
            before = f",{margin}  "
            await trio.lowlevel.checkpoint()
        yield "[]" if before[0] == "[" else f"{margin}]"
    elif isinstance(value, dict) and value and depth < 2:
        before = "{"
        for key, each in value.items():
            yield f"{before}{margin}  {_json(key, 0)}: "
            before = ","
            async for piece in pretty(each, depth + 1):
                yield piece
            await trio.lowlevel.checkpoint()
        yield f"{margin}}}" if depth else "\n}\n"
    else:
        yield _json(value, depth)


def _json(value: object, depth: int) -> str:
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return text.replace("\n", "\n" + "  " * depth)
