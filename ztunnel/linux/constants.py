"""Numbers of the Linux ABI that Python's modules do not name.

Owns nothing but numbers; each with the header of the kernel's uapi that it comes from.
"""

from __future__ import annotations

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
"""linux/sched.h"""

NS_GET_NSTYPE = 0xB703
"""linux/nsfs.h, _IO(0xb7, 0x3): which kind of namespace a descriptor is."""

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2
"""linux/mount.h, sys/mount.h"""

SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
"""linux/sockios.h, linux/if.h"""

IP_BIND_ADDRESS_NO_PORT = 24
IP_FREEBIND = 15
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
IPV6_FREEBIND = 78
"""linux/in.h, linux/in6.h"""

SO_ORIGINAL_DST = 80
"""linux/netfilter_ipv4.h; the same number at level IPPROTO_IPV6 is IP6T_SO_ORIGINAL_DST."""

SIZEOF_SOCKADDR_IN = 16
SIZEOF_SOCKADDR_IN6 = 28

CAP_NET_ADMIN = 12
CAP_NET_RAW = 13
CAP_SYS_ADMIN = 21
"""linux/capability.h"""

ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
"""linux/if_ether.h"""

SO_RCVBUFFORCE = 33
"""asm-generic/socket.h"""

SOL_PACKET = 263
PACKET_OUTGOING = 4
PACKET_STATISTICS = 6
"""linux/socket.h, linux/if_packet.h"""

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
"""linux/prctl.h"""
