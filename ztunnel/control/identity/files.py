"""Certificate files on disk: written whole or not at all, keys readable only by their owner.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ztunnel.control.identity.certificate import IssuedCertificate
from ztunnel.core.errors import ConfigError, PlatformError

PUBLIC = 0o644
SECRET = 0o600

ISSUED_CHAIN = "cert-chain.pem"
ISSUED_KEY = "key.pem"
ISSUED_ROOTS = "root-cert.pem"
"""As Istio's agents name them when they write certificates (OUTPUT_CERTS)."""


def write_issued(directory: Path, issued: IssuedCertificate) -> None:
    """Chain, key and roots of a workload into `directory`, replacing earlier ones.

    Raises ConfigError or PlatformError.
    """
    with reported(directory, "write certificates to"):
        directory.mkdir(parents=True, exist_ok=True)
        replace(directory / ISSUED_KEY, issued.key_pem, SECRET)
        replace(directory / ISSUED_CHAIN, issued.chain_pem, PUBLIC)
        replace(directory / ISSUED_ROOTS, issued.roots_pem, PUBLIC)


def replace(path: Path, content: bytes, mode: int) -> None:
    """A reader sees the old file or the new one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    write_new(fresh, content, mode)
    os.replace(fresh, path)


def write_new(path: Path, content: bytes, mode: int) -> None:
    """A file that is not there yet, with its mode from the first moment, safe on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exists(path: Path) -> bool:
    """Unlike Path.exists, errors other than absence are raised."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def reported(path: Path, verb: str) -> Iterator[None]:
    """Operating system errors as errors of ours that say what to do."""
    try:
        yield
    except PermissionError as error:
        raise PlatformError(
            f"cannot {verb} {path}: {error.strerror}",
            hint="run as a user with rights to it, or name another directory",
        ) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            f"cannot {verb} {path}: {why}",
            problems=(f"{path}: {why}",),
            hint="name a directory that can be read, and written when something is to be made there",
        ) from error
