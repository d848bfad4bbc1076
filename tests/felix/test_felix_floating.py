"""Floating addresses where the Kubernetes API is the datastore: a pod's annotation becomes NAT, live."""

import asyncio
from typing import Any

import pytest

from tests.felix.test_felix_paths import writer
from tests.support.aio import eventually, run
from tests.support.kubernetes import ApiServer
from tortie.datastore.keys import ResourceList
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.syncer import Syncer
from tortie.felix.calc.graph import Calculation
from tortie.felix.config import Sources, resolve
from tortie.felix.rules import ir, names

pytestmark = pytest.mark.kernel

_PODS = "/api/v1/namespaces/default/pods"
_MERGE = "application/merge-patch+json"
_BOTH = dict.fromkeys(("198.51.100.1", "198.51.100.2"), "10.65.0.1")
_DEADLINE = 60.0  # seconds; an edit arrives at once, unless the machine is busy


class Felix:
    """From the datastore to the chains; what the kernel makes of them is tested in test_felix_limits.py."""

    def __init__(self) -> None:
        config, _ = resolve(Sources("node1", {"FELIX_FLOATINGIPS": "Enabled"}))
        self._calculation, self._tables = Calculation(config.inputs()), writer(4)
        self._tables.start(self._calculation.state)

    async def follow(self, syncer: Syncer) -> None:
        async for batch in syncer.batches():
            for update in batch.updates:
                self._calculation.update(update)
            if touched := self._calculation.flush():
                self._tables.update(self._calculation.state, touched)

    def pairs(self) -> dict[str, str]:
        """External -> internal address, as the rules for incoming connections say; both kinds must agree."""
        rules = self._tables.ruleset()
        inward, outward = (rules[ir.NAT, name] for name in (names.FLOATING_DNAT, names.FLOATING_SNAT))
        assert isinstance(inward, ir.Chain) and isinstance(outward, ir.Chain)
        found = {_net(rule): rule.action.address for rule in inward.rules if isinstance(rule.action, ir.Dnat)}
        backwards = {_net(rule) for rule in outward.rules}
        assert backwards == {f"{internal}/32" for internal in found.values()}
        return {external.removesuffix("/32"): internal for external, internal in found.items()}


def _net(rule: ir.Rule) -> str:
    return next(match.cidr for match in rule.matches if isinstance(match, ir.Net))


def test_annotations_are_edited_live(apiserver: ApiServer) -> None:
    def ask(method: str, path: str, body: Any, kind: str = "application/json") -> Any:
        return asyncio.to_thread(apiserver.ask, method, path, body, kind)

    def wish(floating: str | None) -> Any:
        body = {"metadata": {"annotations": {"cni.projectcalico.org/floatingIPs": floating}}}
        return ask("PATCH", f"{_PODS}/web", body, _MERGE)

    async def scenario() -> None:
        backend, felix = KubernetesBackend(apiserver.config()), Felix()
        following = asyncio.create_task(felix.follow(Syncer(backend, [ResourceList("WorkloadEndpoint")])))
        try:
            spec = {"nodeName": "node1", "containers": [{"name": "c", "image": "x"}]}
            address = {"cni.projectcalico.org/podIP": "10.65.0.1/32"}
            await ask("POST", _PODS, {"metadata": {"name": "web", "annotations": address}, "spec": spec})
            for text, pairs in (
                ('["198.51.100.1"]', {"198.51.100.1": "10.65.0.1"}),
                ('["198.51.100.1", "198.51.100.2", "2001:db8::1"]', _BOTH),
                ('["198.51.100.2"]', {"198.51.100.2": "10.65.0.1"}),
                (None, {}),
                ('["198.51.100.3"]', {"198.51.100.3": "10.65.0.1"}),
                ('["198.51.100.3"', {"198.51.100.3": "10.65.0.1"}),  # makes no sense, changes nothing
                ('["198.51.100.4"]', {"198.51.100.4": "10.65.0.1"}),
            ):
                await wish(text)
                await eventually(lambda: felix.pairs() == pairs or following.done(), _DEADLINE)  # noqa: B023
                assert felix.pairs() == pairs
            await ask("DELETE", f"{_PODS}/web", {"gracePeriodSeconds": 0})
            await eventually(lambda: felix.pairs() == {} or following.done(), _DEADLINE)
            assert not following.done()
        finally:
            following.cancel()
            await asyncio.wait([following])
            await backend.close()

    run(scenario(), 180)
