"""Capture in memory, for tests of those who use it: the same functions, rules and refusals, no kernel."""

from __future__ import annotations

from ztunnel.core.errors import PlatformError
from ztunnel.linux.redirect import render_iptables, routes
from ztunnel.linux.redirect.apply import changes
from ztunnel.linux.redirect.model import Backend, CaptureSpec, Difference, Listing
from ztunnel.linux.redirect.rules import rules
from ztunnel.linux.redirect.verify import differences


class FakeCapture:
    """Keeps what would be in each namespace, by the number of its descriptor."""

    def __init__(self) -> None:
        self.namespaces: dict[int | None, Listing] = {}
        """Rules by place, as a tool would list them; a test may change them."""
        self.refusal: PlatformError | None = None
        """Raised by everything while it is set."""

    def apply(self, spec: CaptureSpec, netns: int | None = None, backend: Backend | None = None) -> list[str]:
        wanted = self._listing(spec)
        before = self.namespaces.get(netns, {})
        self.namespaces[netns] = wanted
        return changes(before, wanted)

    def verify(self, spec: CaptureSpec, netns: int | None = None, backend: Backend | None = None) -> list[Difference]:
        return differences(self._listing(spec), self.namespaces.get(netns, {}))

    def remove(self, netns: int | None = None, backend: Backend | None = None) -> list[str]:
        if self.refusal is not None:
            raise self.refusal
        return changes(self.namespaces.pop(netns, {}), {})

    def _listing(self, spec: CaptureSpec) -> Listing:
        ruleset = rules(spec)
        if self.refusal is not None:
            raise self.refusal
        found: Listing = {}
        for family in ruleset.families:
            text = render_iptables.render(ruleset, family)
            created = text.replace("-N ", ":").replace("\nCOMMIT", "")
            found |= render_iptables.listing(created, family)
            found[f"ipv{family} routes"] = routes.render().splitlines()
        return found
