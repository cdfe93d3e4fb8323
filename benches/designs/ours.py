"""This project's agents, started with nothing but environment variables."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from benches.designs.base import Pair
from benches.designs.dedicated import start_pair
from benches.lab import Lab


class Ours:
    name = "ours"

    def __init__(self) -> None:
        self._executable = Path(sys.executable).with_name("ztunnel")

    @property
    def version(self) -> str:
        return metadata.version("ztunnel")

    def missing(self) -> str:
        return "" if self._executable.exists() else "the command is not installed beside this interpreter (./dev sync)"

    def start(self, lab: Lab) -> Pair:
        authority = {"LOCAL_CA_PATH": str(lab.directory / "ca")}
        return start_pair(lab, (str(self._executable), "proxy", "ztunnel"), authority)
