"""A CA in a directory (LOCAL_CA_PATH), shared by several agents of one machine and made by whoever comes first.

Theory of operation. A CA is four files that only make sense together, and there is no system call that puts four
files in place at once. So:
- the creator writes all four into `.staging`, then renames that to `.commit`: from here on the CA exists;
- it then moves the files out one by one, `ca-cert.pem` last. Who sees `ca-cert.pem` sees the whole CA, so readers
  need no lock (and a read-only mount works);
- creation happens under an exclusive flock on `.lock`. A creator that dies leaves either a `.staging`, which the
  next one throws away, or a `.commit`, which the next one finishes.
Files that somebody else put there are never touched.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ztunnel.control.identity.ca import CA_LIFETIME, LocalCa
from ztunnel.control.identity.ca_files import CA_CERT, CA_KEY, FILES, SECRET_FILES, parse_ca, render_new
from ztunnel.control.identity.files import PUBLIC, SECRET, exists, reported, sync_directory, write_new
from ztunnel.core.errors import ConfigError

CA_NAME = "ztunnel local CA"
_STAGING = ".staging"
_COMMIT = ".commit"
_LOCK = ".lock"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO

log = logging.getLogger("ztunnel.control.identity")


class CaDirectory:
    """The CA of a directory, read again when its files change (a rotated CA needs no restart)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._ca: LocalCa | None = None

    def open(self, now: float) -> LocalCa:
        """The CA; created when the directory is missing or holds none.

        Raises ConfigError when the files cannot be used, PlatformError when rights are missing.
        """
        with self._lock:
            signature = _signature(self.path)
            if self._ca is None or signature != self._seen:
                self._ca = open_or_create(self.path, now=now)
                self._seen = _signature(self.path)
            return self._ca


def open_or_create(path: Path, *, now: float) -> LocalCa:
    """The CA in `path`, made when there is none. Raises ConfigError or PlatformError."""
    if not _is_complete(path):
        create(path, now=now)
    return parse_ca(read_files(path), where=str(path), now=now)


def open_existing(path: Path, *, now: float) -> LocalCa:
    """The CA in `path`. Raises ConfigError, also when there is none, or PlatformError."""
    if not _is_complete(path):
        raise ConfigError(
            f"{path} holds no CA", problems=(f"{CA_CERT} is missing",), hint=f"make one: `ztunnel ca init --dir {path}`"
        )
    return parse_ca(read_files(path), where=str(path), now=now)


def create(path: Path, *, now: float, name: str = CA_NAME, lifetime: float = CA_LIFETIME) -> bool:
    """Make a CA in `path` unless one is there; True if it was made by this call.

    Raises ConfigError when files of an incomplete CA are in the way, PlatformError when rights are missing.
    """
    if _is_complete(path):
        return False
    with reported(path, "create a CA in"):
        path.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            return _create(path, now=now, name=name, lifetime=lifetime)


def read_files(path: Path) -> dict[str, bytes]:
    """The CA files that are there, by name. Raises PlatformError or ConfigError when one cannot be read."""
    files = {}
    for name in FILES:
        with reported(path / name, "read"):
            if exists(path / name):
                files[name] = (path / name).read_bytes()
    if CA_KEY in files and (path / CA_KEY).stat().st_mode & _OTHERS:
        log.warning("%s can be read by other users; use `chmod 600 %s`", path / CA_KEY, path / CA_KEY)
    return files


def _create(path: Path, *, now: float, name: str, lifetime: float) -> bool:
    """Under the lock."""
    if exists(path / CA_CERT):
        return False
    if (path / _COMMIT).is_dir():
        _move_in_place(path)
        return False
    left = [file for file in FILES if exists(path / file)]
    if left:
        raise ConfigError(
            f"{path} holds {', '.join(left)} but no {CA_CERT}, so it is neither a CA nor empty",
            problems=(f"{CA_CERT} is missing",),
            hint=f"add {CA_CERT}, or move the other files away to get a new CA",
        )
    staging = path / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    for file, content in render_new(name=name, now=now, lifetime=lifetime).items():
        write_new(staging / file, content, SECRET if file in SECRET_FILES else PUBLIC)
    os.rename(staging, path / _COMMIT)
    sync_directory(path)
    _move_in_place(path)
    log.info("made a new CA in %s", path)
    return True


def _move_in_place(path: Path) -> None:
    waiting = [file for file in FILES if exists(path / _COMMIT / file)]
    foreign = [file for file in waiting if exists(path / file)]
    if foreign:
        raise ConfigError(
            f"{path} holds {', '.join(foreign)} of somebody else beside an unfinished CA of ours",
            hint=f"remove {path / _COMMIT} to keep those files, or move them away to finish our CA",
        )
    for file in waiting:
        os.rename(path / _COMMIT / file, path / file)
    (path / _COMMIT).rmdir()
    sync_directory(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock file stays: removing it would let two creators hold two different locks."""
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_complete(path: Path) -> bool:
    with reported(path, "read"):
        return exists(path / CA_CERT)


def _signature(path: Path) -> tuple[object, ...]:
    """Changes when a file of the CA does."""
    found: list[tuple[int, int, int] | None] = []
    for name in FILES:
        try:
            status = (path / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)
