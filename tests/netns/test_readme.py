"""The quick start of README.md, typed as it stands, by a reader on a machine of their own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ztunnel.linux.links import Namespace

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text().partition("## Without Kubernetes")[2].partition("\n## ")[0]
MACHINE = """
set -e
mount -t tmpfs tmpfs /run
trap 'kill $(jobs -p); wait' EXIT
"""
"""A /run and a process table of its own, for the names of namespaces; what the reader started ends with the shell."""
AFTERWARDS = """
kill $(jobs -p); wait
for pod in client server; do ztunnel redirect show --netns $pod; done
trap - EXIT
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


def test_the_quick_start_works_and_leaves_no_rules(namespaces: None, tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text(blocks("yaml")[0])
    command = tmp_path / "ztunnel"
    command.write_text(f'#!/bin/sh\nexec env PYTHONPATH={ROOT} {sys.executable} -P -m ztunnel "$@"\n')
    command.chmod(0o755)
    script = "".join([MACHINE, *blocks("sh"), AFTERWARDS])
    path = f"{tmp_path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    machine = Namespace("machine")
    try:
        done = machine.run(
            ["unshare", "-mpf", "--kill-child", "--mount-proc", "bash", "-c", script],
            timeout=50,
            check=False,
            cwd=tmp_path,
            env={"PATH": path},
        )
    finally:
        machine.close()
    logs = "".join(f"\n{log.name}:\n{log.read_text()}" for log in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert done.stdout.splitlines()[:4] == [
        "ready",
        "ready",
        "200",
        'src.identity="spiffe://cluster.local/ns/demo/sa/client"',
    ], done.stdout + done.stderr + logs
    assert "only-client" in done.stdout
    assert "15001" not in done.stdout.partition("only-client")[2], "rules are left"
