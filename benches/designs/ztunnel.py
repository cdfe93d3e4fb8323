"""Istio's ztunnel in dedicated mode: ZTUNNEL_PEER names a build with its test CA (cargo feature `testing`)."""

from __future__ import annotations

import os
import re

from benches.designs.base import Agents
from benches.designs.dedicated import start_pair
from benches.lab import Lab, run


class Ztunnel:
    name = "ztunnel"

    def __init__(self) -> None:
        self._executable = os.environ.get("ZTUNNEL_PEER", "")

    @property
    def version(self) -> str:
        """The release, or the first digits of the commit it was built from."""
        output = run(self._executable, "version")
        match = re.search(r'Version:"([^"]+)"', output)
        return match[1][:7] if match else output.strip()

    def missing(self) -> str:
        if not self._executable:
            return "ZTUNNEL_PEER does not name an executable"
        return "" if os.access(self._executable, os.X_OK) else f"{self._executable} cannot be executed"

    def start(self, lab: Lab) -> Agents:
        return start_pair(lab, (self._executable, "proxy", "ztunnel"), {"FAKE_CA": "true"})
