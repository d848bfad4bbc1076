"""What Kubernetes' own objects are as ours, on a real kube-apiserver: nodes, pods, profiles, policies."""

import asyncio
from typing import Any

import pytest
from msgspec import UNSET, structs

from tests.support.aio import eventually, run
from tests.support.kubernetes import ApiServer
from tests.support.resources import resource
from tortie.core.errors import (
    OperationNotSupported,
    ResourceDoesNotExist,
    Unauthorized,
    UpdateConflict,
    ValidationError,
)
from tortie.datastore.client import Client
from tortie.datastore.keys import ProcessStatusKey, ResourceKey, ResourceList
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.ipam import ProcessStatus
from tortie.datastore.types.ippool import IPPool
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import CalicoNodeStatus, Node, NodeBGPSpec, NodeStatus
from tortie.datastore.types.policy import NetworkPolicy, Profile

pytestmark = pytest.mark.kernel

CRD = "/apis/crd.projectcalico.org/v1"
KEY = "A" * 43 + "="  # WireGuard's
MERGE = "application/merge-patch+json"


class Here:
    """A client, and the API server itself without blocking the loop."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.backend = KubernetesBackend(server.config())
        self.client = Client(self.backend)

    async def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        return await asyncio.to_thread(self.server.ask, method, path, body, kind)

    async def node(self, name: str = "n1") -> None:
        await self.ask("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": {"rack": "r1"}}})

    async def pod(self, name: str = "web-0") -> None:
        spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]}
        await self.ask("POST", "/api/v1/namespaces/default/pods", {"metadata": {"name": name}, "spec": spec})


# --- nodes --------------------------------------------------------------------------------------


def test_a_node_is_written_without_touching_what_is_kubernetes_own(apiserver: ApiServer) -> None:
    async def scenario() -> None:
        here = Here(apiserver)
        await here.node()
        node = await here.client.get(Node, "n1")
        assert (node.labels, node.spec.bgp) == ({"rack": "r1"}, None)
        bgp = NodeBGPSpec(ipv4Address="192.0.2.1/24")
        node = await here.client.update(structs.replace(node, spec=structs.replace(node.spec, bgp=bgp)))
        assert node.spec.bgp == bgp
        # Kubelet writes all the time: that is no conflict.
        await here.ask("PATCH", "/api/v1/nodes/n1", {"metadata": {"annotations": {"beat": "1"}}}, MERGE)
        status = NodeStatus(wireguardPublicKey=KEY)
        node = await here.client.update(structs.replace(node, status=status))
        stored = (await here.ask("GET", "/api/v1/nodes/n1"))["metadata"]
        assert stored["labels"] == {"rack": "r1"}
        assert stored["annotations"] == {
            "beat": "1",
            "projectcalico.org/IPv4Address": "192.0.2.1/24",
            "projectcalico.org/WireguardPublicKey": KEY,
        }
        await here.client.close()

    run(scenario())


def test_two_writers_of_a_node_do_not_lose_each_others_word(apiserver: ApiServer) -> None:
    async def scenario() -> None:
        here = Here(apiserver)
        await here.node()
        one, other = [await here.client.get(Node, "n1") for _ in range(2)]
        bgp = NodeBGPSpec(ipv4Address="192.0.2.1/24")
        await here.client.update(structs.replace(one, spec=structs.replace(one.spec, bgp=bgp)))
        with pytest.raises(UpdateConflict):
            await here.client.update(structs.replace(other, status=NodeStatus(wireguardPublicKey=KEY)))
        with pytest.raises(OperationNotSupported):
            await here.client.create(resource("Node", name="n2"))
        with pytest.raises(OperationNotSupported):
            await here.backend.delete(ResourceKey("Node", "n1"))
        await here.client.close()

    run(scenario())


# --- pods ---------------------------------------------------------------------------------------

WEP = ResourceKey("WorkloadEndpoint", "n1-k8s-web--0-eth0", "default")


def test_cni_writes_addresses_as_annotations_of_the_pod(apiserver: ApiServer) -> None:
    async def scenario() -> None:
        here = Here(apiserver)
        await here.pod()
        found = await here.client.get(WorkloadEndpoint, WEP.name, "default")
        assert found.spec.ipNetworks == ()
        spec = structs.replace(found.spec, ipNetworks=("10.0.0.1/32", "fd00::1/128"), containerID="c0ffee")
        written = await here.client.update(structs.replace(found, spec=spec))
        assert (written.spec.ipNetworks, written.spec.containerID) == (spec.ipNetworks, "c0ffee")
        with pytest.raises(UpdateConflict):
            await here.client.update(structs.replace(found, spec=spec))
        annotations = (await here.ask("GET", "/api/v1/namespaces/default/pods/web-0"))["metadata"][
            "annotations"
        ]
        assert annotations == {
            "cni.projectcalico.org/containerID": "c0ffee",
            "cni.projectcalico.org/podIP": "10.0.0.1/32",
            "cni.projectcalico.org/podIPs": "10.0.0.1/32,fd00::1/128",
        }
        named = await here.backend.list(ResourceList("WorkloadEndpoint", "default", "n1-k8s-web--0-"))
        assert [kv.key for kv in named.items] == [WEP]
        with pytest.raises(UpdateConflict):
            await here.backend.delete(WEP, found.revision)
        await here.backend.delete(WEP, written.revision)
        found = await here.client.get(WorkloadEndpoint, WEP.name, "default")
        assert (found.spec.ipNetworks, found.spec.containerID) == ((), "c0ffee")
        await here.client.close()

    run(scenario())


def test_an_endpoint_of_another_node_is_not_this_one(apiserver: ApiServer) -> None:
    async def scenario() -> None:
        here = Here(apiserver)
        await here.pod()
        with pytest.raises(ResourceDoesNotExist):
            await here.client.get(WorkloadEndpoint, "n2-k8s-web--0-eth0", "default")
        spec = WorkloadEndpointSpec(
            orchestrator="k8s", node="n2", pod="web-0", endpoint="eth0", ipNetworks=("10.0.0.1/32",),
            interfaceName="cali1", containerID="c0ffee",
        )  # fmt: skip
        meta = ObjectMeta(name="n2-k8s-web--0-eth0", namespace="default")
        with pytest.raises(ResourceDoesNotExist, match="on another node"):
            await here.client.create(WorkloadEndpoint(metadata=meta, spec=spec))
        pod = await here.ask("GET", "/api/v1/namespaces/default/pods/web-0")
        assert "annotations" not in pod["metadata"]
        await here.client.close()

    run(scenario())


# --- what can be read only ----------------------------------------------------------------------


def test_profiles_and_kubernetes_policies_are_read_only(apiserver: ApiServer) -> None:
    async def scenario() -> None:
        here = Here(apiserver)
        path = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
        await here.ask("POST", path, {"metadata": {"name": "web"}, "spec": {"podSelector": {}}})
        policy = await here.client.get(NetworkPolicy, "knp.default.web", "default")
        assert policy.spec.order == 1000
        profile = await here.client.get(Profile, "kns.default")
        assert profile.revision.endswith("/")
        for key in (
            ResourceKey("Profile", "kns.default"),
            ResourceKey("NetworkPolicy", policy.name, "default"),
        ):
            with pytest.raises(OperationNotSupported, match="Kubernetes API"):
                await here.backend.delete(key)
        with pytest.raises(OperationNotSupported):
            await here.backend.apply(
                ProcessStatusKey("n1"), ProcessStatus(time="", uptime=0, first_update=True)
            )
        await here.client.close()

    run(scenario())


# --- custom resources ---------------------------------------------------------------------------


def test_a_status_is_written_beside_the_rest(apiserver: ApiServer) -> None:
    async def scenario() -> None:
        here = Here(apiserver)
        made = await here.client.create(
            resource(
                "CalicoNodeStatus", {"node": "n1", "classes": ["Agent"], "updatePeriodSeconds": 10}, name="s"
            )
        )
        status = structs.replace(made.status, lastUpdated="2027-01-15T08:00:00Z")  # type: ignore[attr-defined]
        written = await here.client.update(structs.replace(made, status=status))
        found = await here.client.get(CalicoNodeStatus, "s")
        assert found.status.lastUpdated == "2027-01-15T08:00:00Z"
        assert found.revision == written.revision
        await here.client.close()

    run(scenario())


def test_unknown_fields_and_bad_objects_survive(apiserver: ApiServer) -> None:
    async def scenario() -> None:
        here = Here(apiserver)
        body = {"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "p"},
                "spec": {"cidr": "10.0.0.0/24", "blockSize": 26, "later": {"field": [1]}}}  # fmt: skip
        await here.ask("POST", f"{CRD}/ippools", body)
        await asyncio.to_thread(
            apiserver.put_custom, "ippools", "IPPool", "bad", {}, {"spec": {"cidr": ["10.0.0.0/8"]}}
        )
        listed = await here.client.list(IPPool)
        assert [pool.name for pool in listed.items] == ["p"]
        assert [broken.key for broken in listed.broken] == [ResourceKey("IPPool", "bad")]
        pool = listed.items[0]
        await here.client.update(structs.replace(pool, spec=structs.replace(pool.spec, natOutgoing=True)))
        stored = await here.ask("GET", f"{CRD}/ippools/p")
        assert (stored["spec"]["later"], stored["spec"]["natOutgoing"]) == ({"field": [1]}, True)
        with pytest.raises(ValidationError, match="cidr"):  # the server's own word, past our checks
            await here.backend.create(ResourceKey("IPPool", "q"), _wrong(pool))
        await here.client.close()

    run(scenario())


def _wrong(pool: IPPool) -> IPPool:
    cidr: Any = 7
    return structs.replace(pool, origin=UNSET, spec=structs.replace(pool.spec, cidr=cidr))


def test_long_lists_come_in_pages_of_one_moment(apiserver: ApiServer) -> None:
    async def scenario() -> None:
        here = Here(apiserver)
        names = [f"s{number:04}" for number in range(1003)]
        for start in range(0, len(names), 100):
            await asyncio.to_thread(
                apiserver.put_customs, "globalnetworksets", "GlobalNetworkSet", names[start : start + 100]
            )
        listed = await here.backend.list(ResourceList("GlobalNetworkSet"))
        assert [kv.value.name for kv in listed.items] == names
        await here.client.close()

    run(scenario())


def test_who_may_not_is_told(apiserver: ApiServer) -> None:
    async def scenario() -> None:
        for token in ("nobody", ""):
            backend = KubernetesBackend(apiserver.config(k8sAPIToken=token))
            with pytest.raises(Unauthorized):
                await backend.list(ResourceList("IPPool"))
            await backend.close()

    run(scenario())


def test_a_kind_whose_definition_comes_later(apiserver: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """ClusterNetworkPolicies are not served here: their half of the listing is empty, not in the way."""
    monkeypatch.setattr("tortie.datastore.kubernetes.listing._ABSENT_POLL", 0.05)

    async def scenario() -> None:
        here = Here(apiserver)
        what = ResourceList("GlobalNetworkPolicy")
        listed = await here.backend.list(what)
        assert listed.revision.endswith("/-")
        seen: list[str] = []

        async def follow() -> None:
            async for event in here.backend.watch(what, listed.revision):
                seen.append(event.type)

        task = asyncio.create_task(follow())
        await eventually(lambda: "bookmark" in seen)
        body = {"apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy",
                "metadata": {"name": "g"}, "spec": {"selector": "all()"}}  # fmt: skip
        await here.ask("POST", f"{CRD}/globalnetworkpolicies", body)
        await eventually(lambda: "set" in seen)
        task.cancel()
        await asyncio.wait([task])
        await here.client.close()

    run(scenario())
