"""Whether the agent may and can do what its settings ask for, said before anything is served.

Only of what stays so until somebody acts: rights and tools. What comes and goes (a pod's namespace, a port that another
process has) is tried again for as long as it is wanted; that is `pods`. Decides; the caller has tried.
"""

from __future__ import annotations

from collections.abc import Callable

from ztunnel.config.settings import Settings
from ztunnel.control.pods.capture import backend_of
from ztunnel.core.errors import PlatformError
from ztunnel.linux.redirect.model import Backend
from ztunnel.linux.redirect.tools import missing
from ztunnel.linux.rights import Rights


def check(settings: Settings, rights: Rights, has: Callable[[Backend], bool]) -> None:
    """`has` tells whether a backend's tools are installed. Raises PlatformError with the first that is lacking."""
    captures = settings.capture_mode != "none"
    if captures and not rights.net_admin:
        raise PlatformError(
            f"CAPTURE_MODE={settings.capture_mode} needs CAP_NET_ADMIN, which this process does not have",
            hint="run as root or grant it; with CAPTURE_MODE=none the rules come from outside",
        )
    if settings.packet_mark is not None and rights.mark:
        raise PlatformError(rights.mark)
    if not settings.dedicated and settings.capture_mode != "node" and rights.enter_namespaces:
        raise PlatformError(rights.enter_namespaces)
    if captures and (settings.dedicated or "capture_mode" in settings.origins):  # else an image without tools will do
        _check_tools(backend_of(settings.capture_backend), has)


def _check_tools(wanted: Backend | None, has: Callable[[Backend], bool]) -> None:
    if wanted is not None and not has(wanted):
        raise missing(wanted)
    if not any(map(has, Backend)):
        raise PlatformError(
            "no tool for capture rules is installed",
            hint="install the package nftables or iptables; with CAPTURE_MODE=none the rules come from outside",
        )
