"""The probe of Kubernetes and of operators: ready, or what is missing."""

from __future__ import annotations

from typing import Any

from ztunnel.control.admin.readiness_app import readiness_app


async def test_ready_when_nothing_is_pending(agent: Any, ask: Any) -> None:
    reply = await ask(readiness_app(agent.source()), "/healthz/ready")
    assert (reply.status, reply.text) == (200, "ready\n")


async def test_pending_parts_are_named_in_order_and_it_can_flip_back(agent: Any, ask: Any) -> None:
    app = readiness_app(agent.source())
    agent.waiting_for = ["state manager", "proxy"]
    reply = await ask(app, "/healthz/ready")
    assert (reply.status, reply.text) == (500, "not ready, pending: proxy, state manager\n")
    agent.waiting_for = []
    assert (await ask(app, "/healthz/ready")).status == 200
    agent.waiting_for = ["workload proxy manager"]
    assert (await ask(app, "/healthz/ready")).status == 500


async def test_probes_by_name_are_answered(agent: Any, ask: Any) -> None:
    reply = await ask(readiness_app(agent.source()), "/healthz/ready", headers={"host": "node-1.example"})
    assert reply.status == 200


async def test_other_methods_and_paths_are_refused(agent: Any, ask: Any) -> None:
    app = readiness_app(agent.source())
    assert (await ask(app, "/healthz/ready", "POST")).status == 405
    assert (await ask(app, "/")).status == 404
