"""Port 15021: `/healthz/ready`, 200 when nothing is pending, else 500 and what is."""

from __future__ import annotations

from ztunnel.control.admin.asgi import App, Request, Response, text
from ztunnel.control.admin.replies import Route, build
from ztunnel.control.admin.source import AdminSource


def readiness_app(source: AdminSource) -> App:
    async def ready(request: Request) -> Response:
        pending = sorted(source.pending())
        if pending:
            return text(f"not ready, pending: {', '.join(pending)}\n", 500)
        return text("ready\n")

    return build({"/healthz/ready": Route(ready)}, {})
