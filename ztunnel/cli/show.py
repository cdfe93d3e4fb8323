"""`ztunnel show`: what a running agent knows, or what a saved config_dump says, as tables or JSON.

Reads ztunnel's config_dump too: the columns are those of `istioctl ztunnel-config`. The row functions are pure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from ztunnel.cli import table
from ztunnel.cli.agent import DEFAULT_ADMIN, fetch_dump, parse_dump
from ztunnel.core.errors import UpstreamError
from ztunnel.observe.log_format import one_line

Dump = Mapping[str, Any]
Entries = Sequence[Mapping[str, Any]]
Row = Sequence[object]


class Section(NamedTuple):
    """One thing to show: where it is in the dump, whose namespace it is in, and its rows."""

    name: str
    key: str
    help: str
    """What its table answers."""
    headers: Sequence[str]
    namespace: Callable[[Mapping[str, Any]], str]
    rows: Callable[[Dump, Entries, float], Iterable[Row]]
    """From the dump, the entries chosen, and the time now in seconds since the epoch."""
    notes: Callable[[Entries], Iterable[str]] = lambda entries: ()
    """Sentences beneath the table."""


def _workload_rows(dump: Dump, entries: Entries, now: float) -> Iterable[Row]:
    names = _service_names(dump)
    for entry in sorted(entries, key=_by_name):
        ips = ",".join(entry.get("workloadIps", ())) or entry.get("hostname", "")
        waypoint = _waypoint(entry, names)
        yield entry.get("namespace"), entry.get("name"), ips, entry.get("node"), waypoint, entry.get("protocol")


def _service_rows(dump: Dump, entries: Entries, now: float) -> Iterable[Row]:
    names = _service_names(dump)
    for entry in sorted(entries, key=_by_name):
        vips = ",".join(vip.partition("/")[2] for vip in entry.get("vips", ()))
        endpoints = entry.get("endpoints", {}).values()
        healthy = sum(endpoint.get("status", "Healthy") == "Healthy" for endpoint in endpoints)
        waypoint = _waypoint(entry, names)
        yield entry.get("namespace"), entry.get("name"), vips, waypoint, f"{healthy}/{len(endpoints)}"


def _policy_rows(dump: Dump, entries: Entries, now: float) -> Iterable[Row]:
    for entry in sorted(entries, key=_by_name):
        action = f"{entry.get('action')} (dry run)" if entry.get("dryRun") else entry.get("action")
        yield entry.get("namespace"), entry.get("name"), action, entry.get("scope")


def _certificate_rows(dump: Dump, entries: Entries, now: float) -> Iterable[Row]:
    for entry in entries:
        name, state = entry.get("identity"), str(entry.get("state", "")).partition(":")[0]
        chain, roots = entry.get("certChain") or (), entry.get("rootCerts") or ()
        if not chain and not roots:
            yield name, None, state, False, None, None, None
        for position, certificate in enumerate(chain):
            yield name, "Intermediate" if position else "Leaf", state, *_validity(certificate, now)
        for certificate in roots:
            yield name, "Root", state, *_validity(certificate, now)


def _certificate_notes(entries: Entries) -> Iterable[str]:
    for entry in entries:
        _, why, text = str(entry.get("state", "")).partition(": ")
        if why:
            yield f"{entry.get('identity')}: {text}"


def _connection_rows(dump: Dump, entries: Entries, now: float) -> Iterable[Row]:
    for entry in sorted(entries, key=lambda each: (_namespace_of_pod(each), each["info"].get("name", ""))):
        workload = f"{entry['info'].get('name')}.{_namespace_of_pod(entry)}"
        connections = entry.get("connections") or {}
        for each in connections.get("inbound") or ():
            yield workload, "Inbound", each["actualDst"], each["src"], each.get("originalDst"), each.get("protocol")
        for each in connections.get("outbound") or ():
            yield workload, "Outbound", each["src"], each["actualDst"], each.get("originalDst"), each.get("protocol")


def _by_name(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry.get("namespace", ""), entry.get("name", "")


def _namespace(entry: Mapping[str, Any]) -> str:
    return str(entry.get("namespace", ""))


def _namespace_of_identity(entry: Mapping[str, Any]) -> str:
    parts = str(entry.get("identity", "")).split("/")
    return parts[parts.index("ns") + 1] if "ns" in parts[:-1] else ""


def _namespace_of_pod(entry: Mapping[str, Any]) -> str:
    return str((entry.get("info") or {}).get("namespace", ""))


def _service_names(dump: Dump) -> dict[str, str]:
    """Address (`network/ip`) and `namespace/hostname` of each service, to its name."""
    names = {}
    for service in _entries(dump, "services"):
        for vip in service.get("vips", ()):
            names[vip] = service.get("name", "")
        names[f"{service.get('namespace')}/{service.get('hostname')}"] = service.get("name", "")
    return names


def _waypoint(entry: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The waypoint's service name; its address when the dump does not know the service."""
    destination = (entry.get("waypoint") or {}).get("destination", "")
    return names.get(destination, destination)


def _validity(certificate: Mapping[str, Any], now: float) -> tuple[bool, str, str, str]:
    """VALID CERT, SERIAL NUMBER (hexadecimal), NOT AFTER, NOT BEFORE."""
    begin, end = certificate.get("validFrom", ""), certificate.get("expirationTime", "")
    serial = str(certificate.get("serialNumber", ""))
    valid = bool(begin and end) and _seconds(begin) <= now <= _seconds(end)
    return valid, f"{int(serial):x}" if serial.isdecimal() else serial, end, begin


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _entries(dump: Dump, key: str) -> list[Mapping[str, Any]]:
    """A section as a list; older agents have an object with the entries as values."""
    found = dump.get(key) or ()
    return list(found.values() if isinstance(found, Mapping) else found)


SECTIONS = (
    Section(
        "workloads",
        "workloads",
        "Where each workload is, and whether it speaks HBONE.",
        ("namespace", "pod name", "address", "node", "waypoint", "protocol"),
        _namespace,
        _workload_rows,
    ),
    Section(
        "services",
        "services",
        "Their addresses, and how many endpoints are healthy.",
        ("namespace", "service name", "service vip", "waypoint", "endpoints"),
        _namespace,
        _service_rows,
    ),
    Section(
        "policies",
        "policies",
        "What each policy does, and for whom.",
        ("namespace", "policy name", "action", "scope"),
        _namespace,
        _policy_rows,
    ),
    Section(
        "certs",
        "certificates",
        "Whose they are, until when, and why one is missing.",
        ("certificate name", "type", "status", "valid cert", "serial number", "not after", "not before"),
        _namespace_of_identity,
        _certificate_rows,
        _certificate_notes,
    ),
    Section(
        "connections",
        "workloadState",
        "What is open now, from where to where.",
        ("workload", "direction", "local", "remote", "remote target", "protocol"),
        _namespace_of_pod,
        _connection_rows,
    ),
)


def select(dump: Dump, section: Section, namespace: str) -> list[Mapping[str, Any]]:
    """The section's entries, of one namespace if it is named."""
    return [entry for entry in _entries(dump, section.key) if not namespace or section.namespace(entry) == namespace]


def as_table(dump: Dump, section: Section, namespace: str = "", *, now: float) -> str:
    """`now` in seconds since the epoch decides which certificates are valid."""
    entries = select(dump, section, namespace)
    notes = "".join(f"{one_line(note)}\n" for note in section.notes(entries))
    return table.render(section.headers, section.rows(dump, entries, now)) + notes


def as_json(dump: Dump, sections: Sequence[Section], namespace: str = "") -> str:
    """One section as a list, several as an object of lists."""
    chosen = {section.name: select(dump, section, namespace) for section in sections}
    content: object = chosen if len(chosen) > 1 else chosen[sections[0].name]
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n"


def show_sections(sections: Sequence[Section], *, admin: str, file: Path | None, output: str, namespace: str) -> None:
    """Print the sections of an agent or of a file; an expected failure is one sentence and its hint."""
    now = time.time()
    try:
        dump = fetch_dump(admin) if file is None else parse_dump(file.read_bytes(), str(file))
        if output == "json":
            text = as_json(dump, sections, namespace)
        elif len(sections) == 1:
            text = as_table(dump, sections[0], namespace, now=now)
        else:
            text = "\n".join(f"# {section.name}\n{as_table(dump, section, namespace, now=now)}" for section in sections)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UpstreamError(
            f"the config_dump of {file or admin} has an unknown shape: {error!r}",
            hint="does it come from an agent of another version? `curl localhost:15000/config_dump` shows it as it is",
        ) from None
    click.echo(text, nl=False)


@click.group()
def show() -> None:
    """Show what a running agent knows, or what a saved config_dump says.

    The agent is asked on its admin port, which is on the loopback of its own network namespace.

    \b
    Examples:
      ztunnel show workloads -n demo
      ztunnel show connections -o json
      ip netns exec web ztunnel show certs             a dedicated agent's
      curl localhost:15000/config_dump >dump.json; ztunnel show all -f dump.json
    """


def _command(name: str, sections: Sequence[Section], text: str) -> click.Command:
    def callback(admin: str, file: Path | None, output: str, namespace: str) -> None:
        show_sections(sections, admin=admin, file=file, output=output, namespace=namespace)

    options: list[click.Parameter] = [
        click.Option(
            ["--admin"], metavar="URL", default=DEFAULT_ADMIN, show_default=True, help="The agent's admin port."
        ),
        click.Option(
            ["-f", "--file"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Read a saved config_dump instead.",
        ),
        click.Option(["-o", "--output"], type=click.Choice(["table", "json"]), default="table", show_default=True),
        click.Option(["-n", "--namespace"], metavar="NAME", default="", help="Only this namespace."),
    ]
    return click.Command(name, params=options, callback=callback, help=text)


for _section in SECTIONS:
    show.add_command(_command(_section.name, [_section], _section.help))
show.add_command(_command("all", SECTIONS, "Every table."))
