"""This project's agents: two in dedicated mode, with nothing but environment variables and default settings."""

from __future__ import annotations

import sys
from importlib import metadata, util
from pathlib import Path

from benches.designs.base import Pair, dedicated_environment, wait_ready, write_mesh
from benches.lab import Lab


class Ours:
    name = "ours"

    @property
    def version(self) -> str:
        return metadata.version("ztunnel")

    def missing(self) -> str:
        return "" if util.find_spec("ztunnel.cli") else "the command is not part of this tree"

    def start(self, lab: Lab) -> Pair:
        mesh = lab.directory / "mesh.yaml"
        write_mesh(mesh)
        authority = {"LOCAL_CA_PATH": str(lab.directory / "ca")}
        command = (str(Path(sys.executable).with_name("ztunnel")), "proxy", "ztunnel")
        client = lab.spawn("c", "a", command, dedicated_environment(mesh, "client") | authority)
        server = lab.spawn("s", "b", command, dedicated_environment(mesh, "server") | authority)
        return wait_ready(lab, Pair(client, server))
