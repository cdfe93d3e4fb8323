"""The manager on trio's autojump clock: a day passes in milliseconds. The source is in memory and never blocks."""

from __future__ import annotations

import base64
import itertools
import json
import logging
from collections.abc import AsyncIterator

import pytest
import trio
from cryptography import x509
from mesh_pki import STRANGER, WEB
from trio.testing import MockClock, wait_all_tasks_blocked

from ztunnel.control.identity.ca import MemoryCa
from ztunnel.control.identity.certificate import IssuedCertificate
from ztunnel.control.identity.manager import FETCH_TIMEOUT, MAX_CONCURRENT, CertificateManager, CertificateMessage
from ztunnel.core.errors import IdentityUnavailable
from ztunnel.core.model.identity import Identity
from ztunnel.link.messages import CertificateFailed, CertificateForgotten, CertificateIssued, Priority

START = 1_800_000_000.0
HOUR = 3600.0
TTL = 24 * HOUR


def clock() -> float:
    return START + trio.current_time()


class FakeSource:
    """Signs at once, or after `delay` seconds; fails while `broken` says so. Notes when it was asked."""

    def __init__(self) -> None:
        self.ca = MemoryCa(now=START)
        self.broken = ""
        self.delay = 0.0
        self.asked: list[tuple[float, Identity]] = []
        self.running = self.most = 0

    async def fetch(self, identity: Identity) -> IssuedCertificate:
        self.asked.append((trio.current_time(), identity))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await trio.sleep(self.delay)
        finally:
            self.running -= 1
        if self.broken:
            raise IdentityUnavailable(self.broken, hint="look at the CA")
        return self.ca.issue(identity, ttl=TTL, now=clock())

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.asked]


class Bench:
    """A manager with its source, and the messages it sent with their times."""

    def __init__(self) -> None:
        self.source = FakeSource()
        self.sent: list[tuple[float, CertificateMessage]] = []
        self.manager = CertificateManager(self.source, self._send, clock=clock, jitter=lambda: 0.0)

    def _send(self, message: CertificateMessage) -> None:
        self.sent.append((trio.current_time(), message))

    @property
    def messages(self) -> list[CertificateMessage]:
        return [message for _, message in self.sent]

    async def want(self, identity: Identity, priority: Priority = Priority.NOW) -> list[CertificateMessage]:
        """The messages that this request brought before anything else happened."""
        before = len(self.sent)
        self.manager.want(identity, priority)
        await wait_all_tasks_blocked()
        await trio.sleep(0.01)
        return self.messages[before:]


@pytest.fixture
async def bench(autojump_clock: MockClock) -> AsyncIterator[Bench]:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.manager.run)
        yield bench
        nursery.cancel_scope.cancel()


async def test_a_wanted_certificate_is_issued(bench: Bench, autojump_clock: MockClock) -> None:
    [message] = await bench.want(WEB)
    assert isinstance(message, CertificateIssued)
    assert message.identity == WEB
    leaf = x509.load_pem_x509_certificates(message.chain_pem)[0]
    assert leaf.not_valid_after_utc.timestamp() == message.not_after == START + TTL


async def test_one_certificate_per_identity_is_kept(bench: Bench, autojump_clock: MockClock) -> None:
    [first] = await bench.want(WEB)
    [second] = await bench.want(WEB, Priority.WARMUP)
    [other] = await bench.want(STRANGER)
    assert first == second
    assert isinstance(other, CertificateIssued)
    assert other.identity == STRANGER
    assert len(bench.source.asked) == 2


async def test_many_requests_while_fetching_make_one_fetch_and_one_answer(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.source.delay = 2
    for _ in range(50):
        bench.manager.want(WEB, Priority.NOW)
    await trio.sleep(3)
    assert len(bench.source.asked) == 1
    assert len(bench.sent) == 1


async def test_who_waits_for_the_answer_waits_for_the_first_be_it_good_or_bad(
    bench: Bench, autojump_clock: MockClock
) -> None:
    await bench.manager.wait_answered(WEB)  # nobody wants it
    for fails in (False, True):
        identity = STRANGER if fails else WEB
        bench.source.broken = "no" if fails else ""
        bench.manager.want(identity, Priority.WARMUP)
        await bench.manager.wait_answered(identity)
        assert isinstance(bench.messages[-1], CertificateFailed if fails else CertificateIssued)
        await bench.manager.wait_answered(identity)


async def test_a_request_before_the_manager_runs_is_served_when_it_does(autojump_clock: MockClock) -> None:
    bench = Bench()
    bench.manager.want(WEB, Priority.NOW)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.manager.run)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert isinstance(bench.messages[0], CertificateIssued)


async def test_a_day_of_rotation(bench: Bench, autojump_clock: MockClock) -> None:
    """Lifetime 24 h from two minutes ago: refreshed every 11 h 59 min, every time before the old one ends."""
    await bench.want(WEB)
    await trio.sleep(36 * HOUR)
    half = (TTL - 120) / 2
    assert [round(time) for time in bench.source.times] == [0, half, 2 * half, 3 * half]
    issued = bench.messages
    assert all(isinstance(message, CertificateIssued) for message in issued)
    for (_, before), (time, _) in zip(bench.sent, bench.sent[1:], strict=False):
        assert isinstance(before, CertificateIssued)
        assert START + time < before.not_after
    keys = {message.key_pem for message in issued if isinstance(message, CertificateIssued)}
    assert len(keys) == len(issued)


async def test_a_failed_refresh_keeps_the_certificate_until_it_ends(bench: Bench, autojump_clock: MockClock) -> None:
    [issued] = await bench.want(WEB)
    bench.source.broken = "the CA is away"
    await trio.sleep(23 * HOUR)
    assert bench.messages == [issued]
    assert await bench.want(WEB) == [issued]
    assert bench.manager.snapshot()[0]["state"] == "Available"

    await trio.sleep(HOUR)
    failures = [(time, message) for time, message in bench.sent if isinstance(message, CertificateFailed)]
    assert failures[0] == (pytest.approx(TTL, abs=1), CertificateFailed(WEB, "the CA is away (look at the CA)"))
    assert bench.manager.snapshot()[0]["state"] == "Unavailable: the CA is away (look at the CA)"


async def test_the_ca_comes_back_in_time(bench: Bench, autojump_clock: MockClock) -> None:
    await bench.want(WEB)
    bench.source.broken = "the CA is away"
    await trio.sleep(20 * HOUR)
    bench.source.broken = ""
    await trio.sleep(200)
    assert [type(message) for message in bench.messages] == [CertificateIssued, CertificateIssued]


async def test_retries_back_off_to_150_seconds(bench: Bench, autojump_clock: MockClock) -> None:
    bench.source.broken = "no"
    await bench.want(WEB)
    await trio.sleep(700)
    times = bench.source.times
    assert [round(after - before) for before, after in itertools.pairwise(times)] == [
        1, 2, 4, 8, 16, 32, 64, 128, 150, 150,
    ]  # fmt: skip


async def test_success_resets_the_backoff(bench: Bench, autojump_clock: MockClock) -> None:
    bench.source.broken = "no"
    await bench.want(WEB)
    await trio.sleep(100)
    bench.source.broken = ""
    await bench.want(WEB)
    bench.source.broken = "no"
    await trio.sleep(12 * HOUR)
    half = next(time for time in bench.source.times if time > 10 * HOUR)
    assert half + 1 in [pytest.approx(time) for time in bench.source.times]


async def test_a_waiting_connection_gets_a_new_attempt_not_an_old_error(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.source.broken = "no"
    await bench.want(WEB)
    await trio.sleep(300)
    bench.source.broken = ""
    [answer] = await bench.want(WEB)
    assert isinstance(answer, CertificateIssued)


async def test_a_warm_up_is_answered_with_the_known_error_and_hurries_nothing(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.source.broken = "no"
    await bench.want(WEB)
    await trio.sleep(300)
    asked = len(bench.source.asked)
    assert await bench.want(WEB, Priority.WARMUP) == [CertificateFailed(WEB, "no (look at the CA)")]
    assert len(bench.source.asked) == asked


async def test_a_storm_of_urgent_requests_makes_one_attempt_a_second(bench: Bench, autojump_clock: MockClock) -> None:
    bench.source.broken = "no"
    for _ in range(1000):
        bench.manager.want(WEB, Priority.NOW)
        await trio.sleep(0.01)
    assert 9 <= len(bench.source.asked) <= 11
    answered = [message for message in bench.messages if isinstance(message, CertificateFailed)]
    assert len(answered) == len(bench.source.asked)


def service(index: int) -> Identity:
    return Identity("cluster.local", "default", f"s{index:02}")


async def test_no_more_than_eight_fetches_at_once(bench: Bench, autojump_clock: MockClock) -> None:
    bench.source.delay = 1
    for index in range(40):
        bench.manager.want(service(index), Priority.WARMUP)
    await trio.sleep(10)
    assert bench.source.most == MAX_CONCURRENT == 8
    assert len(bench.sent) == 40


async def test_a_waiting_connection_overtakes_warm_ups(bench: Bench, autojump_clock: MockClock) -> None:
    bench.source.delay = 1
    for index in range(20):
        bench.manager.want(service(index), Priority.WARMUP)
        await wait_all_tasks_blocked()
    await trio.sleep(0.5)
    bench.manager.want(WEB, Priority.NOW)
    bench.manager.want(service(19), Priority.NOW)
    await trio.sleep(10)
    assert {identity for _, identity in bench.source.asked[8:16]} >= {WEB, service(19)}


async def test_a_source_that_never_answers_fails_after_the_limit(bench: Bench, autojump_clock: MockClock) -> None:
    bench.source.delay = 10 * HOUR
    bench.manager.want(WEB, Priority.NOW)
    await trio.sleep(FETCH_TIMEOUT + 0.5)
    assert bench.messages == [CertificateFailed(WEB, "no answer from the certificate source within 60 s")]


async def test_a_certificate_for_somebody_else_is_not_passed_on(bench: Bench, autojump_clock: MockClock) -> None:
    stranger = bench.source.ca.issue(STRANGER, ttl=TTL, now=START)

    async def confused(identity: Identity) -> IssuedCertificate:
        await trio.lowlevel.checkpoint()
        return stranger

    bench.source.fetch = confused  # type: ignore[method-assign]
    [message] = await bench.want(WEB)
    assert isinstance(message, CertificateFailed)
    assert "not spiffe://cluster.local/ns/default/sa/web" in message.why


async def test_forgetting_drops_the_certificate_and_ends_its_rotation(bench: Bench, autojump_clock: MockClock) -> None:
    await bench.want(WEB)
    bench.manager.forget(WEB)
    bench.manager.forget(STRANGER)
    assert bench.messages[1:] == [CertificateForgotten(WEB)]
    assert bench.manager.snapshot() == []
    await trio.sleep(48 * HOUR)
    assert len(bench.source.asked) == 1


async def test_forgetting_while_fetching_frees_the_slot_and_sends_nothing_more(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.source.delay = 5
    for index in range(9):
        bench.manager.want(service(index), Priority.NOW)
        await wait_all_tasks_blocked()
    await trio.sleep(1)
    bench.manager.forget(service(0))
    await trio.sleep(20)
    about = [message for message in bench.messages if message.identity == service(0)]
    assert about == [CertificateForgotten(service(0))]
    assert bench.source.asked[8] == (pytest.approx(1), service(8))


async def test_a_forgotten_identity_can_be_wanted_again(bench: Bench, autojump_clock: MockClock) -> None:
    [first] = await bench.want(WEB)
    bench.manager.forget(WEB)
    [second] = await bench.want(WEB)
    assert isinstance(second, CertificateIssued)
    assert second != first


async def test_the_snapshot_is_ztunnels_and_holds_no_key(bench: Bench, autojump_clock: MockClock) -> None:
    [issued] = await bench.want(WEB)
    assert isinstance(issued, CertificateIssued)
    bench.source.broken = "no"
    await bench.want(Identity("cluster.local", "default", "aaa"))
    bench.source.delay = 30
    bench.manager.want(STRANGER, Priority.NOW)
    failed, web, stranger = bench.manager.snapshot()

    assert failed["identity"] == "spiffe://cluster.local/ns/default/sa/aaa"
    assert failed["state"] == "Unavailable: no (look at the CA)"
    assert stranger == {"identity": str(STRANGER), "state": "Initializing", "certChain": [], "rootCerts": []}
    assert (web["identity"], web["state"]) == (str(WEB), "Available")
    assert base64.b64decode(web["certChain"][0]["pem"]) == issued.chain_pem
    assert base64.b64decode(web["rootCerts"][0]["pem"]) == issued.roots_pem
    assert web["certChain"][0]["expirationTime"] == "2027-01-16T08:00:00Z"
    assert web["certChain"][0]["serialNumber"].isdecimal()
    shown = json.dumps(bench.manager.snapshot())
    assert "PRIVATE" not in shown
    assert base64.b64encode(issued.key_pem).decode() not in shown


async def test_no_key_reaches_the_log(
    bench: Bench, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    [issued] = await bench.want(WEB)
    assert isinstance(issued, CertificateIssued)
    assert "certificate for spiffe://cluster.local/ns/default/sa/web until 2027-01-16T08:00:00Z" in caplog.text
    assert "PRIVATE" not in caplog.text
    assert issued.key_pem.splitlines()[1].decode() not in caplog.text


async def test_a_clock_that_jumps_ahead_is_noticed_within_a_minute(autojump_clock: MockClock) -> None:
    """A machine that slept for 13 hours: trio's timers did not run meanwhile, the clock on the wall did."""
    bench = Bench()
    asleep = 0.0
    bench.manager = CertificateManager(bench.source, bench._send, clock=lambda: clock() + asleep, jitter=lambda: 0.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.manager.run)
        await bench.want(WEB)
        asleep = 13 * HOUR
        await trio.sleep(61)
        nursery.cancel_scope.cancel()
    assert len(bench.source.asked) == 2
