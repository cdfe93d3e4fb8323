"""Programs that people run, in two pods, with everything between them captured: neither side knows of the mesh."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from mesh_samples import service, workload
from netns_builder import Topology
from path_mesh import CLIENT, PATIENCE, SERVER_IP, VIP, path, read_all, read_exactly, run, together
from path_mesh import Path as Mesh

SSH, HTTP, POSTGRES, REDIS = 22, 80, 5432, 6379
PORTS = {SSH: 2222, HTTP: 8080, POSTGRES: POSTGRES, REDIS: REDIS}
SERVER = workload("server", SERVER_IP, backs={"demo/web.demo": PORTS})
WEB = service("web", VIP, ports=PORTS)
NOBODY = 65534
UNTIL_ASLEEP = """DO $$ BEGIN
    WHILE NOT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND pid <> pg_backend_pid()) LOOP
        PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
    END LOOP;
END $$"""
HARD = 30.0
"""Seconds for what a program does at its start; databases take one or two."""


@asynccontextmanager
async def applications(topology: Topology) -> AsyncIterator[Mesh]:
    """Every connection through it must have crossed in a tunnel, and ended well."""
    async with path(topology, workloads=(CLIENT, SERVER), services=(WEB,)) as p:
        yield p
        with trio.fail_after(PATIENCE):
            first = await p.near.flow()
        assert str(first.destination) == f"{SERVER_IP}:15008"
        bad = [flow for flow in (*p.near.flows, *p.far.flows) if flow.error]
        assert not bad


@asynccontextmanager
async def serving(p: Mesh, command: Sequence[str], port: int, **options: Any) -> AsyncIterator[None]:
    """A server in its pod, from when it listens until it has ended."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = await run(lambda: p.server.popen(command, **quiet, **options))
    try:
        with trio.fail_after(HARD):
            while not await run(_listens, p, port):
                assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                await trio.sleep(0.01)  # it announces itself to nobody
        yield
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await run(process.wait, HARD)


def _listens(p: Mesh, port: int) -> bool:
    try:
        p.server.connect(SERVER_IP, port).close()
    except ConnectionRefusedError:
        return False
    return True


def find(tool: str) -> str:
    """Its path, or nothing. Debian keeps PostgreSQL's servers beside the usual path."""
    beside = sorted(str(each) for each in Path("/usr/lib/postgresql").glob("*/bin"))
    return shutil.which(tool, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *beside])) or ""


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skips a test where one of them is not installed."""
    missing = ", ".join(tool for tool in tools if not find(tool))
    return pytest.mark.skipif(bool(missing), reason=f"needs {missing}; `./dev test` installs what is small")


async def ask(p: Mesh, *command: str, stdin: str | None = None) -> str:
    """What a program in the client's pod answers."""
    done = await run(lambda: p.client.run(command, stdin=stdin))
    return str(done.stdout)


# ---- redis ----


@asynccontextmanager
async def redis(topology: Topology, directory: Path) -> AsyncIterator[tuple[Mesh, list[str]]]:
    """And the command of a client of it."""
    async with applications(topology) as p:
        options = ("--bind", SERVER_IP, "--protected-mode", "no", "--save", "", "--dir", str(directory))
        async with serving(p, (find("redis-server"), *options), REDIS):
            yield p, [find("redis-cli"), "-h", VIP]


@needs("redis-server", "redis-cli")
async def test_redis_keeps_what_it_is_given(topology: Topology, tmp_path: Path) -> None:
    value = hashlib.shake_128(b"redis").hexdigest(500_000)
    async with redis(topology, tmp_path) as (p, client):
        assert await ask(p, *client, "PING") == "PONG\n"
        assert await ask(p, *client, "-x", "SET", "big", stdin=value) == "OK\n"
        assert await ask(p, *client, "GET", "big") == value + "\n"


@needs("redis-server", "redis-cli")
async def test_redis_takes_ten_thousand_pipelined_commands(topology: Topology, tmp_path: Path) -> None:
    commands = "".join(f"INCRBY sum {number}\r\n" for number in range(10_000))
    async with redis(topology, tmp_path) as (p, client):
        assert "errors: 0, replies: 10000" in await ask(p, *client, "--pipe", stdin=commands)
        assert await ask(p, *client, "GET", "sum") == f"{sum(range(10_000))}\n"


@needs("redis-server", "redis-cli")
async def test_redis_publishes_to_a_subscriber_that_only_listens(topology: Topology, tmp_path: Path) -> None:
    async with redis(topology, tmp_path) as (p, client):
        subscriber = await p.connect(VIP, REDIS)
        await run(subscriber.sendall, b"SUBSCRIBE news\r\n")
        confirmed = b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"
        assert await run(read_exactly, subscriber, len(confirmed)) == confirmed
        for number in range(3):
            assert await ask(p, *client, "PUBLISH", "news", f"item {number}") == "1\n"
            message = b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$6\r\nitem %d\r\n" % number
            assert await run(read_exactly, subscriber, len(message)) == message
        subscriber.close()


# ---- PostgreSQL ----


@asynccontextmanager
async def postgres(topology: Topology) -> AsyncIterator[tuple[Mesh, list[str]]]:
    """And the command of a client of it. The server refuses to be root, so it is nobody.

    SIGTERM lets it serve its clients to their end.
    """
    directory = Path(tempfile.mkdtemp(prefix="ztunnel-pg-"))
    os.chown(directory, NOBODY, NOBODY)
    nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": directory}
    data = directory / "data"
    try:
        async with applications(topology) as p:
            make = (
                find("initdb"),
                "-D",
                str(data),
                "-U",
                "demo",
                "--auth=trust",
                "--no-sync",
                "--no-locale",
                "-E",
                "UTF8",
            )
            await run(lambda: p.server.run(make, **nobody))
            with (data / "pg_hba.conf").open("a") as rules:
                rules.write("host all all 0.0.0.0/0 trust\n")
            options = ("-D", str(data), "-h", SERVER_IP, "-k", str(directory), "-F")
            async with serving(p, (find("postgres"), *options), POSTGRES, **nobody):
                yield p, [find("psql"), "-X", "-h", VIP, "-U", "demo", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-At"]
    finally:
        shutil.rmtree(directory)


@pytest.mark.root
@needs("postgres", "initdb", "psql")
async def test_postgresql_takes_and_gives_tables(topology: Topology) -> None:
    rows = "".join(f"{number}\t{hashlib.sha256(str(number).encode()).hexdigest()}\n" for number in range(20_000))
    async with postgres(topology) as (p, psql):
        await ask(p, *psql, "-c", "CREATE TABLE hashes (number int PRIMARY KEY, hash text)")
        await ask(p, *psql, "-c", "COPY hashes FROM STDIN", stdin=rows)
        assert await ask(p, *psql, "-c", "COPY (SELECT * FROM hashes ORDER BY number) TO STDOUT") == rows
        wrong = "SELECT count(*) FROM hashes WHERE hash <> encode(sha256(number::text::bytea), 'hex')"
        assert await ask(p, *psql, "-c", wrong) == "0\n"


@pytest.mark.root
@needs("postgres", "initdb", "psql")
async def test_postgresql_cancels_over_a_connection_of_its_own(topology: Topology) -> None:
    """A cancel request is a second connection that the server only closes."""
    async with postgres(topology) as (p, psql):
        command = [*psql, "-c", "SELECT 'begun'", "-c", "SELECT pg_sleep(60)"]
        pipe = subprocess.PIPE
        child = await run(lambda: p.client.popen(command, stdout=pipe, stderr=pipe, text=True))
        with child:
            assert await run(child.stdout.readline) == "begun\n"
            await ask(p, *psql, "-c", UNTIL_ASLEEP)
            child.send_signal(signal.SIGINT)
            _, complaint = await run(child.communicate, None, PATIENCE)
        assert "canceling statement due to user request" in complaint


# ---- HTTP ----


@needs("curl")
async def test_curl_keeps_one_http_connection_alive(topology: Topology, tmp_path: Path) -> None:
    content = hashlib.shake_128(b"http").digest(10_000_000)
    (tmp_path / "big").write_bytes(content)
    (tmp_path / "small").write_text("small")
    server = (sys.executable, "-m", "http.server", "--protocol", "HTTP/1.1", "--bind", SERVER_IP, "-d", str(tmp_path))
    outputs = [word for n in range(3) for word in ("-o", str(tmp_path / f"got{n}"), f"http://{VIP}/{_file(n)}")]
    async with applications(topology) as p, serving(p, (*server, str(PORTS[HTTP])), PORTS[HTTP]):
        report = await ask(
            p, find("curl"), "-sS", "-m", "10", "-w", "%{http_version} %{http_code} %{num_connects}\n", *outputs
        )
        assert report == "1.1 200 1\n1.1 200 0\n1.1 200 0\n"
        assert [(tmp_path / f"got{n}").read_bytes() == content for n in range(3)] == [False, True, False]
        assert (tmp_path / "got2").read_text() == "small"
        await p.near.flow()
        assert len(p.near.flows) == 1


def _file(number: int) -> str:
    return ("small", "big", "small")[number]


# ---- a server that speaks first ----


async def test_a_server_that_speaks_first_is_heard_before_the_client_says_a_word(topology: Topology) -> None:
    """As SSH, SMTP, FTP and MySQL do: nothing may wait for the client's first byte."""
    async with applications(topology) as p:
        client, served = await p.pair(p.application(PORTS[SSH]), VIP, SSH)
        await run(served.sendall, b"SSH-2.0-server\r\n")
        assert await run(read_exactly, client, 16) == b"SSH-2.0-server\r\n"
        await together(lambda: client.sendall(b"SSH-2.0-client\r\n"), lambda: served.sendall(bytes(1500)))
        assert await run(read_exactly, served, 16) == b"SSH-2.0-client\r\n"
        assert await run(read_exactly, client, 1500) == bytes(1500)
        served.close()
        assert await run(read_all, client) == b""
        client.close()
