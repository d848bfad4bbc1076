"""Who knows a pod: the runtime, if it says anything, else the API that is the datastore or beside it."""

import asyncio
from typing import Any

import msgspec
import pytest

from tests.support.aio import run
from tests.support.kubernetes import ApiServer
from tortie.cni.identity import Identity
from tortie.cni.netconf import NetConf
from tortie.cni.pods import wishes
from tortie.cni.podsource import Pods, api_config
from tortie.core.errors import ConfigError, ResourceDoesNotExist
from tortie.datastore.config import DatastoreConfig

ETCD = DatastoreConfig(datastoreType="etcdv3", etcdEndpoints=("http://127.0.0.1:1",))
WEB = Identity("n1", "net", "k8s", "shop", "c0ffee", "eth0", "web-0")


def conf(**fields: Any) -> NetConf:
    given = {"name": "net", "policy": {"type": "k8s"}, "ipam": {"type": "calico-ipam"}, **fields}
    return msgspec.convert(given, NetConf)


@pytest.mark.unit
def test_what_the_configuration_says_of_the_api_wins() -> None:
    base = DatastoreConfig(kubeconfig="/base", k8sAPIToken="t")
    assert api_config(base, conf()) == base
    found = api_config(base, conf(kubernetes={"kubeconfig": "/other"}, policy={"k8s_auth_token": "u"}))
    assert (found.kubeconfig, found.k8sAPIToken) == ("/other", "u")


@pytest.mark.unit
def test_nobody_knows_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="are not known"):
        run(Pods(ETCD).pod(conf(), WEB))


@pytest.mark.unit
def test_the_runtime_is_believed_before_anybody_is_asked() -> None:
    args = {"org.projectcalico": {"pod": {"labels": {"app": "web"}}}}
    pod = run(Pods(ETCD).pod(conf(args=args, kubernetes={"kubeconfig": "/nonexistent"}), WEB))
    assert pod.labels == {"app": "web"}


@pytest.mark.kernel
@pytest.mark.parametrize("beside_etcd", [False, True])
def test_the_api_is_asked_for_the_pod_and_its_namespace(apiserver: ApiServer, beside_etcd: bool) -> None:
    prefix = "cni.projectcalico.org/"
    namespace = {
        "name": "shop",
        "annotations": {f"{prefix}ipv4pools": '["special"]'},
        "labels": {"team": "x"},
    }
    apiserver.ask("POST", "/api/v1/namespaces", {"metadata": namespace})
    ports = [{"name": "http", "containerPort": 80}, {"containerPort": 81}]
    spec = {
        "nodeName": "n1",
        "serviceAccountName": "runner",
        "containers": [{"name": "c", "image": "x", "ports": ports}],
        "initContainers": [
            {"name": "i", "image": "x", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}
        ],
    }
    metadata = {"name": "web-0", "generateName": "web-", "labels": {"app": "web"},
                "annotations": {f"{prefix}hwAddr": "02:00:00:00:00:01"}}  # fmt: skip
    apiserver.ask("POST", "/api/v1/namespaces/shop/pods", {"metadata": metadata, "spec": spec})
    api = {"k8s_api_root": apiserver.url}
    changes: dict[str, Any] = {
        "datastoreType": "etcdv3",
        "etcdEndpoints": ("http://127.0.0.1:1",),
        "k8sAPIEndpoint": "",
    }
    base = apiserver.config(**changes if beside_etcd else {})

    async def scenario() -> None:
        source = Pods(base)
        try:
            pod = await source.pod(conf(kubernetes=api), WEB)
            assert (pod.labels, pod.service_account, pod.generate_name) == ({"app": "web"}, "runner", "web-")
            assert pod.namespace_labels["team"] == "x"
            assert [(one.name, one.protocol, one.port) for one in pod.ports] == [
                ("http", "TCP", 80),
                ("dns", "UDP", 53),
            ]
            wanted = wishes(pod, conf())
            assert (wanted.ipv4_pools, wanted.mac) == (("special",), "02:00:00:00:00:01")
            await asyncio.to_thread(
                apiserver.ask, "DELETE", "/api/v1/namespaces/shop/pods/web-0", {"gracePeriodSeconds": 0}
            )
            with pytest.raises(ResourceDoesNotExist):
                await source.pod(conf(kubernetes=api), WEB)
        finally:
            await source.close()

    run(scenario())
