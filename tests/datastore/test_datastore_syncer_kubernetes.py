"""The syncer on a real kube-apiserver, which is killed, stopped, and loses its history under it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.aio import eventually, run
from tests.support.kubernetes import ApiServer
from tests.support.replay import Replay, consuming
from tortie.core.backoff import Backoff
from tortie.core.errors import Unauthorized
from tortie.datastore import syncer as syncer_module
from tortie.datastore.backend import Listed
from tortie.datastore.keys import Listing, ResourceKey, ResourceList, WorkloadStatusList
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.kubernetes.http import Timing
from tortie.datastore.syncer import Syncer, SyncStatus
from tortie.lab.apiserver import CONTROLLERS_TOKEN

pytestmark = pytest.mark.kernel

POOLS = ResourceList("IPPool")
QUICK = Timing(dial=5.0, call=5.0, quiet=0.5)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncer_module, "_RETRY", Backoff(first=0.05, cap=0.2))


@asynccontextmanager
async def following(server: ApiServer, *listings: Listing) -> AsyncIterator[tuple[Syncer, Replay]]:
    backend = KubernetesBackend(server.config(), QUICK)
    syncer, replay = Syncer(backend, listings), Replay()
    try:
        async with consuming(syncer, replay):
            yield syncer, replay
    finally:
        await backend.close()


def put_pool(server: ApiServer, name: str, mark: int) -> None:
    server.put_custom("ippools", "IPPool", name, {"labels": {"mark": str(mark)}}, {"spec": {}})


def delete_pool(server: ApiServer, name: str) -> None:
    server.etcd.delete(f"/registry/crd.projectcalico.org/ippools/{name}")


def marks(replay: Replay) -> dict[str, str]:
    return {value.name: value.labels["mark"] for value in replay.state.values()}


def test_a_day_in_the_life_of_a_syncer(apiserver: ApiServer) -> None:
    async def scenario() -> None:
        put_pool(apiserver, "a", 0)
        put_pool(apiserver, "b", 0)
        async with following(apiserver, POOLS) as (syncer, replay):
            assert marks(replay) == {"a": "0", "b": "0"}
            put_pool(apiserver, "a", 1)
            put_pool(apiserver, "c", 2)
            delete_pool(apiserver, "b")
            await eventually(lambda: marks(replay) == {"a": "1", "c": "2"})

            os.kill(apiserver.pid, signal.SIGSTOP)  # nothing is refused, nothing is answered
            try:
                await eventually(syncer.problems)
            finally:
                os.kill(apiserver.pid, signal.SIGCONT)
            put_pool(apiserver, "d", 3)
            await eventually(lambda: "d" in marks(replay) and not syncer.problems())

            apiserver.stop_server()
            await eventually(syncer.problems)
            assert replay.status is SyncStatus.IN_SYNC  # and goes on with what it has
            delete_pool(apiserver, "a")
            put_pool(apiserver, "c", 4)
            apiserver.etcd.compact()
            apiserver.start_server()  # it does not know what happened meanwhile: 410
            await eventually(lambda: marks(replay) == {"c": "4", "d": "3"})
            await eventually(lambda: not syncer.problems())

    run(scenario(), 550)


def test_listings_of_two_collections_and_of_none(apiserver: ApiServer) -> None:
    profiles, policies = ResourceList("Profile"), ResourceList("NetworkPolicy")

    def ask(method: str, path: str, body: Any = None) -> Any:
        return asyncio.to_thread(apiserver.ask, method, path, body)

    async def scenario() -> None:
        listings = (profiles, policies, ResourceList("GlobalNetworkPolicy"), ResourceList("WorkloadEndpoint"))
        nothing = ResourceList("LiveMigration"), WorkloadStatusList("n1")  # no KubeVirt; no place for them
        async with following(apiserver, *listings, *nothing) as (syncer, replay):
            await ask("POST", "/api/v1/namespaces", {"metadata": {"name": "shop", "labels": {"a": "b"}}})
            accounts = "/api/v1/namespaces/shop/serviceaccounts"
            await ask("POST", accounts, {"metadata": {"name": "web"}})
            kns, ksa = ResourceKey("Profile", "kns.shop"), ResourceKey("Profile", "ksa.shop.web")
            await eventually(lambda: {kns, ksa} <= replay.state.keys())
            assert replay.state[kns].spec.labelsToApply["pcns.a"] == "b"
            await ask("DELETE", f"{accounts}/web")
            await eventually(lambda: ksa not in replay.state)

            native = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
            spec = {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}
            await ask("POST", native, {"metadata": {"name": "web"}, "spec": spec})
            ours = {"metadata": {"name": "mine"}, "spec": {"selector": "all()"}, "kind": "NetworkPolicy",
                    "apiVersion": "crd.projectcalico.org/v1"}  # fmt: skip
            await ask("POST", "/apis/crd.projectcalico.org/v1/namespaces/shop/networkpolicies", ours)
            knp = ResourceKey("NetworkPolicy", "knp.default.web", "shop")
            mine = ResourceKey("NetworkPolicy", "mine", "shop")
            await eventually(lambda: {knp, mine} <= replay.state.keys())
            assert (
                replay.state[knp].spec.selector == "projectcalico.org/orchestrator == 'k8s' && app == 'web'"
            )

            pods = "/api/v1/namespaces/shop/pods"
            pod = {"metadata": {"name": "web-0"},
                   "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]}}  # fmt: skip
            await ask("POST", pods, pod)
            wep = ResourceKey("WorkloadEndpoint", "n1-k8s-web--0-eth0", "shop")
            await eventually(lambda: wep in replay.state)
            await ask("DELETE", f"{pods}/web-0", {"gracePeriodSeconds": 0})
            await eventually(lambda: wep not in replay.state)
            await eventually(lambda: not syncer.problems())

    run(scenario(), 550)


def test_migrations_are_followed_from_when_kubevirt_is_there(
    apiserver: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tortie.datastore.kubernetes.listing._ABSENT_POLL", 0.1)
    group, plural = "kubevirt.io", "virtualmachineinstancemigrations"
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    kind = "VirtualMachineInstanceMigration"
    names = {"kind": kind, "plural": plural, "singular": kind.lower()}
    spec = {"group": group, "scope": "Namespaced", "names": names, "versions": [version]}
    definition = {"metadata": {"name": f"{plural}.{group}"}, "spec": spec}
    where = f"/apis/{group}/v1/namespaces/default/{plural}"
    move = {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": "m"},
            "spec": {"vmiName": "vm"}, "status": {"phase": "Scheduling"}}  # fmt: skip
    key = ResourceKey("LiveMigration", "m", "default")

    def ask(method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        return asyncio.to_thread(apiserver.ask, method, path, body, kind)

    def taken(method: str, path: str, body: Any = None) -> bool:
        try:
            apiserver.ask(method, path, body)
        except RuntimeError:
            return False
        return True

    async def without_role() -> Listed:
        """What one is told whose role does not name them."""
        backend = KubernetesBackend(apiserver.config(k8sAPIToken=CONTROLLERS_TOKEN))
        try:
            return await backend.list(ResourceList("LiveMigration"))
        finally:
            await backend.close()

    async def scenario() -> None:
        assert (await without_role()).items == []  # where there are none an older role will do
        async with following(apiserver, ResourceList("LiveMigration")) as (syncer, replay):
            assert replay.in_sync
            await ask("POST", definitions, definition)
            try:
                await eventually(lambda: taken("POST", where, move))
                await eventually(lambda: key in replay.state)
                await eventually(lambda: taken("GET", f"/apis/{group}"))
                with pytest.raises(Unauthorized):
                    await without_role()
                uid = replay.state[key].metadata.uid
                assert f"== '{uid}'" in replay.state[key].spec.target.selector
                done = {"status": {"phase": "Succeeded"}}
                await ask("PATCH", f"{where}/m", done, "application/merge-patch+json")
                await eventually(lambda: key not in replay.state)
                await eventually(lambda: not syncer.problems())
            finally:
                await ask("DELETE", f"{definitions}/{plural}.{group}")
                await eventually(lambda: not taken("GET", where))

    run(scenario(), 550)
