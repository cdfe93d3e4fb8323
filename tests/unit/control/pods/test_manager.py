"""A pod is brought up in order, kept up, and leaves nothing behind; what goes wrong is tried again."""

import os
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import trio
import trio.testing

from ztunnel.control.pods.manager import PodManager
from ztunnel.control.pods.pod import Origin, PodSpec, recall
from ztunnel.core.errors import ConfigError, PlatformError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.link.messages import PodAdded, PodFailed, PodGone, PodReady, PodRemoved
from ztunnel.linux.netns import create_netns
from ztunnel.runtime.ready import Ready

pytestmark = pytest.mark.usefixtures("namespaces")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.001)


class World:
    """A worker and a kernel that answer at once; `story` is what happened, in order."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.failing: dict[str, int] = {}
        """Step to how many times it still fails."""
        self.silent = False
        self.deaf = False
        """Does not answer what it is told to close."""
        self.removable = trio.Event()
        """Until then rules are being removed."""
        self.removable.set()
        self.gone: list[str] = []
        self.pods = PodManager(self._send, self, on_gone=lambda pod: self.gone.append(pod.uid), retry=0.01, poll=0.01)

    def _fails(self, step: str) -> bool:
        left = self.failing.get(step, 0)
        self.failing[step] = left - 1
        return left > 0

    def _send(self, message) -> None:
        if isinstance(message, PodAdded):
            self.story.append(f"open {message.uid}")
            if self._fails("open"):
                os.close(message.netns_fd)
                self.pods.heard(PodFailed(message.uid, "the port is taken"))
                return
            self.fd = message.netns_fd
            if not self.silent:
                self.pods.heard(PodReady(message.uid))
        elif isinstance(message, PodRemoved):
            self.story.append(f"close {message.uid}")
            os.close(self.fd)
            if self.deaf:
                return
            self.pods.heard(PodGone(message.uid))

    async def install(self, pod, netns) -> None:
        self.story.append(f"install {pod.uid}")
        if self._fails("install"):
            raise PlatformError("no iptables", hint="install it")

    async def prove(self, pod, netns) -> None:
        self.story.append(f"prove {pod.uid}")
        if self._fails("prove"):
            raise PlatformError("nothing arrived")

    async def remove(self, pod, netns) -> None:
        await self.removable.wait()
        self.story.append(f"remove {pod.uid}")

    async def until_up(self, uid: str) -> None:
        await until(lambda: any(status.up for status in self.pods.statuses() if status.spec.uid == uid))

    async def until_gone(self, uid: str) -> None:
        await until(lambda: uid in self.gone)


class Netns:
    def __init__(self) -> None:
        self.fd = create_netns()
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"

    def vanish(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
def netns(namespaces: None) -> Iterator[Netns]:
    made = Netns()
    yield made
    made.vanish()


@pytest.fixture
async def world(nursery: trio.Nursery) -> World:
    made = World()
    await nursery.start(made.pods.run)
    return made


def spec(netns: Netns, uid: str = "a", **fields) -> PodSpec:
    defaults = {"namespace": "demo", "name": uid, "service_account": "sa", "capture": CaptureMode.REDIRECT}
    return PodSpec(uid=uid, netns=netns.path, **{**defaults, **fields})


BRINGING_UP = ["install a", "open a", "prove a"]
TAKING_DOWN = ["close a", "remove a"]


async def test_rules_come_first_then_listeners_then_the_proof(world: World, netns: Netns) -> None:
    world.pods.replace(Origin.FILE, [spec(netns)])
    await world.until_up("a")
    assert world.story == BRINGING_UP
    world.pods.replace(Origin.FILE, [])
    await world.until_gone("a")
    assert world.story == BRINGING_UP + TAKING_DOWN
    assert world.pods.statuses() == []


async def test_a_pod_is_up_when_it_is_equipped_and_not_before(world: World, netns: Netns) -> None:
    arrived = trio.Event()
    world.pods._equip = lambda pod: arrived.wait()
    world.pods.replace(Origin.FILE, [spec(netns)])
    await until(lambda: world.story == BRINGING_UP)
    await trio.testing.wait_all_tasks_blocked()
    assert not any(status.up for status in world.pods.statuses())
    arrived.set()
    await world.until_up("a")


async def test_rules_that_somebody_took_out_are_put_back_and_connections_stay(world: World, netns: Netns) -> None:
    world.pods._reprove = 0.01
    world.pods.replace(Origin.FILE, [spec(netns)])
    await world.until_up("a")
    world.failing["prove"] = 1
    await until(lambda: world.story.count("install a") == 2)
    await until(lambda: world.story[-1] == "prove a")
    assert "close a" not in world.story


async def test_a_pod_that_cannot_be_captured_again_says_why(world: World, netns: Netns) -> None:
    world.pods._reprove = 0.01
    world.pods.replace(Origin.FILE, [spec(netns)])
    await world.until_up("a")
    world.failing["prove"] = 1000
    await until(lambda: world.pods.statuses()[0].why == "nothing arrived")
    world.failing["prove"] = 0
    await until(lambda: world.pods.statuses()[0].why == "")
    assert "close a" not in world.story


async def test_the_same_list_again_changes_nothing(world: World, netns: Netns) -> None:
    world.pods.replace(Origin.FILE, [spec(netns)])
    await world.until_up("a")
    world.pods.replace(Origin.FILE, [spec(netns)])
    await trio.testing.wait_all_tasks_blocked()
    assert world.story == BRINGING_UP


async def test_a_changed_pod_is_taken_down_before_it_is_brought_up_anew(world: World, netns: Netns) -> None:
    world.pods.replace(Origin.FILE, [spec(netns)])
    await world.until_up("a")
    world.pods.replace(Origin.FILE, [spec(netns, service_account="other")])
    await until(lambda: len(world.story) == 8)
    assert world.story == BRINGING_UP + TAKING_DOWN + BRINGING_UP
    assert world.pods.serves("demo", "other")
    assert not world.pods.serves("demo", "sa")


@pytest.mark.parametrize(
    ("step", "story"),
    [
        ("install", ["install a"]),
        ("open", ["install a", "open a"]),
        ("prove", ["install a", "open a", "prove a", "close a"]),
    ],
)
async def test_what_fails_is_tried_again_and_the_rules_stay(
    world: World, netns: Netns, step: str, story: list[str]
) -> None:
    world.failing[step] = 1
    world.pods.replace(Origin.FILE, [spec(netns)])
    await world.until_up("a")
    assert world.story == story + BRINGING_UP


async def test_while_it_fails_the_reason_is_shown_and_the_agent_is_not_ready(world: World, netns: Netns) -> None:
    ready = Ready()
    world.failing["open"] = 10**6
    world.pods.replace(Origin.FILE, [spec(netns)], ready)
    await until(lambda: world.pods.statuses()[0].why != "")
    assert world.pods.statuses()[0].why == "pod demo/a: the port is taken"
    assert ready.pending == ("pod demo/a",)
    world.failing["open"] = 0
    await ready.wait_ready()


async def test_a_namespace_that_vanishes_takes_its_pod_down_and_is_served_again_when_it_is_back(
    world: World, netns: Netns
) -> None:
    world.pods.replace(Origin.FILE, [spec(netns)])
    await world.until_up("a")
    keep = os.dup(netns.fd)
    number = netns.fd
    netns.vanish()
    try:
        await until(lambda: world.story == BRINGING_UP + TAKING_DOWN)
        assert [status.up for status in world.pods.statuses()] == [False]
        os.dup2(keep, number)
        netns.fd = number
        await world.until_up("a")
    finally:
        os.close(keep)


async def test_enrolling_returns_when_the_pod_is_up_and_unenrolling_when_nothing_is_left(
    world: World, netns: Netns
) -> None:
    await world.pods.enroll(spec(netns))
    assert [(status.up, status.origin) for status in world.pods.statuses()] == [(True, Origin.ENROLLED)]
    await world.pods.enroll(spec(netns))
    assert world.story == BRINGING_UP
    await world.pods.unenroll("a")
    assert world.story == BRINGING_UP + TAKING_DOWN
    assert world.pods.statuses() == []


async def test_a_pod_comes_again_only_when_nothing_is_left_of_the_one_before(
    world: World, netns: Netns, nursery: trio.Nursery
) -> None:
    """Also where one in between was let go before it began."""
    await world.pods.enroll(spec(netns))
    world.removable = trio.Event()
    ended: list[str] = []

    async def unenroll(which: str) -> None:
        await world.pods.unenroll("a")
        ended.append(which)

    async def enroll_in_vain() -> None:
        with pytest.raises(PlatformError, match="went while it was enrolled"):
            await world.pods.enroll(spec(netns))

    for step in (partial(unenroll, "first"), enroll_in_vain, partial(unenroll, "second")):
        nursery.start_soon(step)
        await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(world.pods.enroll, spec(netns))
    await trio.testing.wait_all_tasks_blocked(0.005)
    assert world.story == [*BRINGING_UP, "close a"]
    assert ended == []
    world.removable.set()
    await world.until_up("a")
    assert world.story == BRINGING_UP + TAKING_DOWN + BRINGING_UP
    assert sorted(ended) == ["first", "second"]


async def test_an_enrolment_that_fails_leaves_nothing(world: World, netns: Netns) -> None:
    world.failing["prove"] = 1
    with pytest.raises(PlatformError, match="nothing arrived"):
        await world.pods.enroll(spec(netns))
    await world.until_gone("a")
    assert world.story == BRINGING_UP + TAKING_DOWN
    assert world.pods.statuses() == []


async def test_an_enrolled_pod_whose_namespace_vanishes_is_forgotten(world: World, netns: Netns) -> None:
    await world.pods.enroll(spec(netns))
    netns.vanish()
    await world.until_gone("a")
    assert world.pods.statuses() == []


async def test_a_namespace_is_one_pods(world: World, netns: Netns) -> None:
    await world.pods.enroll(spec(netns))
    with pytest.raises(ConfigError, match="already that of pod demo/a"):
        await world.pods.enroll(spec(netns, uid="b"))


async def test_a_namespace_that_is_not_there_is_said(world: World) -> None:
    missing = PodSpec(uid="a", namespace="n", name="a", service_account="s", capture=CaptureMode.NONE, netns="/nowhere")
    with pytest.raises(PlatformError, match="/nowhere"):
        await world.pods.enroll(missing)


async def test_only_enrolled_pods_can_be_unenrolled(world: World, netns: Netns) -> None:
    world.pods.replace(Origin.FILE, [spec(netns)])
    with pytest.raises(ConfigError, match="mesh file"):
        await world.pods.unenroll("a")
    with pytest.raises(ConfigError, match="not served"):
        await world.pods.unenroll("b")


async def test_a_pod_that_is_dropped_while_the_worker_is_silent_is_closed_too(world: World, netns: Netns) -> None:
    world.silent = True
    world.pods.replace(Origin.FILE, [spec(netns)])
    await until(lambda: "open a" in world.story)
    world.pods.replace(Origin.FILE, [])
    await world.until_gone("a")
    assert world.story == ["install a", "open a", "close a", "remove a"]


async def test_at_the_end_of_the_agent_rules_go_even_if_the_worker_is_gone_already(netns: Netns) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        await nursery.start(world.pods.run)
        world.pods.replace(Origin.FILE, [spec(netns)])
        await world.until_up("a")
        world.pods.disconnect()
        os.close(world.fd)
        nursery.cancel_scope.cancel()
    assert world.story == [*BRINGING_UP, "remove a"]


async def test_a_pod_whose_worker_ends_is_opened_in_the_next_one_under_the_same_rules(
    world: World, netns: Netns
) -> None:
    world.pods.replace(Origin.FILE, [spec(netns)])
    await world.until_up("a")
    os.close(world.fd)
    world.pods.lost(["a"])
    await until(lambda: len(world.story) == 5)
    assert world.story == [*BRINGING_UP, "open a", "prove a"]
    await world.until_up("a")
    world.pods.replace(Origin.FILE, [])
    await world.until_gone("a")
    assert world.story[-2:] == TAKING_DOWN


async def test_so_is_one_whose_worker_ends_before_it_answers(world: World, netns: Netns) -> None:
    world.silent = True
    world.pods.replace(Origin.FILE, [spec(netns)])
    await until(lambda: "open a" in world.story)
    os.close(world.fd)
    world.silent = False
    world.pods.lost(["a"])
    await world.until_up("a")
    assert world.story == ["install a", "open a", "open a", "prove a"]


async def test_nobody_waits_for_the_answer_of_a_worker_that_ends(world: World, netns: Netns) -> None:
    world.pods.replace(Origin.FILE, [spec(netns)])
    await world.until_up("a")
    world.deaf = True
    world.pods.replace(Origin.FILE, [])
    await until(lambda: world.story[-1] == "close a")
    world.pods.lost(["a"])
    await world.until_gone("a")
    assert world.story == BRINGING_UP + TAKING_DOWN


async def test_a_pod_that_a_worker_serves_already_is_kept_if_it_is_still_wanted(world: World, netns: Netns) -> None:
    served, origin = recall(spec(netns).added(None, Origin.FILE))
    world.pods.adopt(served, origin)
    world.pods.replace(Origin.FILE, [spec(netns)])
    await world.until_up("a")
    assert world.story == BRINGING_UP
    assert not world.gone


async def test_and_is_closed_if_it_is_not(world: World, netns: Netns) -> None:
    world.fd = os.dup(netns.fd)
    world.pods.adopt(spec(netns), Origin.FILE)
    world.pods.replace(Origin.FILE, [])
    await world.until_gone("a")
    assert world.story == ["close a"]


async def test_an_enrolled_pod_survives_the_control_half_that_enrolled_it(world: World, netns: Netns) -> None:
    world.pods.adopt(*recall(spec(netns).added(None, Origin.ENROLLED)))
    world.pods.replace(Origin.FILE, [])
    await world.until_up("a")
    assert [status.origin for status in world.pods.statuses()] == [Origin.ENROLLED]


def test_notes_of_another_release_are_refused() -> None:
    served = PodAdded(
        uid="a", name="a", namespace="n", service_account="s", capture=CaptureMode.NONE, memo=b"\x01 other"
    )
    with pytest.raises(ValueError, match="notes of the earlier control half"):
        recall(served)


async def test_an_end_that_was_not_wanted_leaves_the_pods_to_the_next_control_half(netns: Netns) -> None:
    world = World()
    world.pods = PodManager(world._send, world, on_gone=lambda pod: world.gone.append(pod.uid), leaves=lambda: True)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.pods.run)
        world.pods.replace(Origin.FILE, [spec(netns)])
        await world.until_up("a")
        nursery.cancel_scope.cancel()
    assert world.story == BRINGING_UP
    assert not world.gone
    os.close(world.fd)


async def test_but_a_pod_that_is_not_wanted_goes_as_ever(netns: Netns) -> None:
    world = World()
    world.pods = PodManager(world._send, world, on_gone=lambda pod: world.gone.append(pod.uid), leaves=lambda: True)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.pods.run)
        world.pods.replace(Origin.FILE, [spec(netns)])
        await world.until_up("a")
        world.pods.replace(Origin.FILE, [])
        await world.until_gone("a")
        nursery.cancel_scope.cancel()
    assert world.story == BRINGING_UP + TAKING_DOWN


async def test_and_an_enrolment_that_fails_is_undone_as_ever(netns: Netns) -> None:
    world = World()
    world.pods = PodManager(world._send, world, leaves=lambda: True)
    world.failing["prove"] = 1
    async with trio.open_nursery() as nursery:
        await nursery.start(world.pods.run)
        with pytest.raises(PlatformError, match="nothing arrived"):
            await world.pods.enroll(spec(netns))
        nursery.cancel_scope.cancel()
    assert world.story == BRINGING_UP + TAKING_DOWN
