"""The facts without which numbers cannot be compared: processor, kernel and the interpreter's build."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path

LOOP = 2_000_000
LIBRARIES = ("trio", "h2", "cryptography", "pyOpenSSL", "msgspec")


def facts() -> dict[str, str]:
    """What is printed above every table and stands in every JSON file."""
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "interpreter": f"CPython {platform.python_version()}, {interpreter_build()}",
        "interpreter speed": f"{nanoseconds_per_turn():.0f} ns per turn of an empty loop with one addition",
        "libraries": ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES),
        "iptables": iptables_flavour(),
    }


def processor() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return match[1] if match else platform.machine()


def interpreter_build() -> str:
    """Whether the interpreter was built with profile-guided and link-time optimisation; without, it is 1.4x slower.

    Distributions often optimise in a way that sysconfig does not record; that is said, not guessed at.
    """
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = " ".join(str(sysconfig.get_config_var(name) or "") for name in ("PY_CFLAGS", "PY_CORE_CFLAGS"))
    pgo = "--enable-optimizations" in arguments
    lto = "--with-lto" in arguments or "-flto" in flags
    shared = "--enable-shared" in arguments
    linked = "libpython shared" if shared and "libpython" in maps() else "libpython in the executable"
    if str(Path(sys.executable).resolve()).startswith("/usr/bin/"):
        return f"the distribution's build, {linked} ({platform.python_compiler()})"
    recorded = f"{'PGO' if pgo else 'no PGO'}, {'LTO' if lto else 'no LTO'}"
    return f"{recorded}, {linked} ({platform.python_compiler()})"


def maps() -> str:
    return Path("/proc/self/maps").read_text()


def nanoseconds_per_turn() -> float:
    """The best of five; a plain number to compare interpreters by, whatever their build says."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        total = 0
        for number in range(LOOP):
            total += number
        best = min(best, time.perf_counter() - start)
    return best / LOOP * 1e9


def iptables_flavour() -> str:
    path = shutil.which("iptables")
    return Path(path).resolve().name if path else "missing"
