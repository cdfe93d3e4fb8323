"""Port 15020: metrics. `/metrics` and `/stats/prometheus` are the same."""

from __future__ import annotations

import zlib
from functools import partial

import trio

from ztunnel.control.admin.asgi import App, Request, Response
from ztunnel.control.admin.replies import Route, build
from ztunnel.control.admin.source import AdminSource
from ztunnel.observe.exposition import OPENMETRICS_TYPE, TEXT_TYPE

GZIP_LEVEL = 1
"""Label text repeats so much that the fastest level already takes 95 % away."""
GZIP_FORMAT = 16 + zlib.MAX_WBITS


def stats_app(source: AdminSource) -> App:
    async def metrics(request: Request) -> Response:
        as_openmetrics = _accepts(request, "accept", "application/openmetrics-text")
        body = await source.metrics(as_openmetrics)
        headers = {"vary": "accept, accept-encoding"}
        if _accepts(request, "accept-encoding", "gzip"):
            body = await trio.to_thread.run_sync(partial(zlib.compress, body, GZIP_LEVEL, GZIP_FORMAT))
            headers["content-encoding"] = "gzip"
        return Response(body, headers=headers | {"content-type": OPENMETRICS_TYPE if as_openmetrics else TEXT_TYPE})

    return build(dict.fromkeys(("/metrics", "/stats/prometheus"), Route(metrics)), {})


def _accepts(request: Request, header: str, wanted: str) -> bool:
    """Whether the list in `header` names `wanted` and does not rule it out with q=0."""
    for entry in ",".join(request.headers(header)).split(","):
        name, *parameters = (part.strip().lower() for part in entry.split(";"))
        if name == wanted:
            return not any(
                parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters
            )
    return False
