"""The composition root of the control half: everything slow or rare, wired together.

Theory of operation. State goes down (mesh, certificates, pods), reports come up (traffic, answers, wishes), and the
admin ports look at both. The end is orderly and has one order: the workers drain; then the pods are taken down, with
their capture rules (see `pods.manager` for why not earlier); then the links are closed and the last reports heard.
Whatever fails takes the whole half down, and with it the process.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence

import trio

from ztunnel import __version__
from ztunnel.config.settings import Settings, WorkloadInfo
from ztunnel.control import preflight
from ztunnel.control.admin import servers
from ztunnel.control.admin.source import AdminSource, MeshView, PodView
from ztunnel.control.fleet import Fleet
from ztunnel.control.identity.ca import LocalSource as LocalCertificates
from ztunnel.control.identity.ca import MemoryCa
from ztunnel.control.identity.ca_directory import CaDirectory
from ztunnel.control.identity.manager import CertificateManager, CertificateMessage
from ztunnel.control.identity.provider import crypto_provider
from ztunnel.control.mesh.localfile import Mesh, Pod
from ztunnel.control.mesh.source import LocalSource
from ztunnel.control.pods.capture import RuleCapture
from ztunnel.control.pods.enroller import Enroller
from ztunnel.control.pods.manager import PodManager
from ztunnel.control.pods.pod import Origin, PodSpec, dedicated, from_file, recall
from ztunnel.control.reports import Reports
from ztunnel.core.errors import ConfigError, PlatformError
from ztunnel.core.model.capture import CaptureMode
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.workload import Workload
from ztunnel.link.channel import Channel
from ztunnel.link.messages import (
    CertificateFailed,
    CertificateWanted,
    Counters,
    Down,
    EdgeDefined,
    Flows,
    LogFilter,
    OpenConnection,
    PodFailed,
    PodGone,
    PodReady,
    PodRemoved,
    Question,
    Serving,
    StateSynced,
    Up,
)
from ztunnel.linux.redirect.tools import has
from ztunnel.linux.rights import rights
from ztunnel.observe.exposition import Number
from ztunnel.observe.logs import Logs
from ztunnel.observe.metrics import Metrics
from ztunnel.runtime.drain import Drain
from ztunnel.runtime.ready import Ready
from ztunnel.runtime.supervise import Supervisor, open_supervisor

SERVING_TIMEOUT = 5.0
"""Seconds for the workers of an earlier control half to say what they serve."""
CERTIFICATE_PATIENCE = 2.0
"""Seconds that a pod may wait for its first certificate before it is up without."""
FORCED_GRACE = 1.0
"""Seconds for the workers to close everything when the end is now."""

log = logging.getLogger("ztunnel.control")


async def run(
    links: Sequence[Channel[Down, Up]], settings: Settings, *, drain: Drain, ready: Ready, logs: Logs
) -> None:
    """Serve until `drain` is over. Raises ConfigError or PlatformError when the agent cannot start as it is set up."""
    await serve(Fleet(links), settings, drain=drain, ready=ready, logs=logs)


async def serve(
    fleet: Fleet,
    settings: Settings,
    *,
    drain: Drain,
    ready: Ready,
    logs: Logs,
    on_started: Callable[[], None] = lambda: None,
) -> None:
    """`run` for workers that come and go; `on_started` is called once everything that can refuse to start has not."""
    await Control(fleet, settings, drain, ready, logs).run(on_started)


class Control:
    def __init__(self, fleet: Fleet, settings: Settings, drain: Drain, ready: Ready, logs: Logs) -> None:
        self._fleet = fleet
        self._settings = settings
        self._drain = drain
        self._ready = ready
        self._logs = logs
        self._mesh = LocalSource(settings)
        self._authority = certificate_source(settings)
        self._certificates = CertificateManager(self._authority, self._send_certificate)
        self._wanted: dict[Identity, set[int]] = {}
        """Which workers want a certificate: nobody else gets the key."""
        self._pods = PodManager(
            fleet.send,
            RuleCapture(settings),
            equip=self._equip_pod,
            on_gone=self._pod_gone,
            leaves=self._leaves_pods,
        )
        self._metrics = Metrics(version=settings.istio_meta_istio_version)
        self._reports = Reports(self._metrics, settings.log_format)
        self._worker_numbers: dict[str, Number] = {}
        self._metrics.add_gauges(self._gauges)
        self._metrics.add_counters(self._counters)
        self._pods_known = False
        self._may_listen = trio.Event()
        self._state_guard = ready.guard("state manager")
        self._pods_guard = ready.guard("proxy" if settings.dedicated else "workload proxy manager")

    async def run(self, on_started: Callable[[], None] = lambda: None) -> None:
        async with open_supervisor() as carriers:
            carriers.spawn("links", self._listen)
            try:
                async with open_supervisor() as tasks:
                    await self._serve(tasks, on_started)
            finally:
                self._may_listen.set()
                self._fleet.close()

    async def _serve(self, tasks: Supervisor, on_started: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(self._check)
        await tasks.start("certificates", self._certificates.run)
        await tasks.start("pods", self._pods.run)
        self._may_listen.set()
        await tasks.start("admin", servers.serve, self.admin_source())
        if not self._settings.dedicated:
            await tasks.start("enroll socket", self._run_enroller)
        on_started()
        if self._fleet.is_replaced:
            with trio.move_on_after(SERVING_TIMEOUT):  # pods that are served already go on: know them before others
                await self._fleet.wait_serving()
        tasks.spawn("mesh", self._mesh.run, self._send_state, self._take_pods)
        await self._drain.wait_triggered()
        await self._drain_workers()
        tasks.stop()

    def _check(self) -> None:
        """What refuses to start, in a worker thread. Raises ConfigError or PlatformError."""
        preflight.check(self._settings, rights(), has)
        self._mesh.load()
        self._authority.check()

    # ---- reports ----

    async def _listen(self) -> None:
        await self._may_listen.wait()
        try:
            await self._fleet.listen(self._hear, self._worker_lost)
        finally:
            self._pods.disconnect()

    def _hear(self, worker: int, message: Up) -> None:
        match message:
            case Serving():
                self._greet(worker, message)
            case PodReady() | PodFailed() | PodGone():
                self._pods.heard(message)
            case CertificateWanted():
                self._certificate_wanted(worker, message)
            case EdgeDefined() | Counters() | Flows():
                self._reports.hear(worker, message)

    def _greet(self, worker: int, message: Serving) -> None:
        """A worker that comes later, or that was here before us: go on with its pods, and tell it the whole state."""
        for pod in message.pods:
            try:
                self._pods.adopt(*recall(pod))
            except ValueError as error:
                log.error("%s; its connections are closed", error)
                self._fleet.send(PodRemoved(pod.uid))
        if self._fleet.is_replaced:
            self._fleet.tell(worker, LogFilter(self._logs.spec))
            for part in self._mesh.snapshot():
                self._fleet.tell(worker, part)

    def _worker_lost(self, worker: int, uids: list[str]) -> None:
        self._reports.forget(worker)
        for workers in self._wanted.values():
            workers.discard(worker)
        self._pods.lost(uids)

    def _send_certificate(self, message: CertificateMessage) -> None:
        for worker in self._wanted.get(message.identity, ()):
            self._fleet.tell(worker, message)

    def _certificate_wanted(self, worker: int, message: CertificateWanted) -> None:
        """A worker may only have certificates of the pods that are served here, whatever it asks for."""
        identity = message.identity
        if self._pods.serves(identity.namespace, identity.service_account):
            self._wanted.setdefault(identity, set()).add(worker)
            self._certificates.want(identity, message.priority)
        else:
            log.warning("a worker asked for the certificate of %s, which no pod here has", identity)
            self._fleet.tell(worker, CertificateFailed(identity, "no pod of this agent has this identity"))

    # ---- mesh and pods ----

    def _send_state(self, message: Down) -> None:
        self._fleet.broadcast(message)
        if isinstance(message, StateSynced):
            self._state_guard.release()

    async def _take_pods(self, pods: tuple[Pod, ...]) -> None:
        """The pods of the mesh file. Those of the first time keep the agent from being ready until they are up."""
        first = self._ready if not self._pods_known else None
        info = self._settings.proxy_workload_info
        if info is None:
            self._pods.replace(Origin.FILE, map(from_file, pods), first)
        else:
            if pods:
                log.warning("the pods of the mesh file are not served: PROXY_MODE=dedicated serves only %s", info)
            self._warn_of_stranger(info)
            self._pods.replace(Origin.DEDICATED, [dedicated(self._settings, info)], first)
        self._pods_known = True
        self._pods_guard.release()

    def _warn_of_stranger(self, info: WorkloadInfo) -> None:
        workload = self._find_workload(info.namespace, info.name)
        if workload is None or workload.service_account != info.service_account:
            log.warning("%s is no workload of the mesh: its connections are refused until it is", info)

    def _leaves_pods(self) -> bool:
        """When this half ends without having been told to: workers that outlive it serve on."""
        return self._fleet.is_replaced and not self._drain.is_draining

    async def _equip_pod(self, pod: PodSpec) -> None:
        """Its first connection shall find a certificate; but a CA that is away keeps no pod from being up."""
        with trio.move_on_after(CERTIFICATE_PATIENCE):
            for identity in self._identities(pod):
                await self._certificates.wait_answered(identity)

    def _pod_gone(self, pod: PodSpec) -> None:
        """Its key goes with the last pod of an identity."""
        if self._pods.serves(pod.namespace, pod.service_account):
            return
        for identity in self._identities(pod):
            self._certificates.forget(identity)
            del self._wanted[identity]

    def _identities(self, pod: PodSpec) -> list[Identity]:
        """Those of the pod's service account whose certificate a worker has asked for."""
        account = pod.namespace, pod.service_account
        return [each for each in self._wanted if (each.namespace, each.service_account) == account]

    def _find_workload(self, namespace: str, name: str) -> Workload | None:
        for workload in self._mesh.mesh.workloads:
            if (workload.namespace, workload.name) == (namespace, name):
                return workload
        return None

    async def _run_enroller(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Without a socket the agent can do all but enrol, so only one that was asked for is needed."""
        settings = self._settings
        enroller = Enroller(self._pods, CaptureMode(settings.capture_mode), self._find_workload)
        try:
            await enroller.run(settings.enroll_uds, task_status=task_status)
        except PlatformError as error:
            if "enroll_uds" in settings.origins:
                raise
            log.warning("pods cannot be enrolled: %s (%s)", error, error.hint)
            task_status.started()

    # ---- the end ----

    async def _drain_workers(self) -> None:
        """Until nothing is open; once the drain is forced, no longer than it takes to close everything."""
        self._pods.stop_proving()
        log.info("draining (%s): open connections have %.1f s", self._drain.why, self._drain.seconds_left())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hurry, nursery.cancel_scope)
            await self._fleet.drain(self._drain.seconds_left())
            nursery.cancel_scope.cancel()
        log.info("drained; %d connections were closed before their end", self._fleet.cut)

    async def _hurry(self, drained: trio.CancelScope) -> None:
        await self._drain.wait_forced()
        with trio.move_on_after(FORCED_GRACE):
            await self._fleet.drain(0)
        drained.cancel()

    # ---- what operators see ----

    def admin_source(self) -> AdminSource:
        return AdminSource(
            settings=self._settings,
            version=__version__,
            crypto_provider=crypto_provider(),
            proxy_args=" ".join(sys.argv[1:]),
            mesh=self._view,
            static=self._static,
            certificates=self._certificates.snapshot,
            pods=self._pod_views,
            connections=self._connections,
            metrics=self._exposition,
            pending=lambda: self._ready.pending,
            log_filter=lambda: self._logs.spec,
            change_log_filter=self._change_log_filter,
            quit=lambda: self._drain.trigger("quitquitquit", self._settings.drain_deadline),
        )

    async def _view(self) -> MeshView:
        return _view_of(self._mesh.mesh)

    async def _static(self) -> MeshView:
        """A file that is refused now is shown as it was when it was not."""
        try:
            return _view_of(await trio.to_thread.run_sync(LocalSource(self._settings).load))
        except ConfigError:
            return _view_of(self._mesh.mesh)

    def _pod_views(self) -> list[PodView]:
        return [
            PodView(uid=spec.uid, name=spec.name, namespace=spec.namespace, service_account=spec.service_account, up=up)
            for spec, _, up, _ in self._pods.statuses()
        ]

    async def _connections(self) -> list[OpenConnection]:
        answers = await self._fleet.ask(Question.CONNECTIONS)
        return [connection for number in sorted(answers) for connection in answers[number]]

    async def _exposition(self, as_openmetrics: bool) -> bytes:
        for worker, counters in (await self._fleet.ask(Question.COUNTERS)).items():
            self._reports.count(worker, counters)
        numbers: dict[str, Number] = {}
        for status in (await self._fleet.ask(Question.STATUS)).values():
            for name, number in status.items():
                numbers[f"worker_{name}"] = numbers.get(f"worker_{name}", 0) + number
        self._worker_numbers = numbers
        return self._metrics.exposition(as_openmetrics=as_openmetrics)

    def _gauges(self) -> dict[str, Number]:
        statuses = self._pods.statuses()
        mesh = self._mesh.mesh
        return {
            "pods": len(statuses),
            "pods_up": sum(status.up for status in statuses),
            "certificates": len(self._wanted),
            "workloads": len(mesh.workloads),
            "services": len(mesh.services),
            "policies": len(mesh.policies),
            **self._worker_numbers,
        }

    def _counters(self) -> dict[str, Number]:
        reloads = self._mesh.statistics()
        return {
            "mesh_reloads": reloads.reloads_ok,
            "mesh_reloads_refused": reloads.reloads_failed,
            "flows_lost": self._fleet.lost_flows,
            "log_lines_dropped": self._logs.dropped,
        }

    def _change_log_filter(self, spec: str, reset: bool) -> str:
        now = self._logs.change(spec, reset=reset)
        self._fleet.broadcast(LogFilter(now))
        return now


def certificate_source(settings: Settings) -> LocalCertificates:
    """The embedded CA: of LOCAL_CA_PATH, or one in memory whose root ends with this process."""
    if settings.local_ca_path:
        return LocalCertificates(CaDirectory(settings.local_ca_path).open, ttl=settings.secret_ttl, clock=time.time)
    authority = MemoryCa(now=time.time())
    log.info("certificates come from a CA in memory: only this agent trusts them; LOCAL_CA_PATH names a shared one")
    return LocalCertificates(lambda now: authority, ttl=settings.secret_ttl, clock=time.time)


def _view_of(mesh: Mesh) -> MeshView:
    return MeshView(workloads=mesh.workloads, services=mesh.services, policies=mesh.policies)
