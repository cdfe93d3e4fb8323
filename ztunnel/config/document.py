"""docs/configuration.md, made from the table: `python -m ztunnel.config.document > docs/configuration.md`."""

from __future__ import annotations

from ztunnel.config.describe import written
from ztunnel.config.environ import GROUPS, Variable
from ztunnel.config.settings import Settings

HEAD = """\
# Configuration

The agent is configured by environment variables, the same ones as Istio's ztunnel where it has them. This page is
made from the table that the agent itself reads (`python -m ztunnel.config.document`); a test keeps it up to date.

- A variable that is empty counts as not set, except `XDS_ADDRESS` and `CA_ADDRESS`, where empty means none.
- Every mistake is reported at once, before anything starts; the exit code is then 2.
- Durations: `10s`, `5m`, `1h30m`, `250ms`, or a number of seconds. Sizes: bytes. Lists: commas between.
- Listen addresses: a port, `localhost:port`, `*:port`, `ip:port` or `[ip]:port`.
- Rows marked *no effect yet* are accepted, so that a ztunnel's environment can be used as it is; those that are set
  to something else than their default are named in one warning.

Besides these variables:

- `PROXY_CONFIG` (YAML or JSON, Istio's ProxyConfig): `discoveryAddress`, `proxyAdminPort`, `statsPort` and
  `proxyMetadata` are used; a variable of its own wins over it.
- `ISTIO_META_<name>`: proxy metadata; `ISTIO_META_CLUSTER_ID` also is the cluster's name.
- `XDS_HEADER_<name>`, `CA_HEADER_<name>`: extra headers towards the control plane and the CA (*no effect yet*).
- Fixed ports, because Istio's capture rules name them: 15001 outbound, 15006 inbound plaintext, 15008 HBONE.

The file that `LOCAL_XDS_PATH` names is described in [mesh-file.md](mesh-file.md).
"""


def markdown() -> str:
    """The whole page."""
    parts = [HEAD]
    for group in GROUPS:
        rows = "\n".join(_row(variable) for variable in group.variables)
        parts.append(f"## {group.title}\n\n| Variable | Form | Default | Meaning |\n|---|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def _row(variable: Variable) -> str:
    later = " *No effect yet.*" if variable.later else ""
    default = variable.default or _default(variable)
    return f"| `{variable.name}` | {variable.form.name} | {default} | {variable.sentence}{later} |"


def _default(variable: Variable) -> str:
    value = getattr(Settings(), variable.field)
    if value is None or value in ("", ()):
        return "-"
    if variable.form.name.startswith("`on`"):
        return "`on`" if value else "`off`"
    return f"`{written(value)}`"


if __name__ == "__main__":
    print(markdown(), end="")
