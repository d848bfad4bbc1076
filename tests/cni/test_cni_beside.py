"""etcd as the datastore, and beside it the Kubernetes API that the network configuration leads to."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cni import NODE, Machine, calico
from tests.support.cni_kubernetes import Relay
from tests.support.kubernetes import ApiServer
from tortie.cni.netconf import Kubernetes, NetConf, Policy
from tortie.cni.podsource import api_config
from tortie.core.errors import CniError
from tortie.datastore.config import DatastoreConfig
from tortie.lab.runtime import Attachment

_MERGE = "application/merge-patch+json"


@pytest.fixture
def beside(machine: Machine, apiserver: ApiServer) -> Iterator[dict[str, Any]]:
    """The part of a configuration that leads to the API; a node and a pod are there."""
    relay = Relay(machine.host, int(apiserver.url.rpartition(":")[2]))
    config = apiserver.config()
    apiserver.ask("POST", "/api/v1/nodes", {"metadata": {"name": NODE}})
    spec = {"nodeName": NODE, "containers": [{"name": "c", "image": "x"}]}
    metadata = {"name": "nginx", "labels": {"app": "web"}}
    apiserver.ask("POST", "/api/v1/namespaces/default/pods", {"metadata": metadata, "spec": spec})
    policy = {
        "type": "k8s",
        "k8s_api_root": f"https://127.0.0.1:{relay.port}/api/v1/",
        "k8s_auth_token": config.k8sAPIToken,
        "k8s_certificate_authority": config.k8sCAFile,
    }
    yield {"policy": policy}
    relay.close()


def untold(machine: Machine) -> Attachment:
    """A pod of which the runtime says no more than its name."""
    pod = machine.pod()
    return Attachment(pod.container_id, pod.netns, "eth0", pod.args)


@pytest.mark.kernel
def test_a_pods_labels_come_from_the_api(machine: Machine, beside: dict[str, Any]) -> None:
    chain, pod = machine.chain(calico(**beside)), untold(machine)
    chain.add(pod)
    (endpoint,) = machine.endpoints().values()
    assert endpoint["metadata"]["labels"]["app"] == "web"
    chain.delete(pod)
    assert not machine.remains()
    stranger = Attachment("c2", pod.netns, "eth0", {**pod.args, "K8S_POD_NAME": "stranger"})
    with pytest.raises(CniError, match="resource does not exist: Pod"):
        chain.add(stranger)


@pytest.mark.kernel
def test_use_pod_cidr_asks_the_api_before_the_node_in_etcd(
    machine: Machine, beside: dict[str, Any], apiserver: ApiServer
) -> None:
    ipam = {"type": "host-local", "dataDir": str(machine.folder / "networks"), "subnet": "usePodCidr"}
    chain, pod = machine.chain(calico(ipam=ipam, **beside)), untold(machine)
    with pytest.raises(CniError, match="no podCidr for node node-1"):
        chain.add(pod)
    apiserver.ask("PATCH", f"/api/v1/nodes/{NODE}", {"spec": {"podCIDRs": ["10.77.3.0/24"]}}, _MERGE)
    assert chain.add(pod)["ips"][0]["address"] == "10.77.3.2/32"
    chain.delete(pod)
    elsewhere = calico(ipam=ipam, kubernetes={"node_name": "elsewhere"}, **beside)
    with pytest.raises(CniError, match="node elsewhere is not known"):
        machine.chain(elsewhere).add(pod)
    assert not machine.remains()


@pytest.mark.unit
def test_where_the_api_is() -> None:
    """`kubernetes` before `policy`, whose root is cut to what a client wants."""
    base = DatastoreConfig(etcdEndpoints=("http://e:1",), k8sAPIToken="base")
    old = NetConf(policy=Policy(k8s_api_root="https://k:6443/api/v1/", k8s_client_key="key"))
    found = api_config(base, old)
    assert (found.k8sAPIEndpoint, found.k8sKeyFile, found.k8sAPIToken) == ("https://k:6443", "key", "base")
    new = NetConf(policy=old.policy, kubernetes=Kubernetes(k8s_api_root="https://n:6443"))
    assert api_config(base, new).k8sAPIEndpoint == "https://n:6443"
    assert api_config(base, NetConf()) == base
