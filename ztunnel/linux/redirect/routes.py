"""The policy rule and the route of table 100, which bring packets with the connection mark to this host's sockets.

Written as lines for `ip -4 -batch` and `ip -6 -batch`. Rules and routes of others, also in table 100, are left alone.
"""

from __future__ import annotations

from ztunnel.core.errors import PlatformError
from ztunnel.linux.redirect import tools
from ztunnel.linux.redirect.model import CONNECTION_MARK, ROUTE_TABLE, RULE_PRIORITY, Listing

_RULE = f"fwmark {CONNECTION_MARK} lookup {ROUTE_TABLE}"
_ROUTE = "local default dev lo"


def render() -> str:
    """Text for `ip -batch`; the same for both families."""
    return f"rule add {_RULE} pref {RULE_PRIORITY}\nroute replace {_ROUTE} table {ROUTE_TABLE}\n"


def listing(family: int, netns: int | None) -> Listing:
    """What of ours is there, in the words of `ip`."""
    ip = [tools.find("ip", "iproute2"), f"-{family}"]
    found: Listing = {}
    rules = [" ".join(line.split()) for line in tools.run([*ip, "rule", "show"], netns=netns).splitlines()]
    if ours := [rule for rule in rules if rule.endswith(_RULE)]:
        found[f"ipv{family} rule"] = ours
    try:
        shown = tools.run([*ip, "route", "show", "table", str(ROUTE_TABLE)], netns=netns)
    except PlatformError as error:
        if "FIB table does not exist" not in str(error):
            raise
        shown = ""
    if ours := [" ".join(line.split()) for line in shown.splitlines() if line.startswith(_ROUTE)]:
        found[f"ipv{family} route table {ROUTE_TABLE}"] = ours
    return found


def transition(present: Listing, *, wanted: bool, family: int) -> str:
    """Text for `ip -batch` from what is there to one rule and one route, or to none. Empty: nothing to do."""
    rules = present.get(f"ipv{family} rule", [])
    keep = next((rule for rule in rules if wanted and rule.startswith(f"{RULE_PRIORITY}:")), None)
    lines = [f"rule del {_RULE} pref {rule.split(':')[0]}" for rule in rules if rule is not keep]
    if wanted and keep is None:
        lines.append(f"rule add {_RULE} pref {RULE_PRIORITY}")
    routed = f"ipv{family} route table {ROUTE_TABLE}" in present
    if wanted and not routed:
        lines.append(f"route replace {_ROUTE} table {ROUTE_TABLE}")
    if routed and not wanted:
        lines.append(f"route del {_ROUTE} table {ROUTE_TABLE}")
    return "".join(f"{line}\n" for line in lines)


def batch(text: str, family: int, netns: int | None) -> None:
    if text:
        tools.run([tools.find("ip", "iproute2"), f"-{family}", "-batch", "-"], stdin=text, netns=netns)
