"""Verdicts are remembered while they are true, and told where that was asked for."""

from __future__ import annotations

import logging

import pytest
from mesh_samples import workload

from ztunnel.core.model.address import Address
from ztunnel.core.model.connection import Connection
from ztunnel.core.model.identity import Identity
from ztunnel.core.model.policy import Action, Match, MatchKind, Policy, PolicyScope, StringMatch
from ztunnel.link.messages import StateSlice
from ztunnel.worker.proxy.authorize import Authorizer
from ztunnel.worker.state.store import Store

SERVER = workload("server", "10.0.0.2")
CLIENT = Identity("cluster.local", "demo", "client")
CALL = Connection(CLIENT, Address("10.0.0.1", 4000), Address("10.0.0.2", 80))


def deny(*, dry_run: bool = False) -> Policy:
    match = Match(principals=(StringMatch(MatchKind.EXACT, CLIENT.principal),))
    return Policy(
        name="no",
        namespace="demo",
        scope=PolicyScope.NAMESPACE,
        action=Action.DENY,
        rules=(((match,),),),
        dry_run=dry_run,
    )


@pytest.fixture
def store() -> Store:
    store = Store()
    store.apply(StateSlice(workloads=(SERVER,)))
    return store


def test_a_policy_that_comes_or_goes_changes_the_verdict(store: Store) -> None:
    authorizer = Authorizer(store, logging.DEBUG)
    assert authorizer.check(SERVER, CALL).allowed
    store.apply(StateSlice(policies=(deny(),)))
    assert not authorizer.check(SERVER, CALL).allowed
    store.apply(StateSlice(removed_policies=("demo/no",)))
    assert authorizer.check(SERVER, CALL).allowed


def test_another_caller_gets_a_verdict_of_its_own(store: Store) -> None:
    store.apply(StateSlice(policies=(deny(),)))
    authorizer = Authorizer(store, logging.DEBUG)
    assert not authorizer.check(SERVER, CALL).allowed
    other = Connection(Identity("cluster.local", "demo", "other"), CALL.source, CALL.destination)
    assert authorizer.check(SERVER, other).allowed
    assert authorizer.check(SERVER, Connection(None, CALL.source, CALL.destination)).allowed


def test_a_policy_on_trial_is_told_and_not_enforced(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.apply(StateSlice(policies=(deny(dry_run=True),)))
    caplog.set_level(logging.INFO, "ztunnel.worker.proxy.authorize")
    assert Authorizer(store, logging.INFO).check(SERVER, CALL).allowed
    assert any("dry run" in record.message and "demo/no" in record.message for record in caplog.records)
