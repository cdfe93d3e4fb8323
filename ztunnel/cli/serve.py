"""`ztunnel serve` (and `ztunnel proxy`, as Istio's image is started): the agent as a process; and `ztunnel version`."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import click

from ztunnel import __version__
from ztunnel.config import Settings, load
from ztunnel.config.describe import describe
from ztunnel.config.environ import GROUPS
from ztunnel.linux.rights import raise_open_files
from ztunnel.observe.logs import Logs, install

MESH_CONFIG = Path("./etc/istio/config/mesh")
"""Where Istio's images have the mesh config, as a relative path (ztunnel: config.rs)."""

log = logging.getLogger("ztunnel")


class _Serve(click.Command):
    """Help that ends with every setting."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in GROUPS:
            rows = [(variable.name, variable.sentence) for variable in group.variables if not variable.later]
            if rows:
                with formatter.section(group.title):
                    formatter.write_dl(rows)


@click.command(cls=_Serve)
def serve() -> None:
    """Run the agent until SIGTERM or Ctrl-C; the first one drains, a second one ends at once.

    It is set up by environment variables, Istio's where Istio has one. Exit codes: 0 after an orderly end, 1 after a
    crash, 2 when the settings, the mesh file or the rights are not sufficient.

    \b
    Examples:
      PROXY_MODE=dedicated PROXY_WORKLOAD_INFO=default/web/web \\
        LOCAL_XDS_PATH=mesh.yaml LOCAL_CA_PATH=ca ztunnel serve
      LOCAL_XDS_PATH=mesh.yaml LOCAL_CA_PATH=ca RUST_LOG=error,access=info ztunnel serve
    """
    settings = load(os.environ, _mesh_config())
    logs = install(settings.rust_log, form=settings.log_format)
    try:
        _introduce(settings)
        _raise_descriptor_limit()
        _run(settings, logs)
    finally:
        logs.close()


@click.command(hidden=True)
@click.argument("arguments", nargs=-1)
@click.pass_context
def proxy(context: click.Context, arguments: tuple[str, ...]) -> None:
    """The same as `serve`; further arguments are accepted and have no meaning."""
    context.invoke(serve)


@click.command()
def version() -> None:
    """Print the version in the form of Istio's components."""
    from ztunnel.control.identity.provider import crypto_provider

    istio = os.environ.get("ISTIO_META_ISTIO_VERSION", "unknown")
    click.echo(
        f'version.BuildInfo{{Version:"{__version__}", GitRevision:"unknown", RustVersion:"", BuildProfile:"release", '
        f'BuildStatus:"unknown", IstioVersion:"{istio}", CryptoProvider:"{crypto_provider()}"}}'
    )


def _run(settings: Settings, logs: Logs) -> None:
    from ztunnel import node  # the whole agent, which the other commands of this module need not wait for

    node.serve(settings, logs)


def _mesh_config() -> str:
    with suppress(OSError):
        return MESH_CONFIG.read_text()
    return ""


def _introduce(settings: Settings) -> None:
    log.info("ztunnel %s, mode %s", __version__, settings.proxy_mode)
    for row in describe(settings):
        if row.origin != "default":
            log.info("setting %s=%s from %s", row.name, row.value, row.origin)
    for warning in settings.warnings:
        log.warning("%s", warning)


def _raise_descriptor_limit() -> None:
    """A connection needs up to four descriptors; the soft limit is made for select(), not for this."""
    try:
        log.debug("open files: at most %d", raise_open_files())
    except (ValueError, OSError) as error:
        log.warning("the limit of open files stays as it is: %s", error)
