"""Port 15000: look at the agent, change its log filter, stop it (reference 12.1). Loopback only, no authentication.

What changes something needs POST. A large config_dump is written in pieces, so that traffic in the same process does
not wait for it.
"""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
import trio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ztunnel.control.admin import dump
from ztunnel.control.admin.config_section import config_section
from ztunnel.control.admin.guard import LocalOnly
from ztunnel.control.admin.replies import build
from ztunnel.control.admin.source import AdminSource
from ztunnel.control.admin.tasks import render_tasks
from ztunnel.core.model.workload import Workload

PIECE = 64
"""Entries of a list that are rendered without a pause: about 1 ms."""

ENDPOINTS = (
    ("GET", "/config_dump", "the whole state as JSON; secrets redacted"),
    ("POST", "/logging", "read the log filter; change it with ?level=LEVEL or ?level=TARGET=LEVEL, undo with ?reset"),
    ("POST", "/quitquitquit", "drain and end the agent"),
    ("GET", "/debug/tasks", "the agent's tasks and where they wait"),
)
LOGGING_USAGE = """\
usage: POST /logging                              the filter in force (GET too)
usage: POST /logging?level=<level>                for everything
usage: POST /logging?level=<target>=<level>,...   for single targets, e.g. access=debug,ztunnel::proxy=trace
usage: POST /logging?reset&level=...              first return to the filter of the start
levels: off, error, warn, info, debug, trace
"""
USAGE = {"/logging": LOGGING_USAGE, "/quitquitquit": "usage: POST /quitquitquit\n"}


def admin_app(source: AdminSource) -> Starlette:
    async def config_dump(request: Request) -> Response:
        return StreamingResponse(_pretty(await _sections(source)), media_type="application/json")

    async def log_filter(request: Request) -> Response:
        return _log_filter(source, request)

    async def quit_agent(request: Request) -> Response:
        return PlainTextResponse("shutdown now\n", background=BackgroundTask(_quit, source))

    routes = [
        Route("/", _index),
        Route("/config_dump", config_dump),
        Route("/logging", log_filter, methods=["GET", "POST"]),
        Route("/quitquitquit", quit_agent, methods=["POST"]),
        Route("/debug/tasks", _tasks),
    ]
    return build(routes, USAGE, [Middleware(LocalOnly)])


async def _quit(source: AdminSource) -> None:
    source.quit()


async def _tasks(request: Request) -> Response:
    return PlainTextResponse(render_tasks())


async def _index(request: Request) -> Response:
    if "text/html" not in request.headers.get("accept", ""):
        width = max(len(path) for _, path, _ in ENDPOINTS)
        return PlainTextResponse("".join(f"{verb:<4}  {path:<{width}}  {text}\n" for verb, path, text in ENDPOINTS))
    rows = "".join(
        f"<tr><td>{verb}</td><td>{f'<a href={path[1:]}>{path}</a>' if verb == 'GET' else path}</td><td>{text}</td></tr>"
        for verb, path, text in ENDPOINTS
    )
    return HTMLResponse(f"<!doctype html><title>ztunnel</title><h1>ztunnel</h1><table>{rows}</table>\n")


def _log_filter(source: AdminSource, request: Request) -> Response:
    spec = request.query_params.get("level", "")
    reset = "reset" in request.query_params
    unknown = set(request.query_params) - {"level", "reset"}
    if unknown:
        return PlainTextResponse(f"unknown parameter: {', '.join(sorted(unknown))}\n{LOGGING_USAGE}", 400)
    if not spec and not reset:
        return PlainTextResponse(f"current log level is {source.log_filter()}\n")
    if request.method != "POST":
        return PlainTextResponse(f"{request.method} changes nothing\n{LOGGING_USAGE}", 405, {"allow": "POST"})
    try:
        now = source.change_log_filter(spec, reset)
    except ValueError as error:
        return PlainTextResponse(f"{error}\n{LOGGING_USAGE}", 400)
    return PlainTextResponse(f"current log level is {now}\n")


async def _sections(source: AdminSource) -> list[tuple[str, Any]]:
    """Key and value of config_dump's top level; an iterator is a list that is made while it is written."""
    mesh = await source.mesh()
    static = await source.static()
    connections = await source.connections()
    endpoints = await _endpoints(mesh.workloads)
    return [
        ("workloads", dump.workloads(mesh)),
        ("services", dump.services(mesh, endpoints)),
        ("policies", dump.policies(mesh)),
        ("stagedServices", dump.staged(mesh, endpoints)),
        (
            "staticConfig",
            {
                "workloads": list(dump.workloads(static)),
                "policies": list(dump.policies(static)),
                "services": list(dump.services(static, dump.endpoints_of(static.workloads))),
            },
        ),
        ("version", _version(source)),
        ("config", config_section(source.settings)),
        ("certificates", list(source.certificates())),
        ("workloadState", dump.workload_state(source.pods(), connections)),
    ]


async def _endpoints(workloads: Sequence[Workload]) -> dump.Endpoints:
    found: dump.Found = {}
    for start in range(0, len(workloads), PIECE):
        dump.add_endpoints(found, workloads[start : start + PIECE])
        await trio.lowlevel.checkpoint()
    return found


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


async def _pretty(sections: Iterable[tuple[str, Any]]) -> AsyncIterator[str]:
    """One JSON object, indented by two, in pieces."""
    opening = "{\n"
    for key, value in sections:
        yield f'{opening}  "{key}": '
        opening = ",\n"
        if not isinstance(value, Iterator):
            yield _json(value, 1)
            continue
        before = "[\n    "
        while entries := list(islice(value, PIECE)):
            yield before + ",\n    ".join(_json(entry, 2) for entry in entries)
            before = ",\n    "
            await trio.lowlevel.checkpoint()
        yield "[]" if before.startswith("[") else "\n  ]"
    yield "\n}\n"


def _json(value: object, depth: int) -> str:
    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode()
    return text.replace("\n", "\n" + "  " * depth)
