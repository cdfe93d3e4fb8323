"""Private tables are replaced as a whole; Istio's table on the host is not taken for a pod's."""

from __future__ import annotations

from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.redirect import render_nft
from ztunnel.linux.redirect.model import CaptureSpec
from ztunnel.linux.redirect.rules import rules

LISTED = """\
table inet ztunnel-mangle {
\tchain prerouting {
\t\ttype filter hook prerouting priority mangle; policy accept;
\t\tjump ztunnel-prerouting
\t}

\tchain ztunnel-prerouting {
\t}
}
"""
HOST = """\
table inet istio-ambient-nat {
\tset istio-inpod-probes-v4 {
\t\ttype ipv4_addr
\t}
\tchain postrouting {
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t}
}
"""


def test_a_listing_is_read_chain_by_chain() -> None:
    assert render_nft.listing("ztunnel-mangle", LISTED) == {
        "nft ztunnel-mangle": [],
        "nft ztunnel-mangle prerouting": [
            "type filter hook prerouting priority mangle; policy accept;",
            "jump ztunnel-prerouting",
        ],
        "nft ztunnel-mangle ztunnel-prerouting": [],
    }


def test_an_empty_table_is_ours_by_its_name() -> None:
    empty = render_nft.listing("ztunnel-mangle", "table inet ztunnel-mangle {\n}\n")
    assert render_nft.transition(empty, None) == "delete table inet ztunnel-mangle\n"


def test_istios_table_on_the_host_is_not_ours() -> None:
    assert render_nft.listing("istio-ambient-nat", HOST) == {}


def test_removal_deletes_each_table_once() -> None:
    present = render_nft.listing("ztunnel-mangle", LISTED)
    assert render_nft.transition(present, None) == "delete table inet ztunnel-mangle\n"
    assert render_nft.transition({}, None) == ""


def test_another_mode_is_removed_in_the_same_transaction() -> None:
    ruleset = rules(CaptureSpec(mode=CaptureMode.REDIRECT))
    text = render_nft.transition(render_nft.listing("ztunnel-mangle", LISTED), ruleset)
    assert text == "delete table inet ztunnel-mangle\n" + render_nft.render(ruleset)


def test_a_packet_that_no_listener_takes_is_dropped() -> None:
    """nft's tproxy lets it pass on, iptables' drops it; both must fail closed."""
    lines = render_nft.render(rules(CaptureSpec(mode=CaptureMode.TPROXY))).splitlines()
    for number, line in enumerate(lines):
        if " tproxy " in line:
            assert lines[number + 1] == f"{line.partition(' counter ')[0]} counter drop"
