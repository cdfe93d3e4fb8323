"""The admin port answers as ztunnel's does, changes things only by POST and tells no secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from ztunnel.control.admin.admin_app import admin_app
from ztunnel.control.admin.dump import PIECE
from ztunnel.control.admin.source import MeshView
from ztunnel.core.model.workload import Workload

GOLDEN = Path(__file__).parents[3] / "golden" / "config_dump.json"


async def test_config_dump_is_exactly_the_golden_one(agent: Any, ask: Any) -> None:
    reply = await ask(admin_app(agent.source()), "/config_dump")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    dumped = json.loads(reply.text)
    assert dumped["version"].pop("pythonVersion")
    assert dumped["config"].pop("settings")["NODE_NAME"] == {"value": "node-1", "origin": "default"}
    golden = json.loads(GOLDEN.read_text())
    assert dumped == golden
    assert list(dumped) == list(golden)


async def test_config_dump_is_indented_json(agent: Any, ask: Any) -> None:
    agent.mesh = MeshView(workloads=agent.mesh.workloads)
    text = (await ask(admin_app(agent.source()), "/config_dump")).text
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


async def test_a_large_dump_lets_others_run_in_between(agent: Any, ask: Any) -> None:
    many = [Workload(uid=f"w{number:06}", name="w") for number in range(PIECE * 20)]
    agent.mesh = MeshView(workloads=many)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        reply = await ask(admin_app(agent.source()), "/config_dump")
        nursery.cancel_scope.cancel()
    assert turns > 10
    assert [each["uid"] for each in json.loads(reply.text)["workloads"]] == [each.uid for each in many]


async def test_config_dump_holds_no_secret(agent: Any, ask: Any) -> None:
    pem = "-----BEGIN CERTIFICATE-----s3cret"
    agent.settings = msgspec.structs.replace(
        agent.settings, ca_headers={"x": "s3cret"}, xds_root_ca=pem, ca_root_ca=pem, local_xds="s3cret"
    )
    text = (await ask(admin_app(agent.source()), "/config_dump")).text
    assert "s3cret" not in text
    config = json.loads(text)["config"]
    assert config["xdsHeaders"] == [["authorization", "(redacted)"]]
    assert config["xdsRootCert"] == "Static"


@pytest.mark.parametrize(
    ("target", "answer", "after"),
    [
        ("/logging", "info", "info"),
        ("/logging?level=debug", "debug", "debug"),
        ("/logging?level=access=debug,ztunnel::proxy=trace", *["info,access=debug,ztunnel.proxy=trace"] * 2),
        ("/logging?level=access:warn", *["info,access=warn"] * 2),
        ("/logging?reset", "info", "info"),
        ("/logging?level=warn&reset=true", "warn", "warn"),
    ],
)
async def test_logging_reads_and_changes_the_filter(agent: Any, ask: Any, target: str, answer: str, after: str) -> None:
    reply = await ask(admin_app(agent.source()), target, "POST")
    assert (reply.status, reply.text) == (200, f"current log level is {answer}\n")
    assert str(agent.filter) == after


async def test_directives_add_up_until_a_reset(agent: Any, ask: Any) -> None:
    app = admin_app(agent.source())
    await ask(app, "/logging?level=access=debug", "POST")
    reply = await ask(app, "/logging?level=x=warn", "POST")
    assert reply.text == "current log level is info,access=debug,x=warn\n"
    assert (await ask(app, "/logging?reset", "POST")).text == "current log level is info\n"


@pytest.mark.parametrize("query", ["level=loud", "level=access", "level=info&shape=round"])
async def test_a_bad_filter_is_refused_with_usage_and_changes_nothing(agent: Any, ask: Any, query: str) -> None:
    reply = await ask(admin_app(agent.source()), f"/logging?{query}", "POST")
    assert reply.status == 400
    assert "usage: POST /logging" in reply.text
    assert str(agent.filter) == "info"


async def test_get_reads_the_filter_and_never_changes_it(agent: Any, ask: Any) -> None:
    app = admin_app(agent.source())
    assert (await ask(app, "/logging")).text == "current log level is info\n"
    for query in ("level=debug", "reset"):
        reply = await ask(app, f"/logging?{query}")
        assert reply.status == 405
        assert "usage: POST /logging" in reply.text
    assert str(agent.filter) == "info"


async def test_quitquitquit_needs_post_and_answers_before_it_quits(agent: Any, ask: Any) -> None:
    app = admin_app(agent.source())
    reply = await ask(app, "/quitquitquit")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert "usage: POST /quitquitquit" in reply.text
    assert agent.quits == 0
    reply = await ask(app, "/quitquitquit", "POST")
    assert (reply.status, reply.text) == (200, "shutdown now\n")
    assert agent.quits == 1


async def test_index_is_text_for_curl_and_html_for_browsers(agent: Any, ask: Any) -> None:
    app = admin_app(agent.source())
    plain = await ask(app, "/", headers={"accept": "*/*"})
    assert plain.headers["content-type"].startswith("text/plain")
    assert [line.split()[:2] for line in plain.text.splitlines()] == [
        ["GET", "/config_dump"],
        ["POST", "/logging"],
        ["POST", "/quitquitquit"],
        ["GET", "/debug/tasks"],
    ]
    page = await ask(app, "/", headers={"accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<a href=config_dump>" in page.text


async def test_other_paths_are_an_empty_404_and_other_methods_405(agent: Any, ask: Any) -> None:
    app = admin_app(agent.source())
    reply = await ask(app, "/config_dump/")
    assert (reply.status, reply.body) == (404, b"")
    reply = await ask(app, "/config_dump", "DELETE")
    assert reply.status == 405
    assert "usage: GET /config_dump" in reply.text


async def test_an_error_becomes_500_with_its_text(agent: Any) -> None:
    async def broken() -> MeshView:
        raise RuntimeError("the worker is gone")

    source = msgspec.structs.replace(agent.source(), mesh=broken)
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/config_dump", "query_string": b"", "headers": []}
    with pytest.raises(RuntimeError):  # for the server's log
        await admin_app(source)(scope, lambda: None, send)
    assert sent[0]["status"] == 500
    assert sent[1]["body"] == b"RuntimeError: the worker is gone\n"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:15000"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:15000"}, 200),
        ({"host": "10.0.0.1:15000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:15000"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost:15000", "origin": "http://localhost:15000"}, 200),
        ({"host": "localhost:15000", "origin": "https://evil.example"}, 403),
        ({"host": "localhost:15000", "origin": "null"}, 403),
        ({"host": "localhost:15000", "origin": "http://[::1"}, 403),
    ],
)
async def test_web_pages_and_rebound_names_are_refused(
    agent: Any, ask: Any, headers: dict[str, str], status: int
) -> None:
    reply = await ask(admin_app(agent.source()), "/quitquitquit", "POST", headers)
    assert reply.status == status
    assert agent.quits == (status == 200)


async def test_tasks_are_shown_as_a_tree_with_the_place_they_wait_at(agent: Any, ask: Any) -> None:
    async def a_waiting_task() -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(a_waiting_task)
        await trio.testing.wait_all_tasks_blocked()
        text = (await ask(admin_app(agent.source()), "/debug/tasks")).text
        nursery.cancel_scope.cancel()
    line = next(line for line in text.splitlines() if "a_waiting_task" in line)
    assert line.startswith("  ")
    assert "admin/test_admin_app.py:" in line
