"""The three things that can be done to a namespace's capture, as one object that can be replaced in tests."""

from __future__ import annotations

from typing import Protocol

from ztunnel.linux.redirect.apply import apply, remove
from ztunnel.linux.redirect.model import Backend, CaptureSpec, Difference
from ztunnel.linux.redirect.verify import verify


class Capture(Protocol):
    """Blocks: called from worker threads. `netns` None is the process's own namespace."""

    def apply(self, spec: CaptureSpec, netns: int | None = None, backend: Backend | None = None) -> list[str]:
        """Make it so; what was changed."""

    def verify(self, spec: CaptureSpec, netns: int | None = None, backend: Backend | None = None) -> list[Difference]:
        """What is not so."""

    def remove(self, netns: int | None = None, backend: Backend | None = None) -> list[str]:
        """Nothing of ours stays; what was removed."""


class KernelCapture:
    """The real one."""

    def apply(self, spec: CaptureSpec, netns: int | None = None, backend: Backend | None = None) -> list[str]:
        return apply(spec, netns, backend)

    def verify(self, spec: CaptureSpec, netns: int | None = None, backend: Backend | None = None) -> list[Difference]:
        return verify(spec, netns, backend)

    def remove(self, netns: int | None = None, backend: Backend | None = None) -> list[str]:
        return remove(netns, backend)
