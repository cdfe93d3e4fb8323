"""The demo's stage: two nodes, three pods, an agent per node, an application, and eyes on the wire.

    client, visitor ── node1 ──[wire]── node2 ── server

Built by `open`, gone without a trace after `close`, whatever happened in between. Waiting is always for something to
be seen, with a deadline; running out of one is a StageError that says what was not seen and shows the log.
"""

from __future__ import annotations

import http.client
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from ztunnel.cli.demo import mesh, running
from ztunnel.cli.demo.interrupts import POLL, Interrupts
from ztunnel.cli.demo.process import Agent, App, Process
from ztunnel.core.errors import ZtunnelError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.linux.links import Namespace, Pod, Topology
from ztunnel.linux.packets import Sniffer

T = TypeVar("T")

START_TIME = 20.0
"""Seconds for both agents to be ready, on a slow and busy machine."""
SWITCH_TIME = 15.0
"""For a changed mesh file to be in force."""
SEE_TIME = 5.0
"""For something that has happened to appear in a log."""
REPLY_TIME = 5.0
"""For each step of an HTTP exchange."""
END_TIME = 5.0
"""For children to end after SIGTERM."""


class StageError(ZtunnelError):
    """What should have happened on the stage did not."""


class Refused(StageError):
    """A client's exchange with the application failed or was cut."""


@contextmanager
def as_refused(what: str) -> Iterator[None]:
    """Everything that a client can see of a connection that is refused or cut becomes a Refused."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"{what}: {error or type(error).__name__}") from None


class Answer(NamedTuple):
    """Of the application, as its client got it."""

    status: int
    body: str


class Stage:
    """`with Stage(interrupts) as stage:`; raises PlatformError when the machine lacks something."""

    def __init__(self, interrupts: Interrupts, *, rootless: bool) -> None:
        self.interrupts = interrupts
        self.rootless = rootless
        self.mode = CaptureMode.REDIRECT
        self.pods: dict[str, Pod] = {}
        self.agents: list[Agent] = []
        self._app: App | None = None
        self._undo = ExitStack()
        self.directory = running.make_directory()
        self._undo.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.topology = self._undo.enter_context(Topology())
        self._undo.callback(self._end_children)

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _open(self) -> None:
        self._build()
        self.apply(self.mode)
        for node in self.topology.nodes:
            self.agents.append(Agent(node, self.directory))
        self._app = App(self.pods["server"], mesh.PORT, self.directory)
        self.wait("both agents are ready", self._all_ready, START_TIME)
        self.wait("the application listens", self._app_listens, SEE_TIME)

    def _build(self) -> None:
        nodes = {name: self.topology.node(name) for name in mesh.NODES}
        for member in mesh.MEMBERS:
            self.pods[member.name] = self.topology.pod(member.name, member.ip4, member.ip6, node=nodes[member.node])
        self.wire = self._sniff("eth0", nodes["node1"])
        """The node's end of the link to the other node."""
        self.inside = self._sniff(None, self.pods["server"])
        """Every interface of the server's pod: where the application's bytes are plain."""
        places: dict[str, Namespace] = {**self.pods, **nodes}
        self.directory.joinpath("hosts").write_text(mesh.hosts())
        running.write(
            self.directory, rootless=self.rootless, places={name: place.path for name, place in places.items()}
        )

    def _sniff(self, interface: str | None, place: Namespace) -> Sniffer:
        return self._undo.enter_context(Sniffer(interface, place.fd))

    def close(self) -> None:
        """End every process, namespace and file of the demo. Signals wait until it is done."""
        self._undo.close()

    def _end_children(self) -> None:
        """In peace, if they can; what is left is killed with the topology."""
        children = self._children()
        for child in children:
            child.end()
        deadline = time.monotonic() + END_TIME
        while any(child.exit_code is None for child in children) and time.monotonic() < deadline:
            threading.Event().wait(POLL)

    def _children(self) -> list[Process]:
        return [*self.agents, *([self._app] if self._app else [])]

    # ---- the parts ----

    @property
    def client(self) -> Pod:
        return self.pods["client"]

    @property
    def visitor(self) -> Pod:
        return self.pods["visitor"]

    @property
    def app(self) -> App:
        if self._app is None:
            raise RuntimeError("the stage is not open")
        return self._app

    @property
    def server_agent(self) -> Agent:
        return self.agents[1]

    # ---- what can be done ----

    def apply(self, mode: CaptureMode, policies: tuple[object, ...] = ()) -> None:
        """Write both mesh files; the agents reload them by themselves."""
        self.mode = mode
        netns = {name: pod.path for name, pod in self.pods.items()}
        for node in mesh.NODES:
            path = self.directory / f"{node}.yaml"
            draft = path.with_suffix(".new")
            draft.write_text(mesh.document(node, mode, netns, policies))
            draft.replace(path)

    def switch(self, mode: CaptureMode) -> None:
        """Capture every pod by another mode, live, with no policies in force; returns when that is so."""
        self.apply(mode)
        self.wait(f"every pod is captured by {mode.value}", self._all_up, SWITCH_TIME)

    def rest(self) -> None:
        """No policies, the first capture mode, nobody watching: ready for experiments."""
        self.wire.close()
        self.inside.close()
        self.switch(CaptureMode.REDIRECT)

    def get(self, pod: Pod, path: str, *, ip: str = mesh.SERVICE_IP4, secret: str = "") -> Answer:
        """A request of the pod to the service. Raises Refused when it gets no whole answer."""
        with as_refused(f"{pod.name} got no answer"), self.open_request(pod, path, ip=ip, secret=secret) as response:
            return Answer(response.status, response.read().decode())

    def open_request(
        self, pod: Pod, path: str, *, ip: str = mesh.SERVICE_IP4, secret: str = ""
    ) -> http.client.HTTPResponse:
        """The response as far as its headers; its body is the caller's to read and to close. Raises as `get` does."""
        connection = http.client.HTTPConnection(mesh.SERVER.name, mesh.PORT)
        try:
            with as_refused(f"{pod.name} got no answer"):
                connection.sock = pod.connect(ip, mesh.PORT, timeout=REPLY_TIME)
                connection.request("GET", path, headers={"X-Secret": secret, "Connection": "close"})
                return connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def wait(self, what: str, look: Callable[[], T | None], seconds: float) -> T:
        """What `look` finds. Raises StageError when a child ends or the time is over."""

        def look_twice() -> T | None:
            for child in self._children():
                if child.exit_code is not None:
                    raise StageError(f"{child.name} ended with {child.exit_code}", hint=child.tail())
            return look()

        found = self.interrupts.until(look_twice, seconds)
        if found is None:
            raise StageError(f"not seen within {seconds:g} s: {what}", hint="\n".join(self._explain()))
        return found

    def _explain(self) -> Iterator[str]:
        for agent in self.agents:
            pods = [f"{row.name} {row.capture.value} {row.why or ('up' if row.up else 'down')}" for row in agent.pods()]
            yield f"  {agent.name}: {agent.not_ready() or 'ready'}; its pods: {', '.join(pods) or 'none'}; its log:"
            yield agent.tail()

    # ---- looks ----

    def _all_ready(self) -> bool | None:
        return not any(agent.not_ready() for agent in self.agents) or None

    def _all_up(self) -> bool | None:
        rows = [row for agent in self.agents for row in agent.pods()]
        return (len(rows) == len(mesh.MEMBERS) and all(row.up and row.capture is self.mode for row in rows)) or None

    def _app_listens(self) -> bool | None:
        try:
            self.pods["server"].connect("127.0.0.1", mesh.PORT).close()
        except OSError:
            return None
        return True
