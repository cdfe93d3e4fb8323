"""What an agent does not use is not in its memory: a module that somebody imports again is noticed here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ztunnel

ROOT = Path(ztunnel.__file__).parent.parent

AGENT = """
import gc, sys, trio
import ztunnel.cli.serve
from ztunnel import node
from ztunnel.config.settings import Settings, WorkloadInfo
from ztunnel.core.model.address import Address
from ztunnel.observe.logs import install
from ztunnel.runtime.drain import Drain
from ztunnel.worker import process

async def serve():
    drain = Drain()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: node.run(settings, logs, drain=drain))
        while gc.get_threshold() != process.GC_THRESHOLDS:  # set once the agent is ready
            await trio.sleep(0.01)
        print(*sys.modules)
        drain.trigger("the test", 0)

anywhere = (Address("127.0.0.1", 0),)
settings = Settings(
    proxy_mode="dedicated", proxy_workload_info=WorkloadInfo("demo", "web", "web"), capture_mode="none",
    packet_mark=None, local_xds="workloads: []", admin_addr=anywhere, stats_addr=anywhere, readiness_addr=anywhere,
    outbound_port=0, inbound_plaintext_port=0, inbound_port=0,
)
logs = install("off")
trio.run(serve)
"""
"""An agent of one process, which holds what the supervisor, a worker and a control half hold together."""

LIBRARIES = """
OpenSSL attr attrs click cryptography h11 h2 hpack hyperframe idna msgspec outcome sniffio sortedcontainers trio
typing_extensions yaml
"""
"""All of them, with what they need themselves."""
NOT_OURS = {"cython_runtime", "sitecustomize", "usercustomize"}
"""Made by the interpreter's set-up, or by nobody's import."""
UNUSED = """
asyncio concurrent.futures difflib gzip html http.client http.server multiprocessing pickle socketserver tomllib
unittest urllib.request wsgiref xml ztunnel.control.admin.http2
"""
"""Large ones that came with libraries we do without, and what an agent needs only for rare clients."""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The names of the modules of an idle agent."""
    result = subprocess.run([sys.executable, "-P", "-c", AGENT], capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_an_idle_agent_has_loaded_no_other_library(loaded: set[str]) -> None:
    tops = {name.partition(".")[0] for name in loaded if not name.startswith("_")}
    assert tops - set(sys.stdlib_module_names) - NOT_OURS - {"ztunnel"} - set(LIBRARIES.split()) == set()


def test_large_modules_that_it_has_no_use_for_are_not_loaded(loaded: set[str]) -> None:
    assert loaded & set(UNUSED.split()) == set()
