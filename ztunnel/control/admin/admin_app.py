"""Port 15000: look at the agent, change its log filter, stop it. Loopback only, no authentication.

What changes something needs POST.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ztunnel.control.admin import dump
from ztunnel.control.admin.guard import LocalOnly
from ztunnel.control.admin.replies import build
from ztunnel.control.admin.source import AdminSource
from ztunnel.control.admin.tasks import render_tasks

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
        return StreamingResponse(dump.pretty(await dump.sections(source)), media_type="application/json")

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
