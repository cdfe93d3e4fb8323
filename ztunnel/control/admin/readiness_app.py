"""Port 15021: `/healthz/ready`, 200 when nothing is pending, else 500 and what is."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ztunnel.control.admin.replies import build
from ztunnel.control.admin.source import AdminSource


def readiness_app(source: AdminSource) -> Starlette:
    async def ready(request: Request) -> Response:
        pending = sorted(source.pending())
        if pending:
            return PlainTextResponse(f"not ready, pending: {', '.join(pending)}\n", 500)
        return PlainTextResponse("ready\n")

    return build([Route("/healthz/ready", ready)], {})
