"""The whole process on a real etcd beside a real kube-apiserver: what Kubernetes says becomes so in etcd."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.support.aio import eventually, run
from tests.support.etcd import Etcd, free_port
from tests.support.kubernetes import ApiServer
from tortie.controllers import health
from tortie.controllers.run import Process
from tortie.core.errors import ResourceDoesNotExist
from tortie.core.tasks import cancel
from tortie.datastore.client import Client
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcd import EtcdBackend
from tortie.datastore.types.cluster import KubeControllersConfiguration
from tortie.datastore.types.endpoint import HostEndpoint
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec, OrchRef
from tortie.datastore.types.policy import NetworkPolicy, Profile
from tortie.ipam.allocator import Allocator
from tortie.ipam.requests import AutoAssign

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("log_level_stays")]

CORE = "/api/v1"
POD = {"containers": [{"name": "c", "image": "x"}]}


@asynccontextmanager
async def process(etcd: Etcd, api: ApiServer, folder: Path, **env: str) -> AsyncIterator[Client]:
    """The controllers as they run in a cluster with etcd, and a client of the same etcd."""
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(_kubeconfig(api)))
    given = {
        "ETCD_ENDPOINTS": etcd.endpoint,
        "KUBECONFIG": str(kubeconfig),
        "AUTO_HOST_ENDPOINTS": "enabled",
        **env,
    }
    client = Client(EtcdBackend(DatastoreConfig(etcdEndpoints=(etcd.endpoint,))))
    started = Process(given, str(folder / "status" / "status.json"))
    running = asyncio.create_task(_as_process(started))
    try:
        yield client
    finally:
        await cancel([running])
        await client.close()


async def _as_process(started: Process) -> None:
    await started.run(0)


def _kubeconfig(api: ApiServer) -> Mapping[str, Any]:
    config = api.config()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [
            {"name": "x", "cluster": {"server": api.url, "certificate-authority": config.k8sCAFile}}
        ],
        "users": [{"name": "x", "user": {"token": config.k8sAPIToken}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }


async def ask(api: ApiServer, *words: Any) -> Any:
    return await asyncio.to_thread(api.ask, *words)


def test_what_kubernetes_says_becomes_so_in_etcd(etcd: Etcd, apiserver: ApiServer, tmp_path: Path) -> None:
    async def scenario() -> None:
        port = free_port()
        async with process(etcd, apiserver, tmp_path) as client:
            async with asyncio.timeout(120):
                while not (await found(client, KubeControllersConfiguration, "default")).status:
                    await asyncio.sleep(0.05)
            stored = await client.get(KubeControllersConfiguration, "default")
            assert stored.status["runningConfig"]["controllers"]["node"]["syncLabels"] == "Enabled"
            spec = structs.replace(stored.spec, prometheusMetricsPort=port)
            await client.update(structs.replace(stored, spec=spec))
            async with asyncio.timeout(120):
                while not await metrics(port):  # with other settings everything is counted anew
                    await asyncio.sleep(0.05)
            await copies(client, apiserver)
            await nodes(client, apiserver)
            await balancers(client, apiserver)
            status = f"{tmp_path}/status/status.json"
            await eventually(lambda: health.check_status(["-r", "-f", status]) == 0)
            async with asyncio.timeout(120):
                while 'ipam_ippool_size{ippool="lb"} 16' not in (text := await metrics(port)):
                    await asyncio.sleep(0.1)
            assert 'ipam_allocations_gc_reclamations{ippool="pods",node="n1"} 1' in text

    run(scenario())


async def metrics(port: int) -> str:
    """'' while nobody answers."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return ""
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return text


async def found(client: Client, kind: Any, name: str, namespace: str = "") -> Any:
    """Once it is there."""
    async with asyncio.timeout(120):
        while True:
            try:
                return await client.get(kind, name, namespace)
            except ResourceDoesNotExist:
                await asyncio.sleep(0.05)


async def gone(client: Client, kind: Any, name: str, namespace: str = "") -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                await client.get(kind, name, namespace)
            except ResourceDoesNotExist:
                return
            await asyncio.sleep(0.05)


async def copies(client: Client, api: ApiServer) -> None:
    await ask(api, "POST", f"{CORE}/namespaces", {"metadata": {"name": "shop", "labels": {"a": "b"}}})
    profile = await found(client, Profile, "kns.shop")
    assert profile.spec.labelsToApply["pcns.a"] == "b"
    account = {"metadata": {"name": "till", "labels": {"c": "d"}}}
    await ask(api, "POST", f"{CORE}/namespaces/shop/serviceaccounts", account)
    assert (await found(client, Profile, "ksa.shop.till")).spec.labelsToApply["pcsa.c"] == "d"
    policies = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
    await ask(api, "POST", policies, {"metadata": {"name": "deny"}, "spec": {"podSelector": {}}})
    policy = await found(client, NetworkPolicy, "knp.default.deny", "shop")
    assert policy.spec.types == ("Ingress",)
    await client.delete(NetworkPolicy, "knp.default.deny", "shop")  # somebody's mistake is put right
    await found(client, NetworkPolicy, "knp.default.deny", "shop")
    await ask(api, "DELETE", f"{policies}/deny")
    await gone(client, NetworkPolicy, "knp.default.deny", "shop")


async def nodes(client: Client, api: ApiServer) -> None:
    await ask(api, "POST", f"{CORE}/nodes", {"metadata": {"name": "n1", "labels": {"rack": "r1"}}})
    await client.create(IPPool(metadata=ObjectMeta(name="pods"), spec=IPPoolSpec(cidr="10.9.0.0/24")))
    ref = OrchRef(nodeName="n1", orchestrator="k8s")
    spec = NodeSpec(orchRefs=(ref,), bgp=NodeBGPSpec(ipv4Address="192.0.2.1/24"))
    await client.create(Node(metadata=ObjectMeta(name="n1"), spec=spec))
    async with asyncio.timeout(120):
        while (await client.get(Node, "n1")).labels.get("rack") != "r1":
            await asyncio.sleep(0.05)
        while (await found(client, HostEndpoint, "n1-auto-hep")).labels.get("rack") != "r1":
            await asyncio.sleep(0.05)
    allocator = Allocator(client, "n1")
    attributes = {"node": "n1", "namespace": "shop", "pod": "nobody"}
    request = AutoAssign(use="Workload", num4=1, handle="k8s-pod-network.x", attributes=attributes)
    (await allocator.auto_assign(request)).require_all()
    await ask(api, "DELETE", f"{CORE}/nodes/n1")
    await gone(client, Node, "n1")
    await gone(client, HostEndpoint, "n1-auto-hep")
    async with asyncio.timeout(120):
        while await allocator.blocks():
            await asyncio.sleep(0.05)


async def balancers(client: Client, api: ApiServer) -> None:
    pool = IPPoolSpec(cidr="10.8.0.0/28", blockSize=30, allowedUses=("LoadBalancer",), nodeSelector="all()")
    await client.create(IPPool(metadata=ObjectMeta(name="lb"), spec=pool))
    service = {"metadata": {"name": "web"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}
    where = f"{CORE}/namespaces/shop/services"
    await ask(api, "POST", where, service)
    async with asyncio.timeout(120):
        while not (await ask(api, "GET", f"{where}/web"))["status"]["loadBalancer"]:
            await asyncio.sleep(0.05)
    (given,) = (await ask(api, "GET", f"{where}/web"))["status"]["loadBalancer"]["ingress"]
    assert given["ip"].startswith("10.8.0.")
    await ask(api, "DELETE", f"{where}/web")
    allocator = Allocator(client, "x")
    async with asyncio.timeout(120):
        while any(index is not None for block in await allocator.blocks() for index in block.allocations):
            await asyncio.sleep(0.05)
