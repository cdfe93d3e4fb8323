"""What the three servers have in common: how wrong requests are answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


def build(routes: Sequence[Route], usage: Mapping[str, str], middleware: Sequence[Middleware] = ()) -> Starlette:
    """An application in which another path is an empty 404 and another method a 405 with the usage of the path."""

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = error.headers
        if error.status_code != 405:
            return Response(status_code=error.status_code, headers=headers)
        text = usage.get(request.url.path, f"usage: GET {request.url.path}\n")
        return PlainTextResponse(f"{request.method} is not allowed here\n{text}", 405, headers)

    async def fail(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{type(error).__name__}: {error}\n", 500)

    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: refuse, Exception: fail},
    )
    app.router.redirect_slashes = False
    return app
