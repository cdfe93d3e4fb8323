"""Istio's ztunnel in dedicated mode: ZTUNNEL_PEER names a build with its test CA (cargo feature `testing`)."""

from __future__ import annotations

import os
from pathlib import Path

from benches.designs.base import Pair, dedicated_environment, wait_ready, write_mesh
from benches.lab import Lab, run


class Ztunnel:
    name = "ztunnel"

    def __init__(self) -> None:
        self._executable = os.environ.get("ZTUNNEL_PEER", "")

    @property
    def version(self) -> str:
        return run(self._executable, "version").strip()

    def missing(self) -> str:
        if not self._executable:
            return "ZTUNNEL_PEER does not name an executable"
        return "" if os.access(self._executable, os.X_OK) else f"{Path(self._executable)} cannot be executed"

    def start(self, lab: Lab) -> Pair:
        mesh = lab.directory / "mesh.yaml"
        write_mesh(mesh)
        authority = {"FAKE_CA": "true"}
        command = (self._executable, "proxy", "ztunnel")
        client = lab.spawn("c", "a", command, dedicated_environment(mesh, "client") | authority)
        server = lab.spawn("s", "b", command, dedicated_environment(mesh, "server") | authority)
        return wait_ready(lab, Pair(client, server))
