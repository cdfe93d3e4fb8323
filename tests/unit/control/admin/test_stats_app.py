"""Metrics come in the form that the scraper asked for."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from ztunnel.control.admin.stats_app import stats_app

OPENMETRICS = "application/openmetrics-text;charset=utf-8;version=1.0.0"


@pytest.mark.parametrize("path", ["/metrics", "/stats/prometheus"])
@pytest.mark.parametrize(
    ("accept", "content_type", "body"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", b"# text\n"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", b"# text\n"),
        ("application/openmetrics-text", OPENMETRICS, b"# EOF\n"),
        ("text/plain;q=0.5, application/openmetrics-text;version=1.0.0;q=0.75", OPENMETRICS, b"# EOF\n"),
        ("application/openmetrics-text;q=0", "text/plain; version=0.0.4; charset=utf-8", b"# text\n"),
    ],
)
async def test_the_form_follows_the_accept_header(
    agent: Any, ask: Any, path: str, accept: str, content_type: str, body: bytes
) -> None:
    reply = await ask(stats_app(agent.source()), path, headers={"accept": accept})
    assert (reply.status, reply.headers["content-type"], reply.body) == (200, content_type, body)


async def test_gzip_is_used_when_asked_for(agent: Any, ask: Any) -> None:
    app = stats_app(agent.source())
    reply = await ask(app, "/metrics", headers={"accept-encoding": "deflate, gzip"})
    assert reply.headers["content-encoding"] == "gzip"
    assert gzip.decompress(reply.body) == b"# text\n"
    assert reply.headers["content-length"] == str(len(reply.body))
    reply = await ask(app, "/metrics", headers={"accept-encoding": "gzip;q=0"})
    assert "content-encoding" not in reply.headers


async def test_other_methods_and_paths_are_refused(agent: Any, ask: Any) -> None:
    app = stats_app(agent.source())
    assert (await ask(app, "/metrics", "POST")).status == 405
    assert (await ask(app, "/")).status == 404
