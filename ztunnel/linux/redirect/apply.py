"""Puts the rules of a spec into a namespace, or takes everything of ours out of it.

Apply always leads from what is there to what is wanted: after ten times it is as after one, another mode or backend is
replaced, and what an agent that was killed half-way left behind is put right. If a tool refuses, what was there before
is put back. Remove looks through every backend that is installed.

A table of iptables-nft in which nobody else has anything (asked of nft, which also shows what iptables does not) is
removed as a whole, and so are built-in chains that are empty; whose they were cannot be told, and empty they mean
nothing. The tables of iptables-legacy are the kernel's own
and stay, empty, once they were used.

Blocks for some tens of milliseconds: call it from a worker thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

import msgspec

from ztunnel.core.errors import PlatformError
from ztunnel.linux.netns import in_netns
from ztunnel.linux.redirect import render_iptables, render_nft, routes, tools
from ztunnel.linux.redirect.model import Backend, CaptureSpec, Listing, Ruleset
from ztunnel.linux.redirect.rules import rules
from ztunnel.linux.sockets import has_ipv6

_IPTABLES = (Backend.IPTABLES_NFT, Backend.IPTABLES_LEGACY)
_FAMILIES = (4, 6)


def apply(spec: CaptureSpec, netns: int | None = None, backend: Backend | None = None) -> list[str]:
    """Make the namespace as the spec says, and tell what was changed (empty: it was so already).

    IPv6 is left out where the namespace has none. Raises ConfigError for an impossible spec, PlatformError when a
    right or a tool is missing.
    """
    spec = fitting(spec, netns)
    ruleset = rules(spec)
    chosen = backend or detect(netns)
    if not tools.has(chosen):
        raise tools.missing(chosen)
    before = present(netns)
    try:
        _lead(before, ruleset, chosen, netns)
    except PlatformError:
        with contextlib.suppress(PlatformError):
            _put_back(before, netns)
        raise
    return changes(before, present(netns))


def remove(netns: int | None = None, backend: Backend | None = None) -> list[str]:
    """Take everything of ours out (of one backend, or of all), and tell what was removed."""
    before = present(netns)
    for one in Backend:
        if tools.has(one) and backend in (None, one):
            _clear(before, one, netns)
    for family in _FAMILIES:
        routes.batch(routes.transition(before, wanted=False, family=family), family, netns)
    return changes(before, present(netns))


def render(spec: CaptureSpec, backend: Backend) -> str:
    """What apply gives to the tools in an untouched namespace, as text to read (and to use by hand)."""
    ruleset = rules(spec)
    parts = []
    if backend is Backend.NFT:
        parts.append(f"# nft -f -\n{render_nft.render(ruleset)}")
    for family in ruleset.families:
        if backend is not Backend.NFT:
            name = "iptables" if family == 4 else "ip6tables"
            command = f"{name}-{backend.value.removeprefix('iptables-')}-restore --noflush"
            parts.append(f"# {command}\n{render_iptables.render(ruleset, family)}")
        parts.append(f"# ip -{family} -batch -\n{routes.render()}")
    return "\n".join(parts)


def detect(netns: int | None = None) -> Backend:
    """The backend to use: the one that has our rules, else the first whose tools are installed and answer.

    Raises PlatformError when none does, with what each answered.
    """
    refusals = []
    usable = []
    for backend in Backend:
        if not tools.has(backend):
            continue
        try:
            if in_backend(backend, netns):
                return backend
            usable.append(backend)
        except PlatformError as error:
            refusals.append(error)
    if usable:
        return usable[0]
    if refusals:
        raise refusals[0]
    raise PlatformError("no tool for capture rules is installed", hint="install the package nftables or iptables")


def fitting(spec: CaptureSpec, netns: int | None) -> CaptureSpec:
    """The spec without IPv6 where the namespace has none."""
    with in_netns(netns):
        return spec if has_ipv6() else msgspec.structs.replace(spec, ipv6=False)


def present(netns: int | None = None) -> Listing:
    """Everything of ours that is in the namespace, in all backends. IPTables places are told apart by their backend.

    Raises PlatformError when a right is missing or no backend answers; one that this kernel lacks holds nothing.
    """
    found: Listing = {}
    answered, refusal = False, None
    for backend in Backend:
        if tools.has(backend):
            try:
                found |= in_backend(backend, netns)
                answered = True
            except tools.NotPermittedError:
                raise
            except PlatformError as error:
                refusal = error
    if refusal is not None and not answered:
        raise refusal
    for family in _FAMILIES:
        found |= routes.listing(family, netns)
    return found


def in_backend(backend: Backend, netns: int | None) -> Listing:
    """What of ours one backend has."""
    found: Listing = {}
    if backend is Backend.NFT:
        for table, text in _nft_listed("inet", render_nft.TABLES, netns).items():
            found |= render_nft.listing(table, text)
        return found
    for family in _FAMILIES:
        listed = render_iptables.listing(_saved(backend, family, netns), family)
        found |= {f"{backend.value} {place}": lines for place, lines in listed.items()}
    return found


def changes(before: Listing, after: Listing) -> list[str]:
    """What differs between two listings, rule by rule."""
    told = []
    for place in sorted(before.keys() | after.keys()):
        old, new = before.get(place), after.get(place)
        if old == new:
            continue
        told += [f"removed {place}: {rule}" for rule in old or () if rule not in (new or ())]
        told += [f"added {place}: {rule}" for rule in new or () if rule not in (old or ())]
        if old is None and not new:
            told.append(f"added {place}")
        elif new is None and not old:
            told.append(f"removed {place}")
        elif old is not None and new is not None and sorted(set(old)) == sorted(set(new)):
            told.append(f"rearranged {place}")
    return told


def _lead(before: Listing, ruleset: Ruleset, chosen: Backend, netns: int | None) -> None:
    """From `before` to the ruleset. Routes come first: a packet is never marked while no route knows the mark."""
    for family in ruleset.families:
        routes.batch(routes.transition(before, wanted=True, family=family), family, netns)
    if chosen is Backend.NFT:
        _nft_file(render_nft.transition(_of(before, chosen), ruleset), netns)
    else:
        for family in _FAMILIES:
            wanted = ruleset if family in ruleset.families else None
            text = render_iptables.transition(_of(before, chosen), wanted, family)
            _restore(chosen, family, text, netns)
    for other in Backend:
        if other is not chosen and _of(before, other):
            _clear(before, other, netns)
    for family in set(_FAMILIES) - set(ruleset.families):
        routes.batch(routes.transition(before, wanted=False, family=family), family, netns)


def _put_back(before: Listing, netns: int | None) -> None:
    """After a failure: what was there before, and nothing else of ours. nft has put itself back already."""
    now = present(netns)
    for backend in _IPTABLES:
        if not _of(before, backend) and _of(now, backend):
            _clear(now, backend, netns)
        elif _of(now, backend) != _of(before, backend):
            for family in _FAMILIES:
                text = render_iptables.return_to(_of(now, backend), _of(before, backend), family)
                _restore(backend, family, text, netns)
    for family in _FAMILIES:
        wanted = any(place.startswith(f"ipv{family} ") for place in before)
        routes.batch(routes.transition(now, wanted=wanted, family=family), family, netns)


def _clear(before: Listing, backend: Backend, netns: int | None) -> None:
    if backend is Backend.NFT:
        _nft_file(render_nft.transition(_of(before, backend), None), netns)
        return
    for family in _FAMILIES:
        found = _of(before, backend)
        if backend is Backend.IPTABLES_LEGACY or not tools.has(Backend.NFT):
            _restore(backend, family, render_iptables.transition(found, None, family), netns)
            continue
        name = "ip" if family == 4 else "ip6"
        tables = _nft_listed(name, render_iptables.TABLES, netns)
        whole = [table for table, listed in tables.items() if not render_iptables.holds_others(listed)]
        _nft_file("".join(f"delete table {name} {table}\n" for table in whole), netns)
        found = {place: lines for place, lines in found.items() if place.split()[1] not in whole}
        _restore(backend, family, render_iptables.transition(found, None, family), netns)
        for table, listed in _nft_listed(name, render_iptables.TABLES, netns).items():
            empty = render_iptables.empty_hooks(listed)
            _nft_file("".join(f"delete chain {name} {table} {chain}\n" for chain in empty), netns)


def _of(found: Listing, backend: Backend) -> Listing:
    """The part of a listing that belongs to a backend, without the backend's name."""
    if backend is Backend.NFT:
        return {place: lines for place, lines in found.items() if place.startswith("nft ")}
    prefix = f"{backend.value} "
    return {place.removeprefix(prefix): lines for place, lines in found.items() if place.startswith(prefix)}


def _saved(backend: Backend, family: int, netns: int | None) -> str:
    """The output of iptables-save. Legacy tables that were never used are not asked for: asking would make them."""
    save = tools.iptables(backend, family, "save")
    if backend is Backend.IPTABLES_LEGACY:
        name = "ip_tables_names" if family == 4 else "ip6_tables_names"
        try:
            with in_netns(netns):
                used = Path("/proc/thread-self/net", name).read_text()
        except PermissionError:
            if os.geteuid() != 0:
                raise tools.NotPermittedError("may not read the rules of iptables", hint="run as root") from None
            # a namespace made together with its user namespace: the file belongs to nobody inside, the tables do not
            return "".join(tools.run([save, "-t", table], netns=netns) for table in render_iptables.TABLES)
        except OSError:
            return ""  # the kernel has no such tables
        if not used:
            return ""
    return tools.run([save], netns=netns)


def _restore(backend: Backend, family: int, text: str, netns: int | None) -> None:
    if text:
        command = [tools.iptables(backend, family, "restore"), "--noflush", "-w", "10"]
        tools.run(command, stdin=text, netns=netns)


def _nft(arguments: list[str], netns: int | None, stdin: str = "") -> str:
    return tools.run([tools.find("nft", "nftables"), *arguments], stdin=stdin, netns=netns)


def _nft_file(text: str, netns: int | None) -> None:
    if text:
        _nft(["-f", "-"], netns, text)


def _nft_listed(family: str, names: Collection[str], netns: int | None) -> dict[str, str]:
    """Those tables that are there, in nft's words."""
    listed = [line.split() for line in _nft(["list", "tables", family], netns).splitlines()]
    tables = [words[2] for words in listed if words[:2] == ["table", family] and words[2] in names]
    return {table: _nft(["-s", "list", "table", family, table], netns) for table in tables}
