"""Our config_dump has the keys that istioctl and the local file of ztunnel have."""

from __future__ import annotations

import re
from typing import Any

from ztunnel.control.admin import dump
from ztunnel.control.admin.source import MeshView, PodView
from ztunnel.core.model.workload import Workload
from ztunnel.link.messages import OpenConnection

CAMEL = re.compile(r"[a-z][A-Za-z0-9]*")


def test_workload_entries_are_sorted_and_in_camel_case() -> None:
    mesh = MeshView(workloads=[Workload(uid="b", name="two"), Workload(uid="a", name="one")])
    entries = list(dump.workloads(mesh))
    assert [entry["uid"] for entry in entries] == ["a", "b"]
    assert all(CAMEL.fullmatch(key) for entry in entries for key in entry)


def test_endpoints_are_under_their_service_and_unknown_services_are_staged() -> None:
    workload = Workload(uid="w", name="w", services={"ns/known": {80: 8080}, "ns/other": {1: 2}})
    endpoints = dump.endpoints_of([workload])
    assert endpoints["ns/known"] == {"w": {"workloadUid": "w", "port": {"80": 8080}, "status": "Healthy"}}
    assert list(dump.staged(MeshView(), endpoints)) == ["ns/known", "ns/other"]


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
