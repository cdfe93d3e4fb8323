"""A pod to serve, as a value: from the local file, from dedicated mode, or enrolled at run time."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import msgspec

from ztunnel.config.settings import Settings, WorkloadInfo
from ztunnel.control.mesh.localfile import Pod
from ztunnel.core.model.capture import CaptureMode
from ztunnel.link.messages import PodAdded


class Origin(Enum):
    """Who asked for a pod; only they can let it go."""

    FILE = "file"
    DEDICATED = "dedicated"
    ENROLLED = "enrolled"


class PodSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be known of a pod to serve it."""

    uid: str
    namespace: str
    name: str
    """The workload's, not the network namespace's."""
    service_account: str
    capture: CaptureMode
    netns: str = ""
    """Name (`ip netns`) or path; empty is the agent's own."""
    interface: str = ""
    """The node's interface towards the pod; NODE mode only."""
    ips: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def added(self, netns_fd: int | None, origin: Origin) -> PodAdded:
        """The worker's order; it owns the descriptor from then on. `recall` is the way back."""
        return PodAdded(
            uid=self.uid,
            name=self.name,
            namespace=self.namespace,
            service_account=self.service_account,
            capture=self.capture,
            netns_fd=netns_fd,
            ips=self.ips,
            memo=msgspec.msgpack.encode(_Memo(self, origin)),
        )


class _Memo(NamedTuple):
    """What a worker keeps for the next control half."""

    spec: PodSpec
    origin: Origin


def recall(added: PodAdded) -> tuple[PodSpec, Origin]:
    """What an earlier control half knew of a pod that a worker serves. Raises ValueError when it was no friend."""
    try:
        return msgspec.msgpack.decode(added.memo, type=_Memo)
    except msgspec.MsgspecError as error:
        raise ValueError(f"pod {added.uid}: the notes of the earlier control half cannot be read: {error}") from None


def from_file(pod: Pod) -> PodSpec:
    return PodSpec(
        uid=pod.uid,
        namespace=pod.identity.namespace,
        name=pod.workload_name,
        service_account=pod.identity.service_account,
        capture=pod.capture,
        netns=pod.netns,
        interface=pod.interface,
        ips=pod.ips,
    )


def dedicated(settings: Settings, info: WorkloadInfo) -> PodSpec:
    """The one pod of PROXY_MODE=dedicated: the agent's own network namespace."""
    return PodSpec(
        uid=f"{info.namespace}/{info.name}",
        namespace=info.namespace,
        name=info.name,
        service_account=info.service_account,
        capture=CaptureMode(settings.capture_mode),
    )
