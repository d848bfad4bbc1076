"""A KubeVirt VM's address on a real kube-apiserver: started, restarted, migrated, deleted."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.netns_lab import Namespace, eventually
from tests.support.cni import NETWORK, WARM_HANDLE, Servers
from tests.support.cni_kubernetes import KubernetesMachine
from tests.support.etcd import Etcd, wait_until
from tests.support.kubernetes import ApiServer
from tortie.core.errors import CniError, ResourceDoesNotExist
from tortie.datastore.connect import connect
from tortie.datastore.types.ipam import IPAMConfig
from tortie.ipam.allocator import Allocator
from tortie.lab.apiserver import REGISTRY
from tortie.lab.runtime import Attachment

pytestmark = pytest.mark.kernel

GROUP = "kubevirt.io"
KINDS = {"VirtualMachine": "virtualmachines", "VirtualMachineInstance": "virtualmachineinstances"}
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
HANDLE = f"{NETWORK}.vmi.default.vm"
AT_ONCE = {"gracePeriodSeconds": 0}
Users = dict[str, tuple[str, str]]  # address -> pods that use it: the active and the alternate one


def definition(kind: str) -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": kind, "plural": KINDS[kind], "singular": kind.lower()}
    spec = {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{KINDS[kind]}.{GROUP}"},
        "spec": spec,
    }


def where(kind: str, name: str = "") -> str:
    return f"/apis/{GROUP}/v1/namespaces/default/{KINDS[kind]}" + (f"/{name}" if name else "")


def reference(made: dict[str, Any]) -> dict[str, Any]:
    meta = made["metadata"]
    about = {"apiVersion": made["apiVersion"], "kind": made["kind"], "controller": True}
    return {**about, "name": meta["name"], "uid": meta["uid"]}


@dataclass(slots=True)
class Virtual:
    """KubeVirt's part: a VM named `vm`, its instance, and the pods that run it."""

    machine: KubernetesMachine

    def make(self, kind: str, owner: dict[str, Any] | None = None) -> dict[str, Any]:
        # As KubeVirt's do, it stays until somebody has done his part of its deletion.
        meta: dict[str, Any] = {"name": "vm", "finalizers": ["kubevirt.io/test"]}
        if owner is not None:
            meta["ownerReferences"] = [reference(owner)]
        body = {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": meta}
        found: dict[str, Any] = self.machine.api.ask("POST", where(kind), body)
        return found

    def delete(self, kind: str, *, finish: bool = True) -> None:
        self.machine.api.ask("DELETE", where(kind, "vm"))
        if finish:
            done: dict[str, Any] = {"metadata": {"finalizers": []}}
            self.machine.api.ask("PATCH", where(kind, "vm"), done, "application/merge-patch+json")

    def pod(self, name: str, instance: dict[str, Any], migration: str = "") -> Attachment:
        labels = {"kubevirt.io/migrationJobUID": migration} if migration else {}
        meta = {"name": name, "labels": labels, "ownerReferences": [reference(instance)]}
        spec = {"nodeName": "node-1", "containers": [{"name": "c", "image": "x"}]}
        self.machine.api.ask("POST", "/api/v1/namespaces/default/pods", {"metadata": meta, "spec": spec})
        return self.machine.pod(name)

    def forget(self, name: str) -> None:
        self.machine.api.ask("DELETE", f"/api/v1/namespaces/default/pods/{name}", AT_ONCE)

    def users(self) -> Users:
        """Of the VM's addresses."""

        async def read() -> Users:
            client = connect(self.machine.api.config())
            try:
                found = await Allocator(client, "x").users_by_handle(HANDLE)
            except ResourceDoesNotExist:
                return {}
            finally:
                await client.close()
            sides = {a: (one.secondary, one.alternateOwnerAttrs) for a, one in found.items()}
            return {a: (one.get("pod", ""), other.get("pod", "")) for a, (one, other) in sides.items()}

        return asyncio.run(read())

    def persist(self, value: str) -> None:
        async def write() -> None:
            client = connect(self.machine.api.config())
            await Allocator(client, "x").set_config(
                IPAMConfig(auto_allocate_blocks=True, kubeVirtVMAddressPersistence=value)
            )
            await client.close()

        asyncio.run(write())


@pytest.fixture(scope="module")
def kubevirt(apiserver_process: ApiServer) -> Iterator[None]:
    """Its kinds, for as long as these tests."""
    api = apiserver_process
    for kind in KINDS:
        api.ask("POST", DEFINITIONS, definition(kind))
    wait_until(lambda: all(_served(api, kind) for kind in KINDS), what="KubeVirt's kinds to be served")
    yield
    for plural in KINDS.values():
        api.ask("DELETE", f"{DEFINITIONS}/{plural}.{GROUP}")


def _served(apiserver: ApiServer, kind: str) -> bool:
    try:
        apiserver.ask("GET", where(kind))
    except RuntimeError:
        return False
    return True


@pytest.fixture
def virtual(
    cni_host: tuple[Namespace, Etcd],
    cni_servers: Servers,
    shim: Path,
    apiserver: ApiServer,
    kubevirt: None,
    tmp_path: Path,
) -> Iterator[Virtual]:
    """A node with addresses ready, which no VM is to get."""
    machine = KubernetesMachine(cni_host[0], apiserver, cni_servers, tmp_path, shim)
    machine.clear()
    machine.start_warm_server("1:1")
    yield Virtual(machine)
    machine.close()
    apiserver.etcd.delete_all(f"{REGISTRY}{GROUP}/")


def address(result: dict[str, Any]) -> str:
    (one,) = result["ips"]
    return str(one["address"]).partition("/")[0]


def test_a_vm_keeps_its_address_until_it_is_deleted(virtual: Virtual) -> None:
    machine, chain = virtual.machine, virtual.machine.chain()
    wait_until(lambda: '{version="4"} 1\n' in machine.warm_metrics(), what="an address to be ready")
    ready = machine.ready_addresses()
    vm = virtual.make("VirtualMachine")
    instance = virtual.make("VirtualMachineInstance", vm)
    first = virtual.pod("virt-launcher-vm-a", instance)
    result = chain.add(first)
    own = address(result)
    assert machine.held()[own] == HANDLE and own not in ready and result["routes"]
    assert virtual.users() == {own: (first.args["K8S_POD_NAME"], "")}
    chain.check(first)

    # The same pod in another sandbox; that the old one is deleted late must not matter.
    again = machine.pod("virt-launcher-vm-a", "a" * 64)
    assert address(chain.add(again)) == own
    chain.delete(first)
    assert virtual.users() == {own: ("virt-launcher-vm-a", "")}

    # Restarted: nobody has the address for a moment, but it stays the VM's.
    chain.delete(again)
    virtual.forget("virt-launcher-vm-a")
    assert virtual.users() == {own: ("", "")}
    virtual.delete("VirtualMachineInstance")
    instance = virtual.make("VirtualMachineInstance", vm)
    source = virtual.pod("virt-launcher-vm-b", instance)
    assert address(chain.add(source)) == own

    # Migrated: until that is done the host leads nothing to the target.
    target = virtual.pod("virt-launcher-vm-c", instance, "job")
    route = machine.host.ip("route", "show", own)
    result = chain.add(target)
    assert address(result) == own and not result.get("routes")
    assert machine.host.ip("route", "show", own) == route
    chain.check(target)
    assert virtual.users() == {own: ("virt-launcher-vm-b", "virt-launcher-vm-c")}
    chain.delete(source)
    assert virtual.users() == {own: ("virt-launcher-vm-c", "")}

    # Deleted: its last pod gives the address back.
    virtual.delete("VirtualMachine", finish=False)
    chain.delete(target)
    chain.delete(target)
    assert own not in machine.held() and virtual.users() == {}
    wait_until(lambda: set(machine.held().values()) == {WARM_HANDLE}, what="nothing but what is kept ready")
    assert not machine.remains().interfaces


def test_a_migration_that_fails_leaves_the_address_to_the_source(virtual: Virtual) -> None:
    """And one of an instance without a VM goes with it; before it has an address, nothing can migrate."""
    chain = virtual.machine.chain()
    instance = virtual.make("VirtualMachineInstance")
    early = virtual.pod("virt-launcher-vm-x", instance, "job")
    with pytest.raises(CniError, match=f"migration target pod but no IP allocated to VM handle {HANDLE}"):
        chain.add(early)
    source = virtual.pod("virt-launcher-vm-a", instance)
    own = address(chain.add(source))
    target = virtual.pod("virt-launcher-vm-b", instance, "job")
    virtual.machine.inside(target).veth("eth0", "other")
    with pytest.raises(CniError, match="File exists"):
        chain.add(target)
    assert virtual.users() == {own: ("virt-launcher-vm-a", "")}
    virtual.delete("VirtualMachineInstance")
    with pytest.raises(CniError, match="VirtualMachineInstance default/vm does not exist"):
        chain.add(virtual.pod("virt-launcher-vm-c", instance))
    chain.delete(source)
    assert virtual.users() == {} and own not in virtual.machine.held()


def test_without_persistence_a_vms_pod_is_as_any_other(virtual: Virtual) -> None:
    """What its VM had until then goes with the last pod; a pod that is gone already needs nothing more."""
    machine, chain = virtual.machine, virtual.machine.chain()
    instance = virtual.make("VirtualMachineInstance", virtual.make("VirtualMachine"))
    old = virtual.pod("virt-launcher-vm-a", instance)
    own = address(chain.add(old))
    virtual.persist("Disabled")
    target = virtual.pod("virt-launcher-vm-b", instance, "job")

    def refused() -> bool:
        try:
            chain.add(target)
        except CniError as err:
            return "live migration target pod is not allowed" in str(err)
        return False

    eventually(refused)
    plain, gone = (virtual.pod(f"virt-launcher-vm-{name}", instance) for name in ("c", "d"))
    for one in (plain, gone):
        assert address(chain.add(one)) != own
        chain.check(one)
    chain.check(old)
    chain.delete(old)
    assert virtual.users() == {}
    virtual.forget("virt-launcher-vm-d")
    chain.delete(plain)
    chain.delete(gone)
    wait_until(lambda: set(machine.held().values()) == {WARM_HANDLE}, what="nothing but what is kept ready")
