"""How connections of a pod are captured, and the values that both ends of the capture probe must know."""

from __future__ import annotations

from enum import Enum

PROBE_PORT = 15099
"""A captured connection to this port is a capture probe, whatever its address."""
PROBE_BANNER = b"ztunnel-probe\n"
"""What the outbound listener answers to a capture probe before it closes."""


class CaptureMode(Enum):
    """How connections reach the listeners; decides how their original destination is recovered."""

    REDIRECT = "redirect"
    """iptables/nft REDIRECT in the pod's namespace: SO_ORIGINAL_DST."""
    TPROXY = "tproxy"
    """TPROXY in the pod's namespace: the socket's own address."""
    NODE = "node"
    """TPROXY in the node's namespace for enrolled pods: the socket's own address; the source IP names the pod."""
    NONE = "none"
    """No rules are installed (they come from outside): SO_ORIGINAL_DST, else the socket's own address."""
