"""The mesh as this worker knows it: indexed once, updated in place, asked by every connection.

`apply` costs O(what changed), a look-up O(1) in everything the answer does not contain. Nothing here waits or
knows where state comes from; who wants to hear of changes subscribes.

Endpoints are not a property of services: they are derived from the workloads that name a service and kept under
the service's key, whether the service is known yet or not. So the order of arrival does not matter, and what is
shown of them (only healthy ones, or all) is decided when they are asked for.
"""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from ztunnel.core.decide.rbac import CompiledPolicy, compile_policy
from ztunnel.core.model.address import NamespacedHostname
from ztunnel.core.model.policy import Policy, PolicyScope
from ztunnel.core.model.service import Endpoint, HealthPolicy, Service
from ztunnel.core.model.workload import Health, NetworkMode, Protocol, Workload
from ztunnel.link.messages import StateSlice
from ztunnel.worker.state.index import BestFirst, PrefixTable, best_visible, service_preference

log = logging.getLogger("ztunnel.worker.state")

Subscriber = Callable[[StateSlice], None]


class _Endpoints(NamedTuple):
    """What stands behind one service key: workload uid to endpoint, by health."""

    healthy: dict[str, Endpoint]
    unhealthy: dict[str, Endpoint]


class _Applicable(NamedTuple):
    """The cached answer for one workload; valid while the workload is this very object."""

    workload: Workload
    compiled: tuple[CompiledPolicy, ...]
    unknown: tuple[str, ...]


class _Stale(NamedTuple):
    """Keys that a resync has not told again yet."""

    workloads: set[str]
    services: set[str]
    policies: set[str]

    def told(self, change: StateSlice) -> None:
        self.workloads.difference_update(workload.uid for workload in change.workloads)
        self.services.difference_update(str(service.key) for service in change.services)
        self.policies.difference_update(policy.key for policy in change.policies)


class Store:
    """Implements `core.decide.view.View`. Not thread-safe: it belongs to the worker's loop thread.

    Mappings and collections it returns are live; keep none of them over the next `apply`.
    """

    def __init__(self) -> None:
        self.revision = 0
        """Grows with every applied slice."""
        self._workloads: dict[str, Workload] = {}
        self._by_address: BestFirst[tuple[str, str], Workload] = BestFirst(_workload_preference)
        self._by_hostname: BestFirst[tuple[str, str], Workload] = BestFirst(_workload_preference)
        self._by_pod: BestFirst[tuple[str, str, str], Workload] = BestFirst(_workload_preference)
        self._services: dict[tuple[str, str], Service] = {}
        self._by_vip: BestFirst[tuple[str, str], Service] = BestFirst(service_preference)
        self._by_prefix = PrefixTable()
        self._by_name: BestFirst[str, Service] = BestFirst(service_preference)
        self._endpoints: dict[tuple[str, str], _Endpoints] = {}
        self._policies: dict[str, CompiledPolicy] = {}
        self._scoped: BestFirst[str | None, CompiledPolicy] = BestFirst(lambda policy: policy.key)
        """Policies without a selector by namespace; None: of the whole mesh."""
        self._applicable: dict[str, _Applicable] = {}
        self._subscribers: list[Subscriber] = []
        self._stale: _Stale | None = None

    # ---- changes ----

    def begin_resync(self) -> None:
        """From here to `end_resync` the slices are the whole state. Nothing is forgotten before that."""
        self._stale = _Stale(
            set(self._workloads), {f"{namespace}/{name}" for namespace, name in self._services}, set(self._policies)
        )

    def end_resync(self) -> StateSlice | None:
        """What was not told again is gone: the slice that removes it, applied; None without a resync."""
        stale, self._stale = self._stale, None
        if stale is None:
            return None
        change = StateSlice(
            removed_workloads=tuple(stale.workloads),
            removed_services=tuple(stale.services),
            removed_policies=tuple(stale.policies),
        )
        self.apply(change)
        return change

    def apply(self, change: StateSlice) -> None:
        """Upserts, then removals, then tells the subscribers. Removing what is not there is no error."""
        if self._stale is not None:
            self._stale.told(change)
        for service in change.services:
            self._drop_service((service.namespace, service.hostname))
            self._add_service(service)
        for policy in change.policies:
            self._drop_policy(policy.key)
            self._add_policy(policy)
        for workload in change.workloads:
            self._drop_workload(workload.uid)
            self._add_workload(workload)
        for uid in change.removed_workloads:
            self._drop_workload(uid)
        for name in change.removed_services:
            self._drop_service(_service_key(name))
        for name in change.removed_policies:
            self._drop_policy(name)
        if change.policies or change.removed_policies:
            self._applicable.clear()
        self.revision += 1
        for subscriber in tuple(self._subscribers):
            subscriber(change)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """`subscriber(slice)` is called after each applied slice, until the returned function is called."""
        self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

        return unsubscribe

    # ---- look-ups: the View ----

    def workload(self, uid: str) -> Workload | None:
        return self._workloads.get(uid)

    def workload_at(self, network: str, ip: str) -> Workload | None:
        return self._by_address.first((network, ip))

    def workload_named(self, namespace: str, hostname: str) -> Workload | None:
        return self._by_hostname.first((namespace, hostname))

    def service_at(self, network: str, ip: str, client_namespace: str) -> Service | None:
        exact = best_visible(self._by_vip.get((network, ip)), client_namespace)
        return exact or self._by_prefix.find(network, ip, client_namespace)

    def service_named(self, hostname: str, client_namespace: str) -> Service | None:
        own = self._services.get((client_namespace, hostname))
        return own or best_visible(self._by_name.get(hostname), client_namespace)

    def service(self, namespace: str, hostname: str) -> Service | None:
        return self._services.get((namespace, hostname))

    def endpoints(self, service: Service) -> Mapping[str, Endpoint]:
        group = self._endpoints.get((service.namespace, service.hostname))
        if group is None:
            return {}
        if group.unhealthy and service.load_balancer.health_policy is HealthPolicy.ALLOW_ALL:
            return ChainMap(group.healthy, group.unhealthy)
        return group.healthy

    def policies_for(self, workload: Workload) -> tuple[Sequence[Policy], Sequence[str]]:
        compiled, unknown = self.compiled_for(workload)
        return tuple(each.policy for each in compiled), unknown

    # ---- look-ups of the worker ----

    def compiled_for(self, workload: Workload) -> tuple[tuple[CompiledPolicy, ...], tuple[str, ...]]:
        """The first two arguments of `rbac.evaluate` for connections to this workload; computed once."""
        cached = self._applicable.get(workload.uid)
        if cached is None or cached.workload is not workload:
            cached = self._find_applicable(workload)
            if self._workloads.get(workload.uid) is workload:
                self._applicable[workload.uid] = cached
        return cached.compiled, cached.unknown

    def workload_of(self, namespace: str, name: str, service_account: str) -> Workload | None:
        """The workload of a pod that the node's enroller named."""
        return self._by_pod.first((namespace, name, service_account))

    def workloads(self) -> Collection[Workload]:
        return self._workloads.values()

    def services(self) -> Collection[Service]:
        return self._services.values()

    def policies(self) -> Collection[CompiledPolicy]:
        return self._policies.values()

    # ---- keeping the indexes ----

    def _add_workload(self, workload: Workload) -> None:
        self._workloads[workload.uid] = workload
        if workload.network_mode is not NetworkMode.HOST_NETWORK:
            for ip in workload.workload_ips:
                self._by_address.add((workload.network, ip), workload)
        if workload.hostname:
            self._by_hostname.add((workload.namespace, workload.hostname), workload)
        self._by_pod.add((workload.namespace, workload.name, workload.service_account), workload)
        for name, ports in workload.services.items():
            key = _service_key(name)
            group = self._endpoints.get(key)
            if group is None:
                group = self._endpoints[key] = _Endpoints({}, {})
            members = group.healthy if workload.status is Health.HEALTHY else group.unhealthy
            members[workload.uid] = Endpoint(workload.uid, ports, workload.status)

    def _drop_workload(self, uid: str) -> None:
        workload = self._workloads.pop(uid, None)
        if workload is None:
            return
        self._applicable.pop(uid, None)
        if workload.network_mode is not NetworkMode.HOST_NETWORK:
            for ip in workload.workload_ips:
                self._by_address.remove((workload.network, ip), workload)
        if workload.hostname:
            self._by_hostname.remove((workload.namespace, workload.hostname), workload)
        self._by_pod.remove((workload.namespace, workload.name, workload.service_account), workload)
        for name in workload.services:
            key = _service_key(name)
            group = self._endpoints.get(key)
            if group is None:
                continue
            members = group.healthy if workload.status is Health.HEALTHY else group.unhealthy
            members.pop(uid, None)
            if not group.healthy and not group.unhealthy:
                del self._endpoints[key]

    def _add_service(self, service: Service) -> None:
        self._services[service.namespace, service.hostname] = service
        self._by_name.add(service.hostname, service)
        for vip in service.vips:
            self._by_vip.add(vip, service)
        for prefix in service.cidr_vips:
            self._by_prefix.add(prefix, service)

    def _drop_service(self, key: tuple[str, str]) -> None:
        service = self._services.pop(key, None)
        if service is None:
            return
        self._by_name.remove(service.hostname, service)
        for vip in service.vips:
            self._by_vip.remove(vip, service)
        for prefix in service.cidr_vips:
            self._by_prefix.remove(prefix, service)

    def _add_policy(self, policy: Policy) -> None:
        compiled = compile_policy(policy)
        for problem in compiled.problems:
            log.warning("policy %s: %s", compiled.key, problem)
        self._policies[compiled.key] = compiled
        if policy.scope is not PolicyScope.WORKLOAD_SELECTOR:
            self._scoped.add(_scope_of(policy), compiled)

    def _drop_policy(self, key: str) -> None:
        compiled = self._policies.pop(key, None)
        if compiled is not None and compiled.policy.scope is not PolicyScope.WORKLOAD_SELECTOR:
            self._scoped.remove(_scope_of(compiled.policy), compiled)

    def _find_applicable(self, workload: Workload) -> _Applicable:
        """Those of the whole mesh, of the namespace, and the listed ones; ordered by key, each once."""
        found = {policy.key: policy for policy in self._scoped.get(None)}
        found.update((policy.key, policy) for policy in self._scoped.get(workload.namespace))
        unknown = []
        for name in workload.authorization_policies:
            policy = self._policies.get(name)
            if policy is None:
                unknown.append(name)
            else:
                found[name] = policy
        return _Applicable(workload, tuple(found[key] for key in sorted(found)), tuple(unknown))


def _workload_preference(workload: Workload) -> tuple[bool, bool, str]:
    """Of workloads that share an address: pods first, then those that speak HBONE."""
    return "//Pod/" not in workload.uid, workload.protocol is not Protocol.HBONE, workload.uid


def _service_key(name: str) -> tuple[str, str]:
    """`namespace/hostname` in parts; a name without a namespace is a service of none."""
    namespace, _, hostname = name.rpartition("/")
    return NamespacedHostname(namespace, hostname)


def _scope_of(policy: Policy) -> str | None:
    return None if policy.scope is PolicyScope.GLOBAL else policy.namespace
