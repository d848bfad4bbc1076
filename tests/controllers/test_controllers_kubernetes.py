"""The whole process where Kubernetes is the datastore, with the rights of its manifest and no more: what
nobody uses is given back, a pod's address is not; a node that is gone leaves nothing; a service is served."""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import structs

from tests.netns_lab import eventually
from tests.support.aio import run
from tests.support.etcd import wait_until
from tests.support.kubernetes import ApiServer
from tests.support.rbac import RBAC, Asked, Grant, granted, in_force, may, no_secrets, spy, users_without
from tortie.controllers.run import Process
from tortie.controllers.settings import NAME
from tortie.core.errors import ResourceDoesNotExist, UpdateConflict
from tortie.core.tasks import cancel
from tortie.datastore.client import Client
from tortie.datastore.initialize import ensure_initialized
from tortie.datastore.keys import HandleKey
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.types.cluster import (
    AutoHostEndpoints,
    ClusterInformation,
    Controllers,
    KubeControllersConfiguration,
    KubeControllersConfigurationSpec,
    LoadBalancerController,
    NodeController,
)
from tortie.datastore.types.endpoint import HostEndpoint
from tortie.datastore.types.ipam import AllocationAttribute, Handle
from tortie.datastore.types.ippool import IPPool, IPPoolSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.ipam.allocator import Allocator
from tortie.ipam.requests import AutoAssign
from tortie.lab.apiserver import CONTROLLERS_TOKEN

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("log_level_stays")]

MANIFEST = Path(__file__).parent.parent.parent / "manifests" / "kube-controllers-rbac.yaml"
DEFAULT = "/api/v1/namespaces/default"
LEASE_NAME = "calico-kube-controllers"


def _roles(*, copies: bool = False) -> list[dict[str, Any]]:
    """The manifest's, without or only with what only etcd needs."""
    found = yaml.safe_load_all(MANIFEST.read_text())
    return [one for one in found if "rules" in one and one["metadata"]["name"].endswith("-copies") == copies]


GRANTS = sorted({grant for role in _roles() for grant in granted(role)})


@pytest.fixture
def rights(apiserver: ApiServer) -> Iterator[None]:
    """What the manifest grants, in force, but for what only etcd needs."""
    made = []
    for document in yaml.safe_load_all(MANIFEST.read_text()):
        meta, kind = document["metadata"], document["kind"]
        if kind == "ServiceAccount" or meta["name"].endswith("-copies"):
            continue
        namespace = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
        where = f"{RBAC}{namespace}/{kind.lower()}s"
        apiserver.ask("POST", where, document)
        made.append(f"{where}/{meta['name']}")

    grants = {grant: about(grant) for grant in GRANTS}
    wait_until(lambda: all(in_force(apiserver, LEASE_NAME, grants)), what="the roles to be known")
    yield
    for path in made:
        apiserver.ask("DELETE", path)
    wait_until(lambda: not any(in_force(apiserver, LEASE_NAME, grants)), what="the roles to be forgotten")


def about(grant: Grant) -> Asked:
    """What the controllers would ask for with it."""
    return Asked("kube-system", LEASE_NAME if grant.resource == "leases" else "x")


@pytest.fixture(scope="module")
def users(apiserver_process: ApiServer) -> dict[Grant, str]:
    """Each verb -> a user who may do all that controllers may but that."""
    return users_without(apiserver_process, _roles())


@pytest.mark.parametrize("grant", GRANTS, ids=str)
def test_a_verb_that_is_taken_away_is_missed(
    apiserver_process: ApiServer, users: dict[Grant, str], grant: Grant
) -> None:
    assert not may(apiserver_process, users[grant], grant, about(grant))
    another = next(user for one, user in users.items() if one != grant)
    assert may(apiserver_process, another, grant, about(grant))


def test_no_secret_can_be_read(apiserver: ApiServer, rights: None) -> None:
    eventually(lambda: no_secrets(apiserver, LEASE_NAME))


def test_with_its_own_rights_it_gives_back_and_assigns(
    apiserver: ApiServer,
    rights: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(apiserver.kubeconfig(CONTROLLERS_TOKEN))
    env = {"DATASTORE_TYPE": "kubernetes", "KUBECONFIG": str(kubeconfig)}
    _prepare(apiserver)
    asked = spy(monkeypatch, CONTROLLERS_TOKEN)

    async def scenario() -> None:
        client = Client(KubernetesBackend(apiserver.config()))
        await ensure_initialized(client, "", "another")  # so that there is something to add to
        await client.create(_pool("pods", "10.9.0.0/24"))
        await client.create(_pool("lb", "10.8.0.0/24", "LoadBalancer"))
        await _fill(apiserver, client)
        running = asyncio.create_task(_run(Process(env, str(tmp_path / "status.json"))))
        try:
            async with asyncio.timeout(300):
                await _configure(client)
                await _watch_it_happen(apiserver, client)
        finally:
            await cancel([running])
        await client.delete(ClusterInformation, "default")
        with_its_rights = Client(KubernetesBackend(apiserver.config(k8sAPIToken=CONTROLLERS_TOKEN)))
        await _rare_things(with_its_rights)
        for one in (client, with_its_rights):
            await one.close()

    run(scenario(), deadline=400)
    assert "unauthorized" not in caplog.text
    assert asked.keys() == set(GRANTS)


def _prepare(apiserver: ApiServer) -> None:
    for node in ("n1", "n2"):
        apiserver.ask("POST", "/api/v1/nodes", {"metadata": {"name": node}})
    for name in ("web", "new"):
        spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "x"}]}
        apiserver.ask("POST", f"{DEFAULT}/pods", {"metadata": {"name": name}, "spec": spec})
    # An affinity of an older release: it has no labels to be found by.
    old = {"cidr": "10.9.0.192/26", "node": "n2", "state": "confirmed", "deleted": "false", "type": "host"}
    apiserver.put_custom("blockaffinities", "BlockAffinity", "n2-10-9-0-192-26", {}, {"spec": old})
    service = {"metadata": {"name": "shop"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}
    apiserver.ask("POST", f"{DEFAULT}/services", service)


async def _fill(apiserver: ApiServer, client: Client) -> None:
    """Addresses that are used, and that nobody uses."""
    web = await _assigned(client, "n1", "web")
    await _assigned(client, "n1", "new")  # kubelet has not told its address yet
    await _assigned(client, "n1", "nobody")
    await _assigned(client, "n2", "lost")
    # A VM's that stopped: until it is known for five minutes that there is no such VM, it stays.
    stopped = AutoAssign(use="Workload", num4=1, handle="net.vmi.default.idle")
    (await Allocator(client, "n1").auto_assign(stopped)).require_all()
    status = {"status": {"podIP": web, "podIPs": [{"ip": web}], "phase": "Running"}}
    merge = "application/merge-patch+json"
    await _ask(apiserver, "PATCH", f"{DEFAULT}/pods/web/status", status, merge)
    await _ask(apiserver, "DELETE", "/api/v1/nodes/n2")


async def _rare_things(client: Client) -> None:
    """A cluster that nobody has initialised, a write that comes too late, a handle with two addresses."""
    await ensure_initialized(client, "", "k8s")
    made = await client.get(KubeControllersConfiguration, NAME)
    await client.update(structs.replace(made, spec=KubeControllersConfigurationSpec(debugProfilePort=1)))
    with pytest.raises(UpdateConflict):
        await client.update(structs.replace(made, spec=KubeControllersConfigurationSpec(debugProfilePort=2)))
    handle = await client.backend.create(HandleKey("two"), Handle(block={"10.9.0.0/26": 2}))
    await client.backend.update(dataclasses.replace(handle, value=Handle(block={"10.9.0.0/26": 1})))


async def _configure(client: Client) -> None:
    """Once it is made, and answered."""
    while True:
        try:
            made = await client.get(KubeControllersConfiguration, NAME)
            if made.status:
                break
        except ResourceDoesNotExist:
            pass
        await asyncio.sleep(0.1)
    node = NodeController(leakGracePeriod="1s", hostEndpoint=AutoHostEndpoints(autoCreate="Enabled"))
    controllers = Controllers(node=node, loadBalancer=LoadBalancerController(assignIPs="AllServices"))
    spec = KubeControllersConfigurationSpec(prometheusMetricsPort=0, controllers=controllers)
    await client.update(structs.replace(made, spec=spec))


async def _watch_it_happen(apiserver: ApiServer, client: Client) -> None:
    while await _holders(client) != {"web", "new", "net.vmi.default.idle", "service shop"}:
        await asyncio.sleep(0.1)
    while await _owners(client) != {"host:n1", "virtual:load-balancer"}:
        await asyncio.sleep(0.1)
    shop = f"{DEFAULT}/services/shop"
    while not (await _ask(apiserver, "GET", shop))["status"]["loadBalancer"]:
        await asyncio.sleep(0.1)
    await _ask(apiserver, "POST", "/api/v1/nodes", {"metadata": {"name": "n3"}})
    await _endpoints(client)
    made = await client.get(HostEndpoint, "n1-auto-hep")
    spec = structs.replace(made.spec, expectedIPs=("192.0.2.77",))
    await client.update(structs.replace(made, spec=spec))
    lost = structs.replace(made, spec=structs.replace(made.spec, node="n2"))
    await client.create(
        lost.with_metadata(name="n2-auto-hep", resourceVersion="", uid="", creationTimestamp=None)
    )
    await _endpoints(client)
    await _ask(apiserver, "DELETE", shop)
    while await _holders(client) != {"web", "new", "net.vmi.default.idle"}:
        await asyncio.sleep(0.1)


async def _endpoints(client: Client) -> None:
    """Until the host endpoints are what they are to be."""
    while {one.name: one.spec.expectedIPs for one in (await client.list(HostEndpoint)).items} != {
        "n1-auto-hep": (),
        "n3-auto-hep": (),
    }:
        await asyncio.sleep(0.1)


def _pool(name: str, cidr: str, *uses: str) -> IPPool:
    return IPPool(metadata=ObjectMeta(name=name), spec=IPPoolSpec(cidr=cidr, allowedUses=uses))


async def _assigned(client: Client, node: str, pod: str) -> str:
    attributes = {"node": node, "namespace": "default", "pod": pod}
    request = AutoAssign(use="Workload", num4=1, handle=f"net.{pod}", attributes=attributes)
    answer = await Allocator(client, node).auto_assign(request)
    answer.require_all()
    assert answer.v4 is not None
    return answer.v4.addresses[0].partition("/")[0]


async def _holders(client: Client) -> set[str]:
    found = [a for block in await Allocator(client, "x").blocks() for a in block.attributes]
    return {_holder(one) for one in found}


def _holder(one: AllocationAttribute) -> str:
    if service := one.secondary.get("service"):
        return f"service {service}"
    return one.secondary.get("pod") or one.handle_id or ""


async def _owners(client: Client) -> set[str | None]:
    return {block.affinity for block in await Allocator(client, "x").blocks()}


async def _ask(apiserver: ApiServer, *words: Any) -> Any:
    return await asyncio.to_thread(apiserver.ask, *words)


async def _run(process: Process) -> None:
    await process.run(0)
