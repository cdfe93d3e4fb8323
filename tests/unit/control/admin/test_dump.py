"""A config_dump is written in pieces, and shows pods and their connections as istioctl reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ztunnel.control.admin import dump
from ztunnel.control.admin.source import PodView
from ztunnel.link.messages import OpenConnection


async def written(value: object) -> str:
    return "".join([piece async for piece in dump.pretty(value)])


@pytest.mark.parametrize(
    "value",
    [
        {"list": [], "text": 'é\n"', "object": {}},
        {"list": [1, {"a": [2]}], "object": {"a": {"b": None}}},
        {"list": [[]], "object": {"lists": []}, "last": True},
    ],
)
async def test_lists_made_lazily_are_written_as_any_other(value: dict[str, Any]) -> None:
    lazy = value | {"list": iter(value["list"])}
    assert await written(lazy) == json.dumps(value, indent=2, ensure_ascii=False) + "\n"


async def test_lazy_lists_may_stand_one_deeper() -> None:
    many = list(range(dump.PIECE * 2 + 1))
    assert await written({"a": {"b": iter(many), "c": iter([])}}) == (
        json.dumps({"a": {"b": many, "c": []}}, indent=2) + "\n"
    )


def test_connections_are_under_their_pod_and_those_of_unknown_pods_are_left_out() -> None:
    pod = PodView(uid="u", name="n", namespace="ns", service_account="sa", up=False)

    def connection(uid: str, direction: str) -> OpenConnection:
        return OpenConnection(
            id=1,
            pod=uid,
            edge=0,
            direction=direction,
            protocol="TCP",
            source="s",
            original_destination="",
            actual_destination="d",
            opened=0.0,
            bytes_sent=1,
            bytes_received=2,
            why="",
        )

    state: dict[str, Any] = dump.workload_state([pod], [connection("u", "inbound"), connection("gone", "inbound")])
    assert list(state) == ["u"]
    assert state["u"]["state"] == "Pending"
    assert state["u"]["info"] == {"name": "n", "namespace": "ns", "serviceAccount": "sa"}
    (inbound,) = state["u"]["connections"]["inbound"]
    assert (inbound["src"], inbound["originalDst"], inbound["actualDst"]) == ("s", None, "d")
    assert state["u"]["connections"]["outbound"] == []
