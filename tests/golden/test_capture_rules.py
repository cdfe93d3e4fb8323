"""The files in iptables/ are exactly what the agent gives to the tools.

After an intended change: `python tests/golden/test_capture_rules.py` writes them anew; read the difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.redirect import render_iptables, render_nft, routes
from ztunnel.linux.redirect.model import CaptureSpec
from ztunnel.linux.redirect.rules import rules

FOLDER = Path(__file__).parents[2] / "iptables"
VARIANTS: dict[str, dict[str, object]] = {
    "redirect": {"mode": CaptureMode.REDIRECT},
    "redirect-dns": {"mode": CaptureMode.REDIRECT, "dns": True},
    "tproxy": {"mode": CaptureMode.TPROXY},
    "tproxy-dns": {"mode": CaptureMode.TPROXY, "dns": True},
    "node": {
        "mode": CaptureMode.NODE,
        "pod_interfaces": ("p-client", "p-server"),
        "pod_ips": ("10.0.1.2", "10.0.1.3", "fd00:1::2", "fd00:1::3"),
    },
}
FAMILIES = {"ipv4": (True, False), "ipv6": (False, True), "dual": (True, True)}


def rendered() -> dict[str, str]:
    """File name to text."""
    files = {"routes.ip": routes.render()}
    for variant, options in VARIANTS.items():
        for name, (ipv4, ipv6) in FAMILIES.items():
            ruleset = rules(CaptureSpec(ipv4=ipv4, ipv6=ipv6, **options))  # type: ignore[arg-type]
            files[f"{variant}-{name}.nft"] = render_nft.render(ruleset)
            if len(ruleset.families) == 1:
                files[f"{variant}-{name}.iptables"] = render_iptables.render(ruleset, ruleset.families[0])
    return files


@pytest.mark.parametrize("name", rendered())
def test_the_file_is_what_the_agent_renders(name: str) -> None:
    assert (FOLDER / name).read_text() == rendered()[name]


def test_no_file_is_there_that_the_agent_does_not_render() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*rendered(), "README.md"}


if __name__ == "__main__":
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)
