"""L4 authorization policies (reference: istio pkg/workloadapi/security/authorization.proto).

A policy is an OR of rules, a rule an AND of clauses, a clause an OR of matches, a match an AND over attribute
kinds. Evaluation is `core.decide.rbac`.
"""

from __future__ import annotations

from enum import Enum

import msgspec


class PolicyScope(Enum):
    GLOBAL = "Global"
    NAMESPACE = "Namespace"
    WORKLOAD_SELECTOR = "WorkloadSelector"


class Action(Enum):
    ALLOW = "Allow"
    DENY = "Deny"


class MatchKind(Enum):
    EXACT = "Exact"
    PREFIX = "Prefix"
    SUFFIX = "Suffix"
    PRESENCE = "Presence"


class StringMatch(msgspec.Struct, frozen=True, gc=False):
    kind: MatchKind
    value: str = ""


class ServiceAccountMatch(msgspec.Struct, frozen=True, gc=False):
    namespace: str
    service_account: str


class Match(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Within a kind: the positive list is an OR, the `not_` list must have no hit. All empty never matches."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()
    source_ips: tuple[str, ...] = ()
    """CIDR text, e.g. `10.0.0.0/8`; validated where it was decoded."""
    not_source_ips: tuple[str, ...] = ()
    destination_ips: tuple[str, ...] = ()
    not_destination_ips: tuple[str, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()


class Policy(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    name: str
    namespace: str
    scope: PolicyScope
    action: Action
    rules: tuple[tuple[tuple[Match, ...], ...], ...] = ()
    dry_run: bool = False

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"
