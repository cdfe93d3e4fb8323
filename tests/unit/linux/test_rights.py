"""Rights are found by trying, and what is missing comes with what to do."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from ztunnel.linux.rights import kernel, raise_open_files, rights


def test_root_may_do_everything(namespaces: None) -> None:
    found = rights()
    assert (found.net_admin, found.net_raw, found.sys_admin) == (True, True, True)
    assert (found.enter_namespaces, found.mark, found.transparent, found.sniff) == ("", "", "", "")


@pytest.mark.root
def test_an_ordinary_user_is_told_what_is_missing() -> None:
    script = f"import sys; sys.path[:0] = {sys.path!r}; from ztunnel.linux.rights import rights; print(rights())"
    command = ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set", "-all", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert "net_admin=False, net_raw=False, sys_admin=False" in done.stdout
    for word in ("CAP_SYS_ADMIN", "PACKET_MARK", "ENABLE_ORIG_SRC=false", "CAP_NET_RAW"):
        assert word in done.stdout


def test_the_kernels_facts() -> None:
    found = kernel()
    assert found.release
    assert found.congestion_control
    assert found.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_the_limit_of_open_files_rises_to_what_is_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert raise_open_files(300) == 300
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
        assert raise_open_files(200) == 300
        if hard != resource.RLIM_INFINITY:
            assert raise_open_files(hard + 1) == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
