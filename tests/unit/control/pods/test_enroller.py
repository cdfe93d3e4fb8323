"""The enroll socket: private, bounded, and every line is answered."""

import contextlib
import json
import os
import stat
from pathlib import Path

import pytest
import trio
from mesh_samples import workload

from ztunnel.control.pods import enroller as enroller_module
from ztunnel.control.pods.enroller import Enroller, listen
from ztunnel.control.pods.manager import PodStatus
from ztunnel.control.pods.pod import Origin
from ztunnel.core.errors import ConfigError, PlatformError
from ztunnel.core.model.capture import CaptureMode

WEB = {"op": "enroll", "netns": "web", "namespace": "demo", "name": "web"}


class Pods:
    """A pod manager that brings everything up at once."""

    def __init__(self) -> None:
        self.specs = {}

    async def enroll(self, spec) -> None:
        if spec.name == "bad":
            raise PlatformError("no such namespace", hint="make it")
        self.specs[spec.uid] = spec

    async def unenroll(self, uid: str) -> None:
        if uid not in self.specs:
            raise ConfigError(f"pod {uid} is not served here")
        del self.specs[uid]

    def statuses(self):
        return [PodStatus(spec, Origin.ENROLLED, True, "") for spec in self.specs.values()]


class Client:
    def __init__(self, path: str) -> None:
        self.path = path

    async def talk(self, data: bytes) -> list[dict]:
        """Every reply until the agent ends the connection or the client's half is read."""
        async with await trio.open_unix_socket(self.path) as stream:
            await stream.send_all(data)
            await stream.send_eof()
            received = b""
            with contextlib.suppress(trio.BrokenResourceError):  # the agent need not have read everything
                async for part in stream:
                    received += part
        return [json.loads(line) for line in received.splitlines()]

    async def ask(self, **request) -> dict:
        (reply,) = await self.talk(json.dumps(request).encode() + b"\n")
        return reply


@pytest.fixture
def pods() -> Pods:
    return Pods()


@pytest.fixture
async def client(pods: Pods, tmp_path: Path, nursery: trio.Nursery) -> Client:
    path = str(tmp_path / "run" / "enroll.sock")
    known = {each.name: each for each in (workload("web"), workload("bad"), workload("node-pod", "10.0.0.9"))}
    enroller = Enroller(pods, CaptureMode.REDIRECT, lambda namespace, name: known.get(name))
    await nursery.start(enroller.run, path)
    return Client(path)


async def test_a_pod_comes_and_goes(client: Client, pods: Pods) -> None:
    reply = await client.ask(**WEB)
    assert reply["ok"] is True
    assert reply["pods"] == [
        {
            "uid": "demo/web",
            "namespace": "demo",
            "name": "web",
            "service_account": "web",
            "netns": "web",
            "capture": "redirect",
            "origin": "enrolled",
            "up": True,
            "why": "",
        }
    ]
    assert (await client.ask(op="list"))["pods"] == reply["pods"]
    assert (await client.ask(op="unenroll", uid="demo/web")) == {"ok": True}
    assert pods.specs == {}


async def test_several_requests_on_one_connection(client: Client, pods: Pods) -> None:
    replies = await client.talk(
        json.dumps(WEB).encode() + b"\n" + json.dumps({"op": "unenroll", "uid": "demo/web"}).encode() + b"\n"
    )
    assert [reply["ok"] for reply in replies] == [True, True]


async def test_why_a_pod_cannot_be_served_is_answered_with_the_hint(client: Client) -> None:
    assert await client.ask(**{**WEB, "name": "bad"}) == {"ok": False, "error": "no such namespace", "hint": "make it"}


async def test_a_node_mode_pod_has_the_addresses_of_its_workload(client: Client, pods: Pods) -> None:
    reply = await client.ask(op="enroll", namespace="demo", name="node-pod", interface="p-x", capture="node")
    assert reply["ok"] is True
    assert pods.specs["demo/node-pod"].ips == ("10.0.0.9",)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"namespace": ""}, "namespace '' is no name"),
        ({"name": "a/b"}, "name 'a/b' is no name"),
        ({"service_account": "other"}, "its service account in the mesh is web, not other"),
        ({"name": "stranger"}, "demo/stranger is no workload of the mesh"),
        ({"uid": "a\nb"}, "is no name"),
        ({"name": "a" * 300}, "is no name"),
        ({"netns": ""}, "needs the pod's network namespace"),
        ({"capture": "node"}, "needs the node's interface"),
        ({"interface": "eth0"}, "only capture node"),
        ({"ips": ["300.1.1.1"]}, "300.1.1.1"),
    ],
)
async def test_what_cannot_be_meant_is_refused(client: Client, pods: Pods, change: dict, complaint: str) -> None:
    reply = await client.ask(**{**WEB, **change})
    assert reply["ok"] is False
    assert complaint in reply["error"]
    assert pods.specs == {}


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"garbage\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b'{"op": "reboot"}\n',
        b'{"op": "enroll"}\n',
        b'{"op": "list", "and": "more"}\n',
        b'{"op": "enroll", "namespace": 1, "name": "a"}\n',
        b'{"op": "list"',
        b"[" * 10_000 + b"\n",
        b"a" * 100_000,
    ],
)
async def test_garbage_is_answered_with_an_error_and_the_connection_ends(client: Client, line: bytes) -> None:
    (reply,) = await client.talk(line)
    assert reply["ok"] is False
    assert reply["error"].startswith("not a request")
    assert (await client.ask(op="list"))["ok"] is True


async def test_a_silent_client_is_let_go_and_disturbs_nobody(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enroller_module, "SILENCE", 0.01)
    async with await trio.open_unix_socket(client.path) as stream:
        await stream.send_all(b'{"op": ')
        assert await stream.receive_some(100) == b""
    assert (await client.ask(op="list"))["ok"] is True


async def test_the_socket_is_its_owners_and_goes_with_the_agent(pods: Pods, tmp_path: Path) -> None:
    path = str(tmp_path / "enroll.sock")
    async with trio.open_nursery() as nursery:
        await nursery.start(Enroller(pods, CaptureMode.REDIRECT, lambda namespace, name: None).run, path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        nursery.cancel_scope.cancel()
    assert os.listdir(tmp_path) == []


def test_a_dead_agents_socket_is_replaced_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "enroll.sock")
    listen(path).close()
    with listen(path), pytest.raises(PlatformError, match="another agent"):
        listen(path)


def test_a_socket_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(PlatformError) as caught:
        listen(str(tmp_path / ("x" * 200)))
    assert "ENROLL_UDS" in caught.value.hint
