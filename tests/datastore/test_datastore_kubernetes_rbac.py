"""manifests/rbac.yaml on a real kube-apiserver: enough for all that a node does, and no more.

A node's day is everything it asks of the datastore, done once with the manifest's role: nothing may be
refused. What it asked is written down, and the role must grant exactly that: a verb that is taken away
is refused, one that is added is never asked for.
"""

from collections.abc import Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import structs

from tests.support.aio import run
from tests.support.kubernetes import NODE_TOKEN, ApiServer
from tests.support.resources import resource
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
    Key,
    Listing,
    ResourceKey,
    ResourceList,
)
from tortie.datastore.kinds import KINDS
from tortie.datastore.kubernetes.api import Api
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.kubernetes.http import HttpClient
from tortie.datastore.kubernetes.kubeconfig import locate
from tortie.datastore.types import ipam
from tortie.datastore.types.endpoint import WorkloadEndpoint
from tortie.datastore.types.node import Node, NodeBGPSpec

pytestmark = pytest.mark.kernel

MANIFEST = Path(__file__).parent.parent.parent / "manifests" / "rbac.yaml"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_FOLLOWED = [
    kind for kind in KINDS if kind not in ("BlockAffinity", "KubeControllersConfiguration", "LiveMigration")
]
_ENDPOINT = ResourceKey("WorkloadEndpoint", "n1-k8s-web-eth0", "default")
_READ: list[Key] = [
    ResourceKey("Profile", "kns.default"),
    ResourceKey("Profile", "ksa.default.x"),
    ResourceKey("NetworkPolicy", "knp.default.x", "default"),
    ResourceKey("GlobalNetworkPolicy", "kcnp.kube-admin.x"),
    *(
        ResourceKey(kind, "x", "default" if KINDS[kind].namespaced else "")
        for kind in _FOLLOWED
        if kind not in ("Profile", "WorkloadEndpoint")
    ),
]

Grant = tuple[str, str, str]  # group, resource, verb


@pytest.fixture
def role(apiserver: ApiServer) -> Iterator[dict[str, Any]]:
    """The role as the manifest has it, in force."""
    documents = [one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["kind"] != "ServiceAccount"]
    for document in documents:
        apiserver.ask("POST", f"{RBAC}/{document['kind'].lower()}s", document)
    yield next(one for one in documents if one["kind"] == "ClusterRole")
    for document in documents:
        apiserver.ask("DELETE", f"{RBAC}/{document['kind'].lower()}s/calico-node")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[Grant]:
    """What the API was asked for, as RBAC sees it."""
    found: set[Grant] = set()
    call, stream = HttpClient.call, HttpClient.stream

    async def spied_call(self: HttpClient, method: str, target: str, *more: Any) -> Any:
        found.add(_grant(method, target))
        return await call(self, method, target, *more)

    @asynccontextmanager
    async def spied_stream(self: HttpClient, target: str, headers: Mapping[str, str]) -> Any:
        found.add(_grant("WATCH", target))
        async with stream(self, target, headers) as opened:
            yield opened

    monkeypatch.setattr(HttpClient, "call", spied_call)
    monkeypatch.setattr(HttpClient, "stream", spied_stream)
    return found


def _grant(method: str, target: str) -> Grant:
    root, *parts = target.partition("?")[0].strip("/").split("/")
    group = "" if root == "api" else parts.pop(0)
    parts.pop(0)  # the version
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    resource = "/".join(parts[::2])
    reading = "watch" if method == "WATCH" else "get" if len(parts) > 1 else "list"
    return group, resource, _VERBS.get(method, reading)


def granted(role: Mapping[str, Any]) -> set[Grant]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


async def a_nodes_day(backend: KubernetesBackend) -> None:
    listings: list[Listing] = [*map(ResourceList, _FOLLOWED), BlockList(), AffinityList(), AffinityList("n1")]
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
    await _start(Client(backend))
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


def test_the_role_grants_what_a_node_asks_for_and_nothing_else(
    apiserver: ApiServer, role: dict[str, Any], asked: set[Grant]
) -> None:
    apiserver.ask("POST", "/api/v1/nodes", {"metadata": {"name": "n1"}})
    spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]}
    pod = {"metadata": {"name": "web"}, "spec": spec}
    apiserver.ask("POST", "/api/v1/namespaces/default/pods", pod)

    async def scenario() -> None:
        backend = KubernetesBackend(apiserver.config(k8sAPIToken=NODE_TOKEN))
        await a_nodes_day(backend)
        await backend.close()

    run(scenario())
    # The server has no ClusterNetworkPolicies, so nobody watches them here.
    unseen = ("policy.networking.k8s.io", "clusternetworkpolicies", "watch")
    assert asked | {unseen} == granted(role)


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
