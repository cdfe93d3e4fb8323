"""Port 15000: look at the agent, change its log filter, stop it. Loopback only, no authentication.

What changes something needs POST.
"""

from __future__ import annotations

from ztunnel.control.admin import dump
from ztunnel.control.admin.asgi import HTML, JSON, App, Request, Response, text
from ztunnel.control.admin.guard import refuse_strangers
from ztunnel.control.admin.replies import Route, build
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


def admin_app(source: AdminSource) -> App:
    async def config_dump(request: Request) -> Response:
        return Response(dump.pretty(await dump.sections(source)), headers={"content-type": JSON})

    async def log_filter(request: Request) -> Response:
        return _log_filter(source, request)

    async def quit_agent(request: Request) -> Response:
        return text("shutdown now\n", then=source.quit)

    routes = {
        "/": Route(_index),
        "/config_dump": Route(config_dump),
        "/logging": Route(log_filter, ("GET", "POST")),
        "/quitquitquit": Route(quit_agent, ("POST",)),
        "/debug/tasks": Route(_tasks),
    }
    return build(routes, USAGE, refuse_strangers)


async def _tasks(request: Request) -> Response:
    return text(render_tasks())


async def _index(request: Request) -> Response:
    if not any("text/html" in accepted for accepted in request.headers("accept")):
        width = max(len(path) for _, path, _ in ENDPOINTS)
        return text("".join(f"{verb:<4}  {path:<{width}}  {what}\n" for verb, path, what in ENDPOINTS))
    rows = "".join(
        f"<tr><td>{verb}</td><td>{f'<a href={path[1:]}>{path}</a>' if verb == 'GET' else path}</td><td>{what}</td></tr>"
        for verb, path, what in ENDPOINTS
    )
    page = f"<!doctype html><title>ztunnel</title><h1>ztunnel</h1><table>{rows}</table>\n"
    return Response(page.encode(), headers={"content-type": HTML})


def _log_filter(source: AdminSource, request: Request) -> Response:
    spec = request.query.get("level", "")
    reset = "reset" in request.query
    unknown = set(request.query) - {"level", "reset"}
    if unknown:
        return text(f"unknown parameter: {', '.join(sorted(unknown))}\n{LOGGING_USAGE}", 400)
    if not spec and not reset:
        return text(f"current log level is {source.log_filter()}\n")
    if request.method != "POST":
        return text(f"{request.method} changes nothing\n{LOGGING_USAGE}", 405, {"allow": "POST"})
    try:
        now = source.change_log_filter(spec, reset)
    except ValueError as error:
        return text(f"{error}\n{LOGGING_USAGE}", 400)
    return text(f"current log level is {now}\n")
