"""Look-up tables that several things may share a key of: best one first, changed in place.

Ties are broken by the things' own keys, never by arrival, so that every agent and every restart answers alike.
Entries are tuples because almost all hold one thing; a key without things is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from ipaddress import ip_address
from typing import Any, Generic, TypeVar

from ztunnel.core.model.service import CidrVip, Service, Visibility

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BestFirst(Generic[K, V]):
    """Key to the things that share it, sorted by `preference` (lowest first). O(things that share the key)."""

    def __init__(self, preference: Callable[[V], Any]) -> None:
        self._preference = preference
        self._entries: dict[K, tuple[V, ...]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> tuple[V, ...]:
        return self._entries.get(key, ())

    def first(self, key: K) -> V | None:
        entry = self._entries.get(key)
        return entry[0] if entry else None

    def add(self, key: K, thing: V) -> bool:
        """True when the key is new. Adding twice is adding once."""
        entry = self._entries.get(key)
        if entry is None:
            self._entries[key] = (thing,)
            return True
        if not any(other is thing for other in entry):
            self._entries[key] = tuple(sorted((*entry, thing), key=self._preference))
        return False

    def remove(self, key: K, thing: V) -> bool:
        """True when the key is gone with its last thing."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        left = tuple(other for other in entry if other is not thing)
        if left:
            self._entries[key] = left
            return False
        del self._entries[key]
        return True


def service_preference(service: Service) -> tuple[bool, str, str]:
    """Canonical services first; a client's own namespace comes before that, see `best_visible`."""
    return not service.canonical, service.namespace, service.hostname


def best_visible(services: tuple[Service, ...], client_namespace: str) -> Service | None:
    """The first in the client's namespace, else the first that everybody may see."""
    public = None
    for service in services:
        if service.namespace == client_namespace:
            return service
        if public is None and service.visibility is Visibility.PUBLIC:
            public = service
    return public


class PrefixTable:
    """Services by the prefixes that are their virtual addresses.

    A look-up masks the address once for each distinct prefix length of its network and family, however many
    prefixes there are.
    """

    def __init__(self) -> None:
        self._services: BestFirst[tuple[str, int, int, int], Service] = BestFirst(service_preference)
        self._lengths: dict[tuple[str, int], dict[int, int]] = {}
        """(network, IP version) to {prefix length: number of prefixes}, longest first."""

    def __len__(self) -> int:
        return len(self._services)

    def find(self, network: str, ip: str, client_namespace: str) -> Service | None:
        """The longest prefix in the client's own namespace, else the longest that everybody may see."""
        lengths = self._lengths.get((network, 6 if ":" in ip else 4))
        if not lengths:
            return None
        address = ip_address(ip)
        number = int(address)
        public = None
        for length in lengths:
            shift = address.max_prefixlen - length
            candidates = self._services.get((network, address.version, length, number >> shift))
            found = best_visible(candidates, client_namespace)
            if found is not None:
                if found.namespace == client_namespace:
                    return found
                public = public or found
        return public

    def add(self, vip: CidrVip, service: Service) -> None:
        key = _prefix_key(vip)
        if self._services.add(key, service):
            counts = dict(self._lengths.get(key[:2], ()))
            counts[vip.length] = counts.get(vip.length, 0) + 1
            self._lengths[key[:2]] = dict(sorted(counts.items(), reverse=True))

    def remove(self, vip: CidrVip, service: Service) -> None:
        key = _prefix_key(vip)
        if self._services.remove(key, service):
            counts = self._lengths[key[:2]]
            counts[vip.length] -= 1
            if not counts[vip.length]:
                del counts[vip.length]
            if not counts:
                del self._lengths[key[:2]]


def _prefix_key(vip: CidrVip) -> tuple[str, int, int, int]:
    address = ip_address(vip.ip)
    return vip.network, address.version, vip.length, int(address) >> (address.max_prefixlen - vip.length)
