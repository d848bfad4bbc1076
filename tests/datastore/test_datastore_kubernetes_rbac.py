"""manifests/rbac.yaml on a real kube-apiserver: enough for all that a node and its CNI plugin do, no more.

A node's day is everything it asks of the datastore, done once with the manifest's role: nothing may be
refused. The CNI plugin's day is its part of that. What was asked is written down, and the role must grant
exactly that: one that is added is never asked for, and a verb that is taken away, each in turn, has just the
request refused that is named by the test.
"""

from collections.abc import Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import structs

from tests.netns_lab import eventually
from tests.support.aio import run
from tests.support.etcd import wait_until
from tests.support.kubernetes import NODE_TOKEN, ApiServer
from tests.support.rbac import RBAC, Asked, Grant, granted, in_force, may, no_secrets, spy, users_without
from tests.support.resources import resource
from tortie.cni import credential
from tortie.core.errors import ResourceDoesNotExist, Unauthorized
from tortie.datastore.backend import KV
from tortie.datastore.client import Client
from tortie.datastore.initialize import ensure_default_configuration, ensure_initialized
from tortie.datastore.keys import (
    AffinityKey,
    AffinityList,
    BlockKey,
    BlockList,
    HandleKey,
    HandleList,
    IPAMConfigKey,
    IPAMConfigList,
    Key,
    Listing,
    ResourceKey,
    ResourceList,
)
from tortie.datastore.kinds import KINDS
from tortie.datastore.kubernetes.api import Api
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.kubernetes.customresource import to_custom_resource
from tortie.datastore.kubernetes.kubeconfig import locate
from tortie.datastore.nativekeys import (
    NamespaceKey,
    PodKey,
    ServiceList,
    SliceList,
    VirtualMachineInstanceKey,
    VirtualMachineKey,
)
from tortie.datastore.types import ipam
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.node import CalicoNodeStatus, CalicoNodeStatusStatus, Node, NodeBGPSpec

pytestmark = pytest.mark.kernel

MANIFEST = Path(__file__).parent.parent.parent / "manifests" / "rbac.yaml"
_FOLLOWED = [kind for kind in KINDS if kind not in ("BlockAffinity", "KubeControllersConfiguration")]
_ENDPOINT = ResourceKey("WorkloadEndpoint", "n1-k8s-web-eth0", "default")
_READ: list[Key] = [
    ResourceKey("Profile", "kns.default"),
    ResourceKey("Profile", "ksa.default.x"),
    ResourceKey("NetworkPolicy", "knp.default.x", "default"),
    ResourceKey("GlobalNetworkPolicy", "kcnp.kube-admin.x"),
    *(
        ResourceKey(kind, "x", "default" if KINDS[kind].namespaced else "")
        for kind in _FOLLOWED
        if kind not in ("Profile", "WorkloadEndpoint", "LiveMigration")
    ),
]


_OF_A_NAME = {"configmaps": "kubeadm-config", "serviceaccounts/token": "calico-cni-plugin"}


def about(grant: Grant) -> Asked:
    """One thing that is asked for with it."""
    return Asked("default", _OF_A_NAME.get(grant.resource, "x"))


@pytest.fixture
def roles(apiserver: ApiServer) -> Iterator[dict[str, Any]]:
    """Name -> role as the manifest has it, in force; the accounts are there.

    The authorizer hears of what is made and deleted a moment after it. A role is known as a whole.
    """
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    paths = {"ServiceAccount": "/api/v1/namespaces/kube-system/serviceaccounts"}
    for document in documents:
        kind = document["kind"]
        apiserver.ask("POST", paths.get(kind) or f"{RBAC}/{kind.lower()}s", document)
    made = {one["metadata"]["name"]: one for one in documents if one["kind"] == "ClusterRole"}

    def known() -> list[bool]:
        of_each = ((name, min(granted(role))) for name, role in made.items())
        return [yes for name, one in of_each for yes in in_force(apiserver, name, {one: about(one)})]

    wait_until(lambda: all(known()), what="the roles to be known")
    yield made
    for document in documents:
        if document["kind"] not in paths:
            name = document["metadata"]["name"]
            apiserver.ask("DELETE", f"{RBAC}/{document['kind'].lower()}s/{name}")
    wait_until(lambda: not any(known()), what="the roles to be forgotten")


@pytest.fixture
def role(roles: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = roles["calico-node"]
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[Grant, Asked]:
    """What the API was asked for, as RBAC sees it."""
    return spy(monkeypatch)


async def a_nodes_day(backend: KubernetesBackend) -> None:
    listings: list[Listing] = [*map(ResourceList, _FOLLOWED), BlockList(), AffinityList(), AffinityList("n1")]
    listings += [ServiceList(), SliceList()]
    for what in listings:
        listed = await backend.list(what)
        async with aclosing(backend.watch(what, listed.revision)) as events:  # type: ignore[type-var]
            async for _ in events:
                break
    await backend.list(HandleList())
    for key in _READ:
        try:
            await backend.get(key)
        except ResourceDoesNotExist:
            continue
    with suppress(ResourceDoesNotExist):
        await backend.config_map("kube-system", "kubeadm-config")
    await _start(Client(backend))
    await _report(Client(backend))
    await _attach(Client(backend))
    await _allocate(backend)


async def _start(client: Client) -> None:
    await ensure_initialized(client, "v3.33.0", "k8s")
    await ensure_initialized(client, "v3.33.1", "k8s")
    await ensure_default_configuration(client, "n1")
    felix = resource("FelixConfiguration", {"logSeverityScreen": "Warning"}, name="default")
    await client.overwrite(felix)
    await client.create(resource("IPPool", {"cidr": "10.0.0.0/16"}, name="default-ipv4-ippool"))
    node = await client.get(Node, "n1")
    bgp = NodeBGPSpec(ipv4Address="192.0.2.1/24")
    await client.update(structs.replace(node, spec=structs.replace(node.spec, bgp=bgp)))


async def _report(client: Client) -> None:
    found = await client.get(CalicoNodeStatus, "n1")
    status = CalicoNodeStatusStatus(lastUpdated="2027-01-15T08:00:00Z")
    await client.update(structs.replace(found, status=status))


async def _attach(client: Client) -> None:
    found = await client.get(WorkloadEndpoint, _ENDPOINT.name, "default")
    spec = structs.replace(found.spec, ipNetworks=("10.0.0.1/32",), containerID="c0ffee")
    await client.update(structs.replace(found, spec=spec))
    await client.backend.delete(_ENDPOINT)


async def _allocate(backend: KubernetesBackend) -> None:
    values: list[tuple[Key, Any]] = [
        (BlockKey("10.0.0.0/30"), ipam.Block(cidr="10.0.0.0/30")),
        (HandleKey("h"), ipam.Handle()),
        (AffinityKey("10.0.0.0/30", "n1"), ipam.Affinity(state="pending")),
    ]
    for key, value in values:
        kv = await backend.create(key, value)
        await backend.get(key)
        await backend.update(KV(key, value, kv.revision))
        if isinstance(key, AffinityKey):
            backend._labelled.clear()  # as after a restart
            await backend.list(AffinityList("n1"))
        await backend.delete(key)


async def a_plugins_day(backend: KubernetesBackend) -> None:
    """As in tortie.cni: it follows pools and its node, attaches and detaches a pod, and cleans up."""
    followed: list[Listing] = [
        ResourceList("ClusterInformation"),
        ResourceList("IPPool"),
        ResourceList("IPReservation"),
        ResourceList("Node", name="n1"),
        IPAMConfigList(),
    ]
    for what in followed:
        listed = await backend.list(what)
        async with aclosing(backend.watch(what, listed.revision)) as events:  # type: ignore[type-var]
            async for _ in events:
                break
    unseen: list[Key] = [ResourceKey(kind, "x") for kind in ("ClusterInformation", "IPPool", "IPReservation")]
    pods: list[Any] = [PodKey("default", "web"), NamespaceKey("default"), ResourceKey("Node", "n1")]
    machines: list[Key] = [VirtualMachineInstanceKey("default", "vm"), VirtualMachineKey("default", "vm")]
    for key in [*unseen, IPAMConfigKey(), *pods, *machines]:
        with suppress(ResourceDoesNotExist):
            await backend.get(key)
    for what in (BlockList(), HandleList(), AffinityList("n1"), ResourceList("WorkloadEndpoint")):
        await backend.list(what)
    await _attach(Client(backend))
    await _allocate(backend)


def _put_pod(apiserver: ApiServer) -> None:
    apiserver.ask("POST", "/api/v1/nodes", {"metadata": {"name": "n1"}})
    spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]}
    pod = {"metadata": {"name": "web"}, "spec": spec}
    apiserver.ask("POST", "/api/v1/namespaces/default/pods", pod)


def test_the_plugins_role_grants_what_it_asks_for_and_nothing_else(
    apiserver: ApiServer, roles: dict[str, Any], asked: dict[Grant, Asked]
) -> None:
    _put_pod(apiserver)

    async def scenario() -> None:
        node = locate(apiserver.config(k8sAPIToken=NODE_TOKEN))
        token = await credential.request(node, "kube-system", "calico-cni-plugin")
        asked.clear()
        backend = KubernetesBackend(apiserver.config(k8sAPIToken=token.text))
        await a_plugins_day(backend)
        await backend.close()

    run(scenario())
    assert asked.keys() == granted(roles["calico-cni-plugin"])


def test_no_other_accounts_token_is_given_out(apiserver: ApiServer, role: dict[str, Any]) -> None:
    async def scenario() -> None:
        with pytest.raises(Unauthorized):
            server = locate(apiserver.config(k8sAPIToken=NODE_TOKEN))
            await credential.request(server, "kube-system", "calico-node")

    run(scenario())


def test_the_role_grants_what_a_node_asks_for_and_nothing_else(
    apiserver: ApiServer, role: dict[str, Any], asked: dict[Grant, Asked]
) -> None:
    _put_pod(apiserver)
    status = resource(
        "CalicoNodeStatus", {"node": "n1", "classes": ["Agent"], "updatePeriodSeconds": 10}, name="n1"
    )
    key = ResourceKey("CalicoNodeStatus", "n1")
    apiserver.ask(
        "POST", "/apis/crd.projectcalico.org/v1/caliconodestatuses", to_custom_resource(key, status)
    )

    async def scenario() -> None:
        backend = KubernetesBackend(apiserver.config(k8sAPIToken=NODE_TOKEN))
        await a_nodes_day(backend)
        await backend.close()
        server = locate(apiserver.config(k8sAPIToken=NODE_TOKEN))
        await credential.request(server, "kube-system", "calico-cni-plugin")

    run(scenario())
    # The server has neither ClusterNetworkPolicies nor KubeVirt, so nobody watches what they have; it has
    # EndpointSlices, so nobody asks for Endpoints.
    assert asked.keys() | UNSEEN == granted(role)
    assert not asked.keys() & UNSEEN


UNSEEN = {Grant("policy.networking.k8s.io", "clusternetworkpolicies", "watch")}
UNSEEN |= {Grant("kubevirt.io", "virtualmachineinstancemigrations", "watch")}
UNSEEN |= {Grant("", "endpoints", verb) for verb in ("list", "watch")}


def _manifest(kind: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["kind"] == kind]


_EACH = [
    (role["metadata"]["name"], grant) for role in _manifest("ClusterRole") for grant in sorted(granted(role))
]


@pytest.fixture(scope="module")
def users(apiserver_process: ApiServer) -> dict[str, dict[Grant, str]]:
    """Role -> verb -> a user who may do all of the role's but that."""
    roles = _manifest("ClusterRole")
    return {role["metadata"]["name"]: users_without(apiserver_process, [role]) for role in roles}


@pytest.mark.parametrize(("role", "grant"), _EACH, ids=lambda one: str(one))
def test_a_verb_that_is_taken_away_is_missed(
    apiserver_process: ApiServer, users: dict[str, dict[Grant, str]], role: str, grant: Grant
) -> None:
    others = [user for one, user in users[role].items() if one != grant]
    assert not may(apiserver_process, users[role][grant], grant, about(grant))
    assert may(apiserver_process, others[0], grant, about(grant))


def test_nothing_else_can_be_read_or_changed(apiserver: ApiServer, role: dict[str, Any]) -> None:
    async def scenario() -> None:
        api = Api(locate(apiserver.config(k8sAPIToken=NODE_TOKEN)))
        for path in ("/api/v1/secrets", "/api/v1/namespaces/kube-system/secrets/x", "/api/v1/configmaps"):
            with pytest.raises(Unauthorized):
                await api.get(path)
        for path in ("/api/v1/nodes/n1", "/api/v1/namespaces/default/pods/web"):
            with pytest.raises(Unauthorized):
                await api.patch(path, {"metadata": {"labels": {"a": "b"}}})
        await api.close()

    run(scenario())


@pytest.mark.parametrize("account", ["calico-node", "calico-cni-plugin"])
def test_no_secret_can_be_read(apiserver: ApiServer, roles: dict[str, Any], account: str) -> None:
    eventually(lambda: no_secrets(apiserver, account))
