"""The fake behaves as the real one does for those who use it."""

from __future__ import annotations

import pytest

from ztunnel.core.errors import ConfigError, PlatformError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.redirect.fake import FakeCapture
from ztunnel.linux.redirect.model import CaptureSpec

SPEC = CaptureSpec(mode=CaptureMode.REDIRECT)


def test_apply_is_idempotent_and_remove_undoes_it() -> None:
    capture = FakeCapture()
    assert len(capture.apply(SPEC, 7)) > 20
    assert capture.apply(SPEC, 7) == []
    assert capture.verify(SPEC, 7) == []
    assert capture.verify(SPEC, 8) != []
    assert len(capture.remove(7)) > 20
    assert capture.remove(7) == []


def test_what_somebody_changed_is_found() -> None:
    capture = FakeCapture()
    capture.apply(SPEC)
    del capture.namespaces[None]["ipv4 nat ISTIO_OUTPUT"][-1]
    [difference] = capture.verify(SPEC)
    assert "ipv4 nat ISTIO_OUTPUT: missing: ! -d 127.0.0.1/32 -p tcp" in str(difference)


def test_refusals() -> None:
    capture = FakeCapture()
    with pytest.raises(ConfigError):
        capture.apply(CaptureSpec(mode=CaptureMode.NONE))
    capture.refusal = PlatformError("no rights")
    with pytest.raises(PlatformError):
        capture.apply(SPEC)
    with pytest.raises(PlatformError):
        capture.remove()
