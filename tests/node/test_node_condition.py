"""What Kubernetes is told of this node's network: when it is there, and when the node is shut down."""

import pytest

from tests.support.aio import run
from tests.support.kubernetes import ApiServer
from tortie.lab.apiserver import ADMIN_TOKEN
from tortie.node import condition

pytestmark = pytest.mark.kernel


def environment(server: ApiServer, **more: str) -> dict[str, str]:
    given = {"DATASTORE_TYPE": "kubernetes", "K8S_API_ENDPOINT": server.url, "K8S_CA_FILE": server.ca}
    return {**given, "CALICO_K8SAPITOKEN": ADMIN_TOKEN, "NODENAME": "n1", **more}


def conditions(server: ApiServer) -> dict[str, str]:
    found = server.ask("GET", "/api/v1/nodes/n1")["status"]["conditions"]
    return {one["type"]: f"{one['status']} {one['reason']}" for one in found}


def test_one_condition_changes_and_the_others_stay(apiserver: ApiServer) -> None:
    apiserver.ask("POST", "/api/v1/nodes", {"metadata": {"name": "n1"}})
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    cloud = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
    merge = "application/merge-patch+json"
    apiserver.ask("PATCH", "/api/v1/nodes/n1/status", {"status": {"conditions": [ready, cloud]}}, merge)
    run(condition.tell(environment(apiserver), up=True))
    assert conditions(apiserver) == {"Ready": "True KubeletReady", "NetworkUnavailable": "False CalicoIsUp"}
    run(condition.tell(environment(apiserver, NODENAME="other", CALICO_K8S_NODE_REF="n1"), up=False))
    assert conditions(apiserver)["NetworkUnavailable"] == "True CalicoIsDown"
    run(condition.tell(environment(apiserver, CALICO_NETWORKING_BACKEND="none"), up=True))
    assert conditions(apiserver)["NetworkUnavailable"] == "True CalicoIsDown"


def test_who_has_no_kubernetes_tells_nobody(caplog: pytest.LogCaptureFixture) -> None:
    etcd = {"ETCD_ENDPOINTS": "http://127.0.0.1:1", "NODENAME": "n1"}
    run(condition.tell(etcd, up=True))
    assert not caplog.records
    run(condition.tell({**etcd, "KUBECONFIG": "/nonexistent"}, up=True))
    assert "does not exist" in caplog.text
