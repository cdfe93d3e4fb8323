"""What the three servers have in common: which path is answered by whom, and how wrong requests are answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from ztunnel.control.admin.asgi import App, Receive, Request, Response, Scope, Send, text

Handler = Callable[[Request], Awaitable[Response]]


class Route(NamedTuple):
    """Whoever answers GET is asked for HEAD too; the server leaves the body out."""

    handler: Handler
    methods: tuple[str, ...] = ("GET",)


def build(
    routes: Mapping[str, Route], usage: Mapping[str, str], guard: Callable[[Request], Response | None] | None = None
) -> App:
    """An application in which another path is an empty 404 and another method a 405 with the usage of the path.

    `guard` sees every request first and answers those that it refuses.
    """

    async def answer(request: Request) -> Response:
        refusal = guard(request) if guard is not None else None
        if refusal is not None:
            return refusal
        route = routes.get(request.path)
        if route is None:
            return Response(status=404)
        allowed = (*route.methods, "HEAD") if "GET" in route.methods else route.methods
        if request.method in allowed:
            return await route.handler(request)
        how = usage.get(request.path, f"usage: GET {request.path}\n")
        return text(f"{request.method} is not allowed here\n{how}", 405, {"allow": ", ".join(allowed)})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await answer(Request(scope))
        except Exception as error:
            await text(f"{type(error).__name__}: {error}\n", 500)(scope, receive, send)
            raise  # for the server's log
        await response(scope, receive, send)

    return app
