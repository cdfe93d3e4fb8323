"""Runs the measured process under callgrind and reads what it counted.

The numbers repeat: valgrind runs one thread on a processor of its own that reports the same features on every
machine, hashes are not random, and what the kernel does is not counted. Instructions inside the cryptography
library (OpenSSL is part of it) are told apart, because handshakes draw random numbers and ciphers depend on the
machine: `own` is everything else, the interpreter's and libc's work for our code.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MARK = "PyNumber_InPlaceMatrixMultiply"
"""See `measured`."""
CRYPTO = "/cryptography/hazmat/bindings/"
TUNABLES = "glibc.cpu.hwcaps=-ERMS,-FSRM"
"""No `rep movsb`: callgrind counts it as an instruction for each byte, which would make copies look dear."""
TIMEOUT = 900
"""Seconds; it needs about 30 on a machine that does nothing else."""


class CountError(Exception):
    """The counts could not be made; the text says why and what to do."""


class Count(NamedTuple):
    """Instructions for one repetition of an operation."""

    own: int
    crypto: int


def count(group: str) -> dict[str, Count]:
    """Counts of every operation in `hot` or `scale`. Raises CountError."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise CountError("valgrind is missing; install it (apt-get install valgrind)")
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory) / "counted"
        command = [
            valgrind,
            "-q",
            "--tool=callgrind",
            "--vgdb=no",
            f"--toggle-collect={MARK}",
            f"--dump-after={MARK}",
            "--compress-strings=no",
            "--compress-pos=no",
            f"--callgrind-out-file={base}",
            sys.executable,
            "-m",
            "benches.instructions.measured",
            group,
        ]
        environment = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "GLIBC_TUNABLES": TUNABLES,
        }
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CountError(f"the measured process was not done after {TIMEOUT} s") from error
        if done.returncode:
            raise CountError(f"the measured process failed:\n{done.stderr}")
        names: list[tuple[str, int]] = json.loads(done.stdout)
        dumps = sorted(Path(directory).glob("counted.*"), key=lambda path: int(path.suffix[1:]))
        if len(dumps) != 2 * len(names):
            raise CountError(
                f"{len(dumps)} dumps for {len(names)} operations: this interpreter does not call {MARK} for `@=`"
            )
        counts = [read_dump(path.read_text().splitlines()) for path in dumps]
    return {
        name: Count((twice.own - once.own) // times, (twice.crypto - once.crypto) // times)
        for (name, times), once, twice in zip(names, counts[::2], counts[1::2], strict=True)
    }


def read_dump(lines: Iterable[str]) -> Count:
    """Sums a dump's self costs by object (valgrind manual, "Callgrind Format Specification")."""
    own = crypto = 0
    in_crypto = of_a_call = False
    for line in lines:
        if line[:1].isdigit():
            if not of_a_call:
                cost = int(line.split()[1])
                if in_crypto:
                    crypto += cost
                else:
                    own += cost
            of_a_call = False
        elif line.startswith("ob="):
            in_crypto = CRYPTO in line
        elif line.startswith("calls="):
            of_a_call = True
    return Count(own, crypto)
