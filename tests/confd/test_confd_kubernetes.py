"""An etcd (here: in memory) with a real API server beside it: its services and its Secrets reach BGP."""

import asyncio
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.confd.confd_cases import MASTER, configuration, node, password
from tests.support.kubernetes import ApiServer
from tests.support.memory_backend import MemoryBackend
from tortie.bgp.config import load
from tortie.confd.daemon import Confd
from tortie.core.tasks import cancel
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.connect import kubernetes_beside
from tortie.datastore.keys import ResourceKey
from tortie.datastore.types.bgp import CIDRBlock

pytestmark = pytest.mark.kernel

SLICES = "/apis/discovery.k8s.io/v1beta1/namespaces/shop/endpointslices"
ETCD = {"datastoreType": "etcdv3", "etcdEndpoints": ("http://127.0.0.1:1",)}


def test_nothing_is_beside_an_etcd_unless_something_leads_there(apiserver: ApiServer) -> None:
    etcd = DatastoreConfig(datastoreType="etcdv3", etcdEndpoints=("http://127.0.0.1:1",))
    assert kubernetes_beside(etcd, {}) is None
    assert kubernetes_beside(apiserver.config(**ETCD), {}) is not None


def test_services_and_secrets_of_the_api_beside_etcd(
    apiserver: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALICO_CONFD_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("CALICO_RUN_DIR", str(tmp_path))
    spec = {
        "clusterIP": "10.96.0.10",
        "type": "NodePort",
        "externalTrafficPolicy": "Local",
        "ports": [{"port": 80}],
    }
    behind = {
        "metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "topology": {"kubernetes.io/hostname": MASTER.name}}],
    }
    secret = {"metadata": {"name": "bgp"}, "data": {"password": b64encode(b"one").decode()}}
    backend = MemoryBackend()

    def ask(method: str, path: str, body: Any = None) -> Any:
        return asyncio.to_thread(apiserver.ask, method, path, body)

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(120):
            while not condition():
                await asyncio.sleep(0.02)

    def services() -> set[str]:
        config = load(str(tmp_path / "bgp.json"))
        return set() if config is None else set(config.services)

    async def act() -> None:
        ranges = (CIDRBlock(cidr="10.96.0.0/16"),)
        settings = configuration(serviceClusterIPs=ranges, nodeMeshPassword=password())
        for resource in (MASTER, node("other", "10.192.0.9/16"), settings):
            await backend.apply(ResourceKey(resource.KIND, resource.name), resource)
        environment = {"FELIX_CONFIGFILE": "/nonexistent", "TORTIE_SECRETS_DIR": str(tmp_path)}
        api = kubernetes_beside(apiserver.config(**ETCD), {})
        assert api is not None
        confd = Confd(backend, MASTER.name, environment, api)
        running = [asyncio.create_task(loop()) for loop in (confd.watch, confd.render, confd.beside.run)]
        try:
            await ask("POST", "/api/v1/namespaces/shop/services", {"metadata": {"name": "web"}, "spec": spec})
            await ask("POST", SLICES, behind)
            await ask("POST", "/api/v1/namespaces/kube-system/secrets", secret)
            await until(lambda: services() == {"10.96.0.0/16", "10.96.0.10/32"})
            line = f'md5-password "{b64encode(b"one").decode()}";'
            await until(lambda: line in (tmp_path / "exabgp.conf").read_text())
            await ask("DELETE", f"{SLICES}/web-x")
            await until(lambda: services() == {"10.96.0.0/16"})
        finally:
            await cancel(running)
            await api.close()

    asyncio.run(act())
