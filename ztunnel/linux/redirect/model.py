"""Capture rules as data: what is asked for (CaptureSpec), and the rules that do it, in the words of no tool.

The vocabulary is just what the three modes need. A value that starts with "!" means "everything but", as in
`Match(destination="!127.0.0.1/32")`; marks are written "value/mask". Numbers are Istio's
(istio/istio cni/pkg/config/config.go).

Pure values; rules.py makes them, render_*.py write them.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from ztunnel.core.model.capture import CaptureMode

CONNECTION_MARK = "0x111/0xfff"
"""On connections whose packets must come back to the agent; set by netfilter only."""
ROUTE_TABLE = 100
RULE_PRIORITY = 32764
DNS_ZONE = 1


class Backend(Enum):
    """The tool and kernel interface that carries the rules."""

    NFT = "nft"
    IPTABLES_NFT = "iptables-nft"
    IPTABLES_LEGACY = "iptables-legacy"


class CaptureSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is captured in one namespace, and how."""

    mode: CaptureMode
    ipv4: bool = True
    ipv6: bool = True
    inbound: bool = True
    """False for a gateway that must see its clients' connections uncaptured (Istio: bypass-inbound-capture)."""
    dns: bool = False
    """DNS queries go to dns_port; not in NODE mode."""
    mark: int = 0x539
    mark_mask: int = 0xFFF
    """SO_MARK of the agent's own sockets, which are never captured."""
    outbound_port: int = 15001
    inbound_port: int = 15006
    hbone_port: int = 15008
    dns_port: int = 15053
    probe_source4: str = "169.254.7.127"
    probe_source6: str = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
    """What the node's health probes come from; they are left alone."""
    virtual_interfaces: tuple[str, ...] = ()
    """Interfaces of the pod behind which a virtual machine sends; captured as outbound (REDIRECT and TPROXY)."""
    pod_interfaces: tuple[str, ...] = ()
    """The node's ends of the enrolled pods' links (NODE)."""
    pod_ips: tuple[str, ...] = ()
    """The enrolled pods' addresses, both families (NODE)."""
    exclude_outbound_ports: tuple[int, ...] = ()
    exclude_inbound_ports: tuple[int, ...] = ()
    exclude_outbound_cidrs: tuple[str, ...] = ()
    """Destinations left alone."""
    exclude_inbound_cidrs: tuple[str, ...] = ()
    """Sources left alone."""
    exclude_uids: tuple[int, ...] = ()
    """Users whose connections are left alone; not in NODE mode, where the kernel does not know them."""

    @property
    def own(self) -> str:
        """The agent's mark as rules write it."""
        return f"{self.mark:#x}/{self.mark_mask:#x}"


def mask_for(mark: int) -> int:
    """Istio's 12 bits where the mark fits into them, else all: rules compare no more of a packet's mark."""
    return 0xFFF if mark <= 0xFFF else 0xFFFFFFFF


class Chain(Enum):
    """Our chains; the renderers have a name for each."""

    PREROUTING = "prerouting"
    OUTPUT = "output"
    OUTBOUND = "outbound"
    INBOUND = "inbound"

    @property
    def hooked(self) -> bool:
        """Whether the kernel calls it; the others are called by rules."""
        return self in (Chain.PREROUTING, Chain.OUTPUT)


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """What a packet must be. Empty matches everything; an address fixes the family."""

    in_interface: str = ""
    out_interface: str = ""
    protocol: str = ""
    source: str = ""
    destination: str = ""
    sport: str = ""
    dport: str = ""
    mark: str = ""
    connmark: str = ""
    direction: str = ""
    """`original`: from the side that opened the connection; `reply`: from the other."""
    uid: str = ""

    @property
    def family(self) -> int:
        """4, 6, or 0 for both."""
        address = self.source or self.destination
        return 0 if not address else 6 if ":" in address else 4


class Accept(msgspec.Struct, frozen=True):
    """Leave the packet alone; no later rule of this hook sees it."""


class Return(msgspec.Struct, frozen=True):
    """Leave this chain."""


class Jump(msgspec.Struct, frozen=True):
    chain: Chain


class Redirect(msgspec.Struct, frozen=True):
    """To a port of this host; the destination is rewritten."""

    port: int


class Tproxy(msgspec.Struct, frozen=True):
    """To the transparent listener at the port, nothing rewritten; dropped when nobody listens."""

    port: int
    mark: str


class SetMark(msgspec.Struct, frozen=True):
    mark: str


class SetConnmark(msgspec.Struct, frozen=True):
    mark: str


class RestoreMark(msgspec.Struct, frozen=True):
    """The packet gets the mark of its connection."""


class Zone(msgspec.Struct, frozen=True):
    """Connection tracking in a zone of its own."""

    number: int


Action = Accept | Return | Jump | Redirect | Tproxy | SetMark | SetConnmark | RestoreMark | Zone


class Rule(msgspec.Struct, frozen=True):
    chain: Chain
    match: Match
    action: Action


class Table(msgspec.Struct, frozen=True):
    """Rules in the order they are asked. `name` is mangle, nat or raw."""

    name: str
    rules: tuple[Rule, ...]

    @property
    def chains(self) -> tuple[Chain, ...]:
        """Both hooked chains, and those that rules call."""
        called = [rule.chain for rule in self.rules if not rule.chain.hooked]
        return (Chain.PREROUTING, Chain.OUTPUT, *dict.fromkeys(called))

    def of_family(self, family: int) -> Table:
        """The rules that a table of one address family has."""
        return Table(self.name, tuple(rule for rule in self.rules if rule.match.family in (0, family)))


class Ruleset(msgspec.Struct, frozen=True):
    """Everything one spec puts into a namespace. The policy rule and the route belong to every mode.

    `istio` chooses the names: Istio's for the rules that are Istio's, our own for the others.
    """

    tables: tuple[Table, ...]
    families: tuple[int, ...]
    istio: bool


class Kind(Enum):
    MISSING = "missing"
    UNEXPECTED = "unexpected"
    ORDER = "in another order"


class Difference(msgspec.Struct, frozen=True):
    """One way in which the namespace is not as it should be."""

    where: str
    kind: Kind
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind.value}: {self.what}"


Listing = dict[str, list[str]]
"""What is there, in the tool's own words: a place ("ipv4 nat ISTIO_OUTPUT") to its rules in order."""
