"""Finds the tools that change rules and runs them inside a namespace.

Everything goes through the tools' documented text (as knftables does), so that an operator can read the manual and
repeat by hand what the agent did.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ztunnel.core.errors import PlatformError
from ztunnel.linux.netns import in_netns
from ztunnel.linux.redirect.model import Backend

_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"))
_LOCK = Path("/run/xtables.lock")
_TIMEOUT = 20.0
_PACKAGES = {Backend.NFT: "nftables", Backend.IPTABLES_NFT: "iptables", Backend.IPTABLES_LEGACY: "iptables"}


class NotPermittedError(PlatformError):
    """A tool ran and was refused by the kernel for lack of a right."""


def find(name: str, package: str) -> str:
    """The path of a tool. Raises PlatformError naming the package that has it."""
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise PlatformError(f"the tool {name} is not installed", hint=f"install the package {package}")
    return path


def iptables(backend: Backend, family: int, verb: str) -> str:
    """The path of iptables-save or iptables-restore (`verb`) of the flavour and family.

    Raises PlatformError when that flavour is not installed.
    """
    base = "iptables" if family == 4 else "ip6tables"
    name = f"{base}-{backend.value.removeprefix('iptables-')}-{verb}"
    path = shutil.which(name, path=_PATH)
    if path is not None:
        return path
    plain = shutil.which(f"{base}-{verb}", path=_PATH)
    if plain is not None and ("nf_tables" in run([plain, "--version"])) == (backend is Backend.IPTABLES_NFT):
        return plain
    raise PlatformError(f"the tool {name} is not installed", hint="install the package iptables")


def has(backend: Backend) -> bool:
    """Whether the backend's tools are installed."""
    try:
        if backend is Backend.NFT:
            find("nft", _PACKAGES[backend])
        else:
            for family in (4, 6):
                iptables(backend, family, "restore")
    except PlatformError:
        return False
    return True


def missing(backend: Backend) -> PlatformError:
    return PlatformError(
        f"the tools of {backend.value} are not installed", hint=f"install the package {_PACKAGES[backend]}"
    )


def run(argv: list[str], *, stdin: str = "", netns: int | None = None) -> str:
    """Run a tool in the namespace and return what it printed.

    Raises PlatformError with the tool's complaint when it fails.
    """
    environ = {**os.environ, "LC_ALL": "C", **_lock()}
    pipe = subprocess.PIPE
    with in_netns(netns):
        child = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environ)
    with child:
        try:
            out, err = child.communicate(stdin, _TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            raise PlatformError(
                f"{Path(argv[0]).name} did not end in {_TIMEOUT:g} s", hint="is the xtables lock held?"
            ) from None
    if child.returncode:
        raise _failed(argv, err)
    return out


def _lock() -> dict[str, str]:
    """Another lock for iptables where its own cannot be opened: root of a user namespace has no say over /run."""
    if os.access(_LOCK if _LOCK.exists() else _LOCK.parent, os.W_OK):
        return {}
    real_uid = Path("/proc/self/uid_map").read_text().split()[1]
    return {"XTABLES_LOCKFILE": f"{tempfile.gettempdir()}/ztunnel-xtables-{real_uid}.lock"}


def _failed(argv: list[str], err: str) -> PlatformError:
    complaint = " ".join(line.strip() for line in err.splitlines()[:3]) or "no reason given"
    command = " ".join((Path(argv[0]).name, *argv[1:]))
    denied = any(text in err for text in ("Permission denied", "Operation not permitted", "you must be root"))
    if denied:
        return NotPermittedError(f"{command} failed: {complaint}", hint="run as root, or grant CAP_NET_ADMIN")
    return PlatformError(f"{command} failed: {complaint}", hint="`--dry-run` shows what is given to it")
