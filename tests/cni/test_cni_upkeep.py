"""CHECK, GC and STATUS on a real host: what they find, what they remove, and what they leave alone."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.netns_lab import eventually
from tests.support.cni import NODE, Machine, calico, host_name, path_of, pool
from tortie.core.errors import CniError
from tortie.datastore.types.endpoint import WorkloadEndpoint, WorkloadEndpointSpec
from tortie.datastore.types.meta import ObjectMeta
from tortie.linux import links

pytestmark = pytest.mark.kernel

DUAL = calico(ipam={"type": "calico-ipam", "assign_ipv6": "true"})
HOST = host_name("default", "nginx")


@pytest.fixture
def machine(bare_machine: Machine) -> Machine:
    bare_machine.seed(pool("v4", "10.65.0.0/24"), pool("v6", "fd00:65::/112"))
    bare_machine.start_server()
    return bare_machine


# --- CHECK --------------------------------------------------------------------------------------


def edit_endpoint(machine: Machine, **spec: object) -> None:
    ((name, endpoint),) = machine.endpoints().items()
    endpoint["spec"] |= spec
    path = f"/calico/resources/v3/projectcalico.org/workloadendpoints/{name}"
    machine.host.call(machine.etcd.put, path, json.dumps(endpoint))


def edit(**spec: object) -> Callable[[Machine], object]:
    return lambda machine: edit_endpoint(machine, **spec)


def inside(command: str) -> Callable[[Machine], object]:
    """A command run in the pod."""
    return lambda machine: machine.pods[0].run(*command.split())


def outside(command: str) -> Callable[[Machine], object]:
    """A command run on the host."""
    return lambda machine: machine.host.run(*command.split())


DAMAGES: dict[str, tuple[Callable[[Machine], object], str]] = {  # what -> (how, what CHECK says)
    "interface": (inside("ip link del eth0"), "interface eth0 is missing"),
    "host end": (outside(f"ip link set {HOST} name cali-x"), f"interface {HOST} is missing"),
    "down": (inside("ip link set eth0 down"), "interface eth0 is down"),
    "address": (inside("ip -4 addr flush dev eth0"), "address 10.65.0."),
    "address 6": (inside("ip -6 addr flush dev eth0"), "address fd00:65:"),
    "default": (inside("ip route del default"), "route 0.0.0.0/0 via 169.254.1.1 is missing"),
    "default 6": (inside("ip -6 route del default"), "route ::/0 via fe80::"),
    "gateway": (
        inside("ip route replace 169.254.1.1/32 via 169.254.1.1 dev eth0 onlink"),
        "route 169.254.1.1/32 is missing",
    ),
    "host route": (outside(f"ip route flush dev {HOST}"), "the host has no route to 10.65.0."),
    "mac": (inside("ip link set eth0 address 02:00:00:00:00:01"), "has MAC 02:00:00:00:00:01"),
    "endpoint": (lambda m: m.delete_endpoint(next(iter(m.endpoints()))), "WorkloadEndpoint is missing"),
    "container": (edit(containerID="other"), "belongs to container other"),
    "networks": (edit(ipNetworks=[]), "lacks address 10.65.0."),
    "interfaceName": (edit(interfaceName="cali1"), "has interface cali1"),
    "allocation": (
        lambda m: m.delete(f"/calico/ipam/v2/handle/{next(iter(m.held().values()))}"),
        "is not assigned to k8s-pod-network.",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_check_finds(machine: Machine, what: str) -> None:
    damage, said = DAMAGES[what]
    chain, pod = machine.chain(DUAL), machine.pod()
    chain.add(pod)
    chain.check(pod)
    damage(machine)
    with pytest.raises(CniError) as caught:
        chain.check(pod)
    assert said in str(caught.value)
    if what == "host end":
        machine.host.run("ip", "link", "del", "cali-x")


def test_check_needs_the_result_of_the_add(machine: Machine) -> None:
    pod = machine.pod()
    settings = {"CONTAINERID": pod.container_id, "NETNS": pod.netns, "IFNAME": "eth0"}
    for plugin in ("calico", "calico-ipam"):
        done = machine.run("CHECK", calico(name="n", cniVersion="1.0.0"), plugin, **settings)
        assert "prevResult" in json.loads(done.stdout)["msg"]


def test_check_of_calico_ipam(machine: Machine) -> None:
    settings = {"CONTAINERID": "c1", "NETNS": "/x", "IFNAME": "eth0"}
    conf = {"name": "n", "cniVersion": "1.0.0", "ipam": {"type": "calico-ipam"}}
    result = json.loads(machine.run("ADD", conf, "calico-ipam", **settings).stdout)
    assert machine.run("CHECK", conf | {"prevResult": result}, "calico-ipam", **settings).returncode == 0
    wrong = result | {"ips": [{"address": "10.65.0.250/26"}]}
    done = machine.run("CHECK", conf | {"prevResult": wrong}, "calico-ipam", **settings)
    assert "address 10.65.0.250 is not assigned" in json.loads(done.stdout)["msg"]


# --- GC -----------------------------------------------------------------------------------------


def test_gc_removes_what_the_runtime_does_not_know(machine: Machine) -> None:
    chain = machine.chain(DUAL, version="1.1.0")
    kept, gone = machine.pod("kept"), machine.pod("gone")
    result = chain.add(kept)
    chain.add(gone)
    chain.gc([kept])
    assert list(machine.endpoints()) == ["default/node--1-k8s-kept-eth0"]
    assert machine.remains().interfaces == [host_name("default", "kept")]
    assert sorted(machine.held()) == sorted(ip["address"].partition("/")[0] for ip in result["ips"])
    chain.check(kept)
    chain.gc([])
    assert not machine.remains()


def test_gc_leaves_other_networks_and_nodes_alone(machine: Machine) -> None:
    """Also a network whose name begins alike, which only an unlucky cut could confuse."""
    others = [machine.chain(name=name) for name in ("other", "net.a", "ne")]
    pods = [machine.pod(f"pod-{number}") for number in range(3)]
    for chain, pod in zip(others, pods, strict=True):
        chain.add(pod)
    spec = WorkloadEndpointSpec(
        orchestrator="k8s", node="node-2", pod="x", endpoint="eth0", containerID="far"
    )
    meta = ObjectMeta(name="node--2-k8s-x-eth0", namespace="default")
    machine.write(WorkloadEndpoint(metadata=meta, spec=spec))
    before = machine.remains()
    machine.chain(name="net", version="1.1.0").gc([])
    assert machine.remains() == before
    for chain, pod in zip(others, pods, strict=True):
        chain.check(pod)


def test_gc_knows_a_pods_old_sandbox_from_its_new_one(machine: Machine) -> None:
    chain = machine.chain(version="1.1.0")
    old, new = machine.pod(container="old"), machine.pod(container="new")
    chain.add(old)
    chain.add(new)
    chain.gc([new])
    assert list(machine.held().values()) == ["k8s-pod-network.new"]
    chain.check(new)


def test_gc_leaves_an_unmarked_interface_that_a_living_endpoint_names(machine: Machine) -> None:
    """As after an upgrade from Calico, whose plugin leaves no marks: one sandbox is gone, the pod lives."""
    chain = machine.chain(version="1.1.0")
    old, new = machine.pod(container="old"), machine.pod(container="new")
    chain.add(old)
    chain.add(new)
    machine.host.netlink.execute(links.change(HOST, alias=""))
    chain.gc([new])
    chain.check(new)
    chain.delete(new)
    assert not machine.remains()


def test_gc_of_plain_containers_and_of_calico_ipam(machine: Machine) -> None:
    conf = calico(policy={}, name="net", cniVersion="1.1.0")
    for container in ("c1", "c2"):
        settings = {"CONTAINERID": container, "NETNS": path_of(machine.namespace()), "IFNAME": "eth0"}
        assert machine.run("ADD", conf, **settings).returncode == 0
    valid = {"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}
    assert machine.run("GC", conf | valid).returncode == 0
    assert list(machine.endpoints()) == ["default/node--1-cni-c2-eth0"]
    assert list(machine.held().values()) == ["net.c2"]
    assert machine.run("GC", conf | {"cni.dev/valid-attachments": []}, "calico-ipam").returncode == 0
    assert not machine.held() and machine.endpoints()


def test_gc_needs_the_list_of_what_is_valid(machine: Machine) -> None:
    for plugin in ("calico", "calico-ipam"):
        done = machine.run("GC", calico(name="n", cniVersion="1.1.0"), plugin)
        assert done.returncode == 1 and "valid-attachments" in json.loads(done.stdout)["msg"]


def test_gc_goes_on_after_an_error_and_reports_it(machine: Machine) -> None:
    """The other IPAM plugin refuses; endpoint and interface go all the same."""
    script = machine.bin / "odd"
    result = '{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.9/24"}]}'
    script.write_text(f"#!/bin/sh\n[ $CNI_COMMAND = GC ] && exit 4; echo '{result}'\n")
    script.chmod(0o755)
    chain = machine.chain(calico(ipam={"type": "odd"}), version="1.1.0")
    chain.add(machine.pod())
    with pytest.raises(CniError, match="garbage collection is incomplete: addresses: IPAM plugin odd failed"):
        chain.gc([])
    assert not machine.remains()


# --- STATUS -------------------------------------------------------------------------------------


def status(machine: Machine, plugin: str = "calico") -> tuple[int, str]:
    """(code, msg) of the answer, (0, "") if the network is ready."""
    done = machine.run("STATUS", calico(name="n", cniVersion="1.1.0"), plugin)
    if done.returncode == 0:
        assert done.stdout == b""
        return 0, ""
    error = json.loads(done.stdout)
    return error["code"], error["msg"]


@pytest.mark.parametrize("plugin", ["calico", "calico-ipam"])
def test_status(machine: Machine, plugin: str) -> None:
    assert status(machine, plugin) == (0, "")
    machine.ready(False)
    assert status(machine, plugin) == (50, "Calico is currently not ready to process requests")
    machine.ready(True)
    assert status(machine, plugin) == (0, "")


def test_status_without_pools_or_node(machine: Machine) -> None:
    for name in ("v4", "v6"):
        machine.delete(f"/calico/resources/v3/projectcalico.org/ippools/{name}")
    assert eventually(lambda: status(machine) == (50, "cannot find a qualified ippool"))
    machine.write(pool("v4", "10.65.0.0/24"))
    eventually(lambda: status(machine) == (0, ""))
    machine.delete(f"/calico/resources/v3/projectcalico.org/nodes/{NODE}")
    assert eventually(lambda: status(machine)[0] == 50)


def test_status_without_datastore_or_nodename(machine: Machine) -> None:
    (machine.lib / "nodename").rename(machine.lib / "away")
    assert status(machine)[0] != 0
    (machine.lib / "away").rename(machine.lib / "nodename")
    machine.etcd.kill()
    code, said = status(machine)
    assert (code, said) == (50, "the datastore does not answer")


def test_status_of_an_invalid_pool(bare_machine: Machine) -> None:
    """Alone it is none; beside another it takes nothing away."""
    machine = bare_machine
    machine.seed(pool("bad", "10.70.0.0/24", nodeSelector="(("))
    machine.start_server()
    code, text = status(machine)
    assert code == 50 and "nodeSelector" in text
    machine.write(pool("good", "10.71.0.0/24"))
    assert eventually(lambda: status(machine)[0] == 0)


def test_a_full_pool_does_not_make_the_node_unready(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.seed(pool("tiny", "10.65.0.0/32", blockSize=32))
    machine.start_server()
    machine.chain().add(machine.pod())
    assert status(machine) == (0, "")


# --- calico -t, -v ------------------------------------------------------------------------------


def by_flag(machine: Machine, plugin: str, flag: str, conf: object = None) -> tuple[int, bytes]:
    stdin = json.dumps(conf or calico(name="n")).encode()
    done = machine.execute_program(str(machine.bin / plugin), {}, stdin, flag)
    return done.returncode, done.stdout


def test_flags(machine: Machine) -> None:
    for plugin in ("calico", "calico-ipam"):
        code, out = by_flag(machine, plugin, "-v")
        assert code == 0 and out.startswith(b"v")
    assert eventually(lambda: by_flag(machine, "calico", "-t") == (0, b""))  # it has two seconds for it
    code, out = by_flag(machine, "calico-ipam", "-upgrade")
    assert code == 1 and json.loads(out)["code"] == 100
    code, out = by_flag(machine, "calico", "-x")
    assert code == 1 and json.loads(out)["msg"] == "failed to parse CLI flags"


def test_the_connection_test_fails_when_it_should(machine: Machine) -> None:
    machine.ready(False)

    found: dict[str, Any] = {}

    def answered() -> bool:
        """Within the two seconds that it has."""
        code, out = by_flag(machine, "calico", "-t")
        found.update(json.loads(out), status=code)
        return "no answer" not in found["details"]

    eventually(answered)
    assert (found["status"], found["code"], found["msg"]) == (1, 100, "data store connection failed")
    assert "not ready" in found["details"]
    machine.etcd.stop_answering()
    try:
        code, out = by_flag(machine, "calico", "-t")
        assert code == 1 and json.loads(out)["details"] == "no answer within 2 s"
    finally:
        machine.etcd.resume()


def test_run_by_hand_it_says_what_it_is(machine: Machine) -> None:
    done = machine.execute_program(str(machine.bin / "calico"), {}, b"")
    assert done.returncode == 0 and b"Calico CNI plugin v" in done.stderr
    assert b"0.3.1, 0.4.0, 1.0.0, 1.1.0" in done.stderr
