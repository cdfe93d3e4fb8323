"""Port 15020: metrics. `/metrics` and `/stats/prometheus` are the same."""

from __future__ import annotations

import gzip
from functools import partial

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ztunnel.control.admin.replies import build
from ztunnel.control.admin.source import AdminSource
from ztunnel.observe.metrics import OPENMETRICS_TYPE, TEXT_TYPE

GZIP_LEVEL = 1
"""Label text repeats so much that the fastest level already takes 95 % away."""


def stats_app(source: AdminSource) -> Starlette:
    async def metrics(request: Request) -> Response:
        as_openmetrics = _accepts(request, "accept", "application/openmetrics-text")
        body = await source.metrics(as_openmetrics)
        headers = {"vary": "accept, accept-encoding"}
        if _accepts(request, "accept-encoding", "gzip"):
            body = await trio.to_thread.run_sync(partial(gzip.compress, body, GZIP_LEVEL, mtime=0))
            headers["content-encoding"] = "gzip"
        return Response(body, headers=headers | {"content-type": OPENMETRICS_TYPE if as_openmetrics else TEXT_TYPE})

    return build([Route(path, metrics) for path in ("/metrics", "/stats/prometheus")], {})


def _accepts(request: Request, header: str, wanted: str) -> bool:
    """Whether the list in `header` names `wanted` and does not rule it out with q=0."""
    for entry in ",".join(request.headers.getlist(header)).split(","):
        name, *parameters = (part.strip().lower() for part in entry.split(";"))
        if name == wanted:
            return not any(
                parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters
            )
    return False
