"""Services, what is behind them, and Secrets: from the JSON of the API, and on a real kube-apiserver."""

import asyncio
import base64
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from tests.support.aio import eventually, run
from tests.support.kubernetes import NODE_TOKEN, ApiServer
from tests.support.rbac import Asked, Grant, in_force
from tests.support.replay import Replay
from tortie.core.errors import OperationNotSupported, Unauthorized, ValidationError
from tortie.datastore.keys import Key, Listing, parse
from tortie.datastore.kubernetes.backend import KubernetesBackend
from tortie.datastore.kubernetes.services import (
    read_endpoints,
    read_secret,
    read_service,
    read_slice,
    slices_version,
)
from tortie.datastore.nativekeys import SecretKey, SecretList, ServiceKey, ServiceList, SliceKey, SliceList
from tortie.datastore.syncer import Syncer
from tortie.datastore.types.service import Service

_DEADLINE = 120.0  # seconds; all is over in a few, unless the machine is busy
_DISCOVERY = "/apis/discovery.k8s.io/v1beta1"


def encoded(kind: str, **fields: Any) -> bytes:
    metadata = {"name": "web", "namespace": "shop", "resourceVersion": "7"}
    return msgspec.json.encode({"kind": kind, "metadata": metadata, **fields})


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("key", [ServiceKey("shop", "web"), SliceKey("shop", "web-x"), SecretKey("a", "b")])
def test_a_path_leads_back_to_its_key(key: Key) -> None:
    assert parse(key.path()) == key


@pytest.mark.unit
def test_a_service_of_a_server_without_families_has_its_addresses() -> None:
    found = read_service(encoded("Service", spec={"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}))
    assert (found.key, found.revision) == (ServiceKey("shop", "web"), "7")
    assert found.value.spec.addresses == ("10.96.0.10",)
    assert found.value.spec.families == ("IPv4",)
    both = read_service(
        encoded("Service", spec={"clusterIP": "fd00::a", "clusterIPs": ["fd00::a", "10.96.0.1"]})
    )
    assert both.value.spec.families == ("IPv6", "IPv4")


@pytest.mark.unit
def test_a_slice_of_either_version_says_which_node_an_endpoint_is_on() -> None:
    old = {"addresses": ["10.0.0.1"], "topology": {"kubernetes.io/hostname": "n1"}}
    new = {"addresses": ["10.0.0.2"], "nodeName": "n2", "conditions": {"ready": None}}
    found = read_slice(
        encoded(
            "EndpointSlice", addressType="IPv4", endpoints=[old, new], ports=[{"port": 80}, {"name": "x"}]
        )
    )
    assert [one.node for one in found.value.endpoints] == ["n1", "n2"]
    assert [(one.port, one.protocol) for one in found.value.ports] == [(80, "TCP"), (None, "TCP")]


@pytest.mark.unit
def test_endpoints_read_as_the_slice_that_says_the_same() -> None:
    subsets = [
        {"addresses": [{"ip": "10.0.0.1", "nodeName": "n1"}], "ports": [{"port": 80}]},
        {"notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 53, "protocol": "UDP"}]},
    ]
    found = read_endpoints(encoded("Endpoints", subsets=subsets)).value
    assert found.service == ("shop", "web") and found.addressType == "IPv4"
    ready, other = found.endpoints
    assert (ready.addresses, ready.node, ready.conditions.ready) == (("10.0.0.1",), "n1", True)
    assert (other.node, other.conditions.ready) == ("", False)
    assert [[(p.port, p.protocol) for p in one.ports] for one in (ready, other)] == [
        [(80, "TCP")],
        [(53, "UDP")],
    ]
    assert read_endpoints(encoded("Endpoints")).value.endpoints == ()


@pytest.mark.unit
def test_nothing_of_a_secret_is_in_what_is_said_of_it() -> None:
    for data in ({"key": "cGFzc3dvcmQ"}, {"key": ["hunter2"]}, "hunter2"):
        with pytest.raises(ValidationError) as caught:
            read_secret(encoded("Secret", data=data))
        assert "hunter2" not in str(caught.value) and "cGFz" not in str(caught.value)
    assert read_secret(encoded("Secret", data=None)).value.data == {}


@pytest.mark.unit
def test_the_best_version_of_slices_that_the_server_has() -> None:
    def group(*versions: str) -> bytes:
        return msgspec.json.encode({"versions": [{"version": one} for one in versions]})

    assert slices_version(group("v1beta1", "v1")) == "v1"
    assert slices_version(group("v1beta1")) == "v1beta1"
    assert slices_version(group("v9")) == slices_version(None) == ""


# --- on a server --------------------------------------------------------------------------------


def slice_of(service: str, *addresses: str, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{service}-x", "labels": {"kubernetes.io/service-name": service, **labels}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [one]} for one in addresses],
    }


@pytest.mark.kernel
def test_services_and_slices_are_followed(apiserver: ApiServer) -> None:
    def ask(method: str, path: str, body: Any = None) -> Any:
        return asyncio.to_thread(apiserver.ask, method, path, body)

    async def scenario() -> None:
        backend = KubernetesBackend(apiserver.config())
        replay = Replay()
        listings: list[Listing] = [ServiceList(), SliceList(headless=False)]
        following = asyncio.create_task(replay.consume(Syncer(backend, listings)))
        try:
            await eventually(lambda: replay.in_sync, _DEADLINE)
            spec = {"ports": [{"port": 80}], "externalIPs": ["203.0.113.7"]}
            services, slices = (
                "/api/v1/namespaces/shop/services",
                f"{_DISCOVERY}/namespaces/shop/endpointslices",
            )
            await ask("POST", services, {"metadata": {"name": "web"}, "spec": spec})
            headless = {"service.kubernetes.io/headless": ""}
            await ask("POST", slices, slice_of("none", "10.0.0.9", **headless))
            await ask("POST", slices, slice_of("web", "10.0.0.1"))
            web, behind = ServiceKey("shop", "web"), SliceKey("shop", "web-x")
            await eventually(lambda: {web, behind} <= replay.state.keys(), _DEADLINE)
            assert SliceKey("shop", "none-x") not in replay.state
            assert replay.state[web].spec.externalIPs == ("203.0.113.7",)
            assert replay.state[web].spec.families == ("IPv4",)
            assert replay.state[behind].service == ("shop", "web")
            await ask("DELETE", f"{slices}/web-x")
            await eventually(lambda: behind not in replay.state, _DEADLINE)
            everything = await backend.list(SliceList())
            assert [str(kv.key) for kv in everything.items] == ["EndpointSlice(shop/none-x)"]
            assert (await backend.get(web)).value.metadata.name == "web"
            with pytest.raises(OperationNotSupported):
                await backend.apply(web, Service())
        finally:
            following.cancel()
            await asyncio.wait([following])
            await backend.close()

    run(scenario())


async def grant_one_secret(server: ApiServer, name: str) -> None:
    """The Role that docs/operations.md gives for it."""
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system"
    rule = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [name], "verbs": ["list", "watch"]}
    subject = {"kind": "ServiceAccount", "name": "calico-node", "namespace": "kube-system"}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "bgp-secrets"}
    metadata = {"name": "bgp-secrets"}
    binding = {"metadata": metadata, "roleRef": reference, "subjects": [subject]}
    await asyncio.to_thread(server.ask, "POST", f"{rbac}/roles", {"metadata": metadata, "rules": [rule]})
    await asyncio.to_thread(server.ask, "POST", f"{rbac}/rolebindings", binding)


@pytest.mark.kernel
def test_one_secret_is_read_and_no_other(apiserver: ApiServer) -> None:
    async def scenario() -> None:
        backend = KubernetesBackend(apiserver.config())
        try:
            for name, value in (("bgp", b"one"), ("other", b"two")):
                body = {"metadata": {"name": name}, "data": {"key": base64.b64encode(value).decode()}}
                await asyncio.to_thread(apiserver.ask, "POST", "/api/v1/namespaces/kube-system/secrets", body)
            found = await backend.list(SecretList("kube-system", "bgp"))
            assert [(kv.key, kv.value.data) for kv in found.items] == [
                (SecretKey("kube-system", "bgp"), {"key": b"one"})
            ]
            assert (await backend.list(SecretList("default", "bgp"))).items == []
            await grant_one_secret(apiserver, "bgp")
            reads = {Grant("", "secrets", verb): Asked("kube-system", "bgp") for verb in ("list", "watch")}
            while not all(await asyncio.to_thread(in_force, apiserver, NODE_TOKEN, reads)):
                await asyncio.sleep(0.05)
            node = KubernetesBackend(apiserver.config(k8sAPIToken=NODE_TOKEN))
            listed = await node.list(SecretList("kube-system", "bgp"))
            assert len(listed.items) == 1
            async with aclosing(node.watch(SecretList("kube-system", "bgp"), listed.revision)) as events:  # type: ignore[type-var]
                async for _ in events:
                    break
            with pytest.raises(Unauthorized):
                await node.list(SecretList("kube-system", "other"))
            await node.close()
            for name in ("..", "a/b", "a%2fb"):
                with pytest.raises(ValidationError):
                    await backend.list(SecretList("kube-system", name))
        finally:
            await backend.close()

    run(scenario())
