"""The rows of the list of edge cases that concern the plugin, with the Kubernetes API as the datastore.

Those whose story is told by CNI calls alone are the very tests of test_cni_cases. The others are told of
pods here: a container that is no pod (row 44) has no place in this datastore.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cni import test_cni_cases as cases
from tests.netns_lab import Namespace, eventually
from tests.support.cni import NETWORK, WARM_HANDLE, Servers, calico, pool
from tests.support.cni_kubernetes import KubernetesMachine
from tests.support.etcd import Etcd, wait_until
from tests.support.kubernetes import ApiServer
from tortie.core.errors import CniError
from tortie.lab.runtime import Attachment

pytestmark = pytest.mark.kernel

_POD = "/api/v1/namespaces/default/pods/nginx"
_MERGE = "application/merge-patch+json"

# Told in other words below, or about containers that are no pods, or about etcd.
_OTHERS = (
    "test_row_44_repeated_add_of_a_container_changes_nothing",
    "test_row_50_delete_waits_for_the_datastore_to_come_back",
    "test_row_51_delete_beside_somebody_who_keeps_changing_the_endpoint",
    "test_row_52_an_endpoint_that_is_gone_already",
    "test_row_55_a_failure_after_ipam_releases_the_address",
    "test_row_57_an_address_can_be_asked_for",
    "test_an_endpoint_that_nobody_can_read_does_not_stay",
)
globals().update(
    {name: test for name, test in vars(cases).items() if name.startswith("test_") and name not in _OTHERS}
)


@pytest.fixture
def bare_machine(
    cni_host: tuple[Namespace, Etcd], cni_servers: Servers, shim: Path, apiserver: ApiServer, tmp_path: Path
) -> Iterator[KubernetesMachine]:
    one = KubernetesMachine(cni_host[0], apiserver, cni_servers, tmp_path, shim)
    one.clear()
    yield one
    one.close()


@pytest.fixture
def machine(bare_machine: KubernetesMachine) -> KubernetesMachine:
    bare_machine.seed()
    bare_machine.start_server()
    return bare_machine


def test_an_add_with_a_ready_address_asks_nothing(bare_machine: KubernetesMachine) -> None:
    """The API is away, and the pod is known already by what it told before: its UID says which one it is."""
    machine = bare_machine
    machine.start_warm_server("4:4")
    chain, answered = machine.chain(), list[Attachment]()

    def answers() -> bool:
        """Once this pod is known, which can be seen by nothing else."""
        name = f"pod-{len(machine.pods)}"
        made = machine.pod(name)
        uid = machine.api.ask("GET", f"/api/v1/namespaces/default/pods/{name}")["metadata"]["uid"]
        one = replace(made, args={**made.args, "K8S_POD_UID": uid})
        machine.relay.refuse = True
        machine.relay.cut()
        try:
            chain.add(one)
            answered.append(one)
        except CniError:
            machine.relay.refuse = False
            eventually(lambda: not cases._fails(chain.delete, one))
        finally:
            machine.relay.refuse = False
        return bool(answered)

    for line in ("may answer at once", "of this node's pods are known"):
        wait_until(lambda line=line: line in machine.log.read_text(), what=line)  # type: ignore[misc]
    wait_until(lambda: '{version="4"} 4\n' in machine.warm_metrics(), what="addresses")
    eventually(answers, 240)
    eventually(lambda: len(machine.endpoints()) == 1, 120)
    eventually(lambda: not cases._fails(chain.check, answered[0]), 120)
    chain.delete(answered[0])
    assert machine.endpoints() == {} and set(machine.held().values()) <= {WARM_HANDLE}


def test_row_50_delete_waits_for_the_api_to_come_back(machine: KubernetesMachine) -> None:
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    machine.relay.refuse = True
    machine.relay.cut()
    with pytest.raises(CniError) as caught:
        chain.delete(pod)
    assert caught.value.code == 11
    assert machine.inside(pod).ip("link", "show", "dev", "eth0") and machine.held()
    machine.relay.refuse = False
    eventually(lambda: not cases._fails(chain.delete, pod))
    assert not machine.remains()


def test_row_51_delete_beside_somebody_who_keeps_changing_the_pod(machine: KubernetesMachine) -> None:
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            machine.api.ask("PATCH", _POD, {"metadata": {"labels": {"n": str(number)}}}, _MERGE)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        eventually(lambda: not cases._fails(chain.delete, pod))
    finally:
        stop.set()
        changing.join()
    assert not machine.remains()


def test_row_52_a_pod_that_is_gone_already(machine: KubernetesMachine) -> None:
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    machine.api.ask("DELETE", _POD, {"gracePeriodSeconds": 0})
    chain.delete(pod)
    assert not machine.remains()
    with pytest.raises(CniError, match="nginx"):
        chain.add(pod)
    assert not machine.remains()


def test_row_55_a_pods_failure_after_ipam_releases_the_address(machine: KubernetesMachine) -> None:
    pod = machine.pod()
    machine.inside(pod).veth("eth0", "other")
    with pytest.raises(CniError, match="File exists"):
        machine.chain().add(pod)
    assert not machine.remains()


def test_row_57_a_pod_can_ask_for_an_address(machine: KubernetesMachine) -> None:
    """In CNI_ARGS, and in the annotation that the API has."""
    chain = machine.chain()
    pod = machine.pod(annotations={"cni.projectcalico.org/ipAddrs": '["10.65.0.7"]'})
    assert cases.address(chain.add(pod)) == "10.65.0.7"
    with pytest.raises(CniError, match=r"10\.65\.0\.7 is held by pod default/nginx on node node-1"):
        chain.add(machine.pod("other", annotations={"cni.projectcalico.org/ipAddrs": '["10.65.0.7"]'}))
    found = machine.api.ask("GET", _POD)["metadata"]["annotations"]
    assert found["cni.projectcalico.org/podIP"] == "10.65.0.7/32"
    chain.delete(pod)
    assert not machine.remains()


def test_use_pod_cidr_of_the_api(machine: KubernetesMachine) -> None:
    machine.api.ask("PATCH", "/api/v1/nodes/node-1", {"spec": {"podCIDRs": ["10.77.3.0/24"]}}, _MERGE)
    ipam = {"type": "host-local", "dataDir": str(machine.folder / "networks"), "subnet": "usePodCidr"}
    chain, pod = machine.chain(calico(ipam=ipam)), machine.pod()
    assert cases.address(chain.add(pod)) == "10.77.3.2"
    chain.check(pod)
    chain.delete(pod)
    assert not machine.remains()


def test_row_44_a_container_that_is_no_pod_has_no_place(machine: KubernetesMachine) -> None:
    done = machine.run("ADD", cases.PLAIN, **cases.plain_settings(machine))
    assert done.returncode == 1 and json.loads(done.stdout)["msg"]
    assert not machine.remains()


def test_a_second_calico_interface_is_refused_and_the_first_left_alone(machine: KubernetesMachine) -> None:
    """Its endpoint would be the same pod's, and overwrite the first one's addresses."""
    machine.write(pool("second", "10.66.0.0/24"))
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    before = machine.remains()
    other = machine.chain(calico(ipam={"type": "calico-ipam"}), name="storage")
    net1 = Attachment(pod.container_id, pod.netns, "net1", pod.args)
    with pytest.raises(CniError, match="a pod has room for one endpoint"):
        other.add(net1)
    assert machine.remains() == before
    chain.check(pod)
    assert set(machine.held().values()) == {f"{NETWORK}.{pod.container_id}"}
