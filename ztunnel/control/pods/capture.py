"""Capture of pods by rules of the kernel: from settings and a pod to a CaptureSpec, in worker threads.

REDIRECT and TPROXY live in each pod's namespace, one spec a pod. NODE lives in the agent's own namespace, one spec
for all pods of that mode, which is applied anew whenever one comes or goes. NONE installs nothing.
"""

from __future__ import annotations

import logging
from functools import partial
from ipaddress import ip_address, ip_network

import trio

from ztunnel.config.settings import ISTIO_MARK, CaptureBackend, Settings
from ztunnel.control.pods.pod import PodSpec
from ztunnel.core.errors import PlatformError
from ztunnel.core.model.capture import PROBE_PORT, CaptureMode
from ztunnel.linux.probe import probe_capture
from ztunnel.linux.redirect.apply import apply, remove
from ztunnel.linux.redirect.model import Backend, CaptureSpec, mask_for
from ztunnel.linux.redirect.tools import has
from ztunnel.linux.sockets import listen_tcp

CONCURRENT = 2
"""Namespaces that are worked on at once; the tools of iptables share one lock of the machine."""

OTHERS_TIMEOUT = 0.5
"""Seconds for another agent to answer a probe."""

PROBE_TARGET = "192.0.2.1"
"""What the probe tries to reach first."""

log = logging.getLogger("ztunnel.control.pods")


class RuleCapture:
    """What the pod manager needs, by `ztunnel.linux.redirect`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limit = trio.CapacityLimiter(CONCURRENT)
        self._node_pods: dict[str, PodSpec] = {}
        self._node_lock = trio.Lock()

    async def install(self, pod: PodSpec, netns: int | None) -> None:
        if pod.capture is CaptureMode.NONE:
            return
        if pod.capture is CaptureMode.NODE:
            async with self._node_lock:
                self._node_pods[pod.uid] = pod
                await self._apply_node()
            return
        await self._apply(self.spec(pod.capture), netns)

    async def prove(self, pod: PodSpec, netns: int | None) -> None:
        """Nothing can be proven where rules come from outside, from outside the pod, or of what is excluded."""
        inside = pod.capture is not CaptureMode.NODE or netns is not None
        if pod.capture is CaptureMode.NONE or not inside or self._is_probe_excluded():
            return
        results = [await trio.to_thread.run_sync(partial(probe_capture, netns, ipv6=ipv6)) for ipv6 in self._families]
        for result in results:
            log.debug("pod %s: probe of capture to %s: %s", pod, result.target, result.why)
        if not any(result.captured for result in results):
            raise PlatformError(
                f"pod {pod}: its connections are not captured: {results[0].why}",
                hint="`ztunnel redirect verify` compares the rules; `ztunnel check` tries the kernel",
            )

    async def remove(self, pod: PodSpec, netns: int | None) -> None:
        if pod.capture is CaptureMode.NONE:
            return
        if pod.capture is CaptureMode.NODE:
            async with self._node_lock:
                if self._node_pods.pop(pod.uid, None) is not None:
                    await self._apply_node()
            return
        if await trio.to_thread.run_sync(self._is_anothers, netns):
            log.warning("pod %s: its capture rules stay, because another agent serves the same namespace", pod)
            return
        await self._remove(netns)

    def _is_anothers(self, netns: int | None) -> bool:
        """Our listeners are closed: who answers a probe now needs the rules, and would lose mTLS without them."""
        try:
            listen_tcp(ip=None, port=self._settings.outbound_port, netns=netns).close()
        except PlatformError:
            return any(probe_capture(netns, ipv6=ipv6, timeout=OTHERS_TIMEOUT).captured for ipv6 in self._families)
        return False

    def spec(self, mode: CaptureMode, pods: tuple[PodSpec, ...] = ()) -> CaptureSpec:
        """What the settings say; `pods` are those of NODE mode."""
        settings = self._settings
        mark = settings.packet_mark or ISTIO_MARK
        return CaptureSpec(
            mode=mode,
            ipv6=settings.ipv6_enabled,
            mark=mark,
            mark_mask=mask_for(mark),
            pod_interfaces=tuple(pod.interface for pod in pods),
            pod_ips=tuple(ip for pod in pods for ip in pod.ips),
            exclude_outbound_ports=settings.exclude_outbound_ports,
            exclude_inbound_ports=settings.exclude_inbound_ports,
            exclude_outbound_cidrs=settings.exclude_outbound_cidrs,
            exclude_inbound_cidrs=settings.exclude_inbound_cidrs,
        )

    @property
    def _families(self) -> tuple[bool, ...]:
        return (False, True) if self._settings.ipv6_enabled else (False,)

    def _is_probe_excluded(self) -> bool:
        excluded = self._settings.exclude_outbound_cidrs
        return PROBE_PORT in self._settings.exclude_outbound_ports or any(
            ip_address(PROBE_TARGET) in ip_network(cidr) for cidr in excluded
        )

    async def _apply_node(self) -> None:
        if self._node_pods:
            await self._apply(self.spec(CaptureMode.NODE, tuple(self._node_pods.values())), None)
        else:
            await self._remove(None)

    async def _apply(self, spec: CaptureSpec, netns: int | None) -> None:
        for change in await trio.to_thread.run_sync(self._apply_now, spec, netns, limiter=self._limit):
            log.debug("capture: %s", change)

    def _apply_now(self, spec: CaptureSpec, netns: int | None) -> list[str]:
        return apply(spec, netns, backend_of(self._settings.capture_backend))

    async def _remove(self, netns: int | None) -> None:
        for change in await trio.to_thread.run_sync(remove, netns, limiter=self._limit):
            log.debug("capture: %s", change)


def backend_of(setting: CaptureBackend) -> Backend | None:
    """None leaves the choice to `apply`; `iptables` is whichever flavour is installed."""
    if setting == "auto":
        return None
    if setting == "iptables":
        return Backend.IPTABLES_NFT if has(Backend.IPTABLES_NFT) else Backend.IPTABLES_LEGACY
    return Backend(setting)
