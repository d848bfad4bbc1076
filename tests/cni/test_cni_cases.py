"""The rows of the reference's list of edge cases that concern the plugin, one test each, by number."""

import fcntl
import json
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from tests.netns_lab import eventually
from tests.support.cni import NETWORK, Machine, calico, host_name, path_of, pool
from tortie.core.errors import CniError
from tortie.lab.runtime import Attachment
from tortie.linux import links, routes
from tortie.linux.routes import Route

pytestmark = pytest.mark.kernel

DUAL = calico(ipam={"type": "calico-ipam", "assign_ipv6": "true"})
PLAIN = calico(policy={}, name="net", cniVersion="1.0.0")  # of containers that are no pods
HOST = host_name("default", "nginx")


def plain_settings(machine: Machine, container: str = "c1", **more: str) -> dict[str, str]:
    return {"CONTAINERID": container, "NETNS": path_of(machine.namespace()), "IFNAME": "eth0", **more}


def run(machine: Machine, command: str, settings: Mapping[str, str], conf: Any = PLAIN) -> dict[str, Any]:
    """The result or the error object."""
    done = machine.run(command, conf, **settings)
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    assert (done.returncode == 0) != ("code" in answer), done
    return answer


def address(result: Mapping[str, Any]) -> str:
    return str(result["ips"][0]["address"]).partition("/")[0]


# --- addresses ----------------------------------------------------------------------------------


def test_row_42_ipv6_pool_full_gives_the_ipv4_address_back(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.seed(pool("v4", "10.65.0.0/26"), pool("v6", "fd00:65::/127", blockSize=127))
    machine.start_server()
    chain = machine.chain(DUAL)
    for number in range(2):
        chain.add(machine.pod(f"pod-{number}"))
    with pytest.raises(CniError, match="failed to request IPv6 addresses: Assigned 0 out of 1") as caught:
        chain.add(machine.pod("late"))
    assert "No IPs available in pools: [fd00:65::/127]" in str(caught.value)
    assert caught.value.details == "pool v6 (fd00:65::/127) has 0 of 2 addresses free"
    assert len(machine.held()) == 4 and len(machine.remains().handles) == 2


def test_row_43_no_ipv6_pool_gives_the_ipv4_address_back(machine: Machine) -> None:
    with pytest.raises(CniError, match="cannot find a qualified ippool: there is no IPv6 pool: create one"):
        machine.chain(DUAL).add(machine.pod())
    assert not machine.remains()


def test_exhaustion_is_said_and_leaks_nothing(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.seed(pool("tiny", "10.65.0.0/31", blockSize=31))
    machine.start_server()
    chain = machine.chain()
    pods = [machine.pod(f"pod-{number}") for number in range(3)]
    for pod in pods[:2]:
        chain.add(pod)
    with pytest.raises(CniError, match=r"Assigned 0 out of 1 .*No IPs available in pools: \[10.65.0.0/31\]"):
        chain.add(pods[2])
    chain.delete(pods[0])
    chain.add(pods[2])
    for pod in pods[1:]:
        chain.delete(pod)
    assert not machine.remains()


def test_row_55_a_failure_after_ipam_releases_the_address(machine: Machine) -> None:
    settings = plain_settings(machine)
    inside = machine.pods[0]
    inside.veth("eth0", "other")
    assert "File exists" in run(machine, "ADD", settings)["msg"]
    assert not machine.remains()
    assert inside.ip("link", "show", "dev", "eth0")


def test_row_56_the_lock_file_is_a_courtesy(machine: Machine) -> None:
    lock = machine.folder / "locks" / "ipam.lock"
    machine.chain(calico(ipam_lock_file=str(lock))).add(machine.pod("one"))
    assert lock.exists()
    log = machine.folder / "cni.log"
    conf = calico(ipam_lock_file="/proc/none/ipam.lock", log_file_path=str(log))
    machine.chain(conf).add(machine.pod("two"))
    assert "Failed to grab IPAM lock" in log.read_text()


def test_row_56_the_lock_file_is_waited_for(machine: Machine) -> None:
    path = machine.folder / "ipam.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        adding = threading.Thread(
            target=machine.chain(calico(ipam_lock_file=str(path))).add, args=(machine.pod(),)
        )
        adding.start()
        adding.join(0.3)
        assert adding.is_alive() and not machine.held()
    adding.join(120)
    assert machine.held()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("IP=10.65.0.7/24", "invalid IP address: 10.65.0.7/24"),
        ("IP=10.65.0.7;K8S_POD_NAME", 'invalid pair "K8S_POD_NAME"'),
        ("COLOUR=red", "unknown args"),
        ("IgnoreUnknown=perhaps", "not a boolean"),
    ],
)
def test_row_57_cni_args_of_calico_ipam_are_strict(machine: Machine, args: str, said: str) -> None:
    done = machine.run("ADD", PLAIN, "calico-ipam", **plain_settings(machine, ARGS=args))
    error = json.loads(done.stdout)
    assert done.returncode == 1 and error["code"] == 4 and said in error["msg"]
    assert not machine.remains()


def test_row_57_an_address_can_be_asked_for(machine: Machine) -> None:
    settings = plain_settings(machine, ARGS="IP=10.65.0.7;COLOUR=red")
    assert address(run(machine, "ADD", settings)) == "10.65.0.7"
    with_other = plain_settings(machine, "c2", ARGS="IP=10.65.0.7")
    assert "already assigned" in run(machine, "ADD", with_other)["msg"].lower()
    run(machine, "DEL", settings)
    assert not machine.remains()


# --- the same container again -------------------------------------------------------------------


def test_row_44_repeated_add_of_a_container_changes_nothing(machine: Machine) -> None:
    settings = plain_settings(machine)
    first = run(machine, "ADD", settings)
    before = machine.remains(), machine.endpoints()
    assert run(machine, "ADD", settings) == first
    assert (machine.remains(), machine.endpoints()) == before
    run(machine, "ADD", settings, PLAIN | {"name": "second"})
    (endpoint,) = machine.endpoints().values()
    assert endpoint["spec"]["profiles"] == ["net", "second"]
    run(machine, "DEL", settings)
    assert not machine.remains()


def test_row_45_a_new_sandbox_replaces_the_old_one(machine: Machine) -> None:
    chain = machine.chain()
    old, new = machine.pod(container="old"), machine.pod(container="new")
    first, second = chain.add(old), chain.add(new)
    assert address(first) != address(second)
    (endpoint,) = machine.endpoints().values()
    assert endpoint["spec"]["containerID"] == "new"
    assert endpoint["spec"]["ipNetworks"] == [f"{address(second)}/32"]
    chain.delete(old)
    assert machine.held() == {address(second): f"{NETWORK}.new"}
    assert len(machine.endpoints()) == 1 and machine.remains().interfaces == [HOST]
    machine.inside(new).run("ping", "-c", "1", "-W", "30", "192.0.2.1")
    chain.delete(new)
    assert not machine.remains()


def test_row_46_a_late_delete_leaves_the_newer_sandbox_alone(machine: Machine) -> None:
    """What the old sandbox still has inside is taken away."""
    chain = machine.chain()
    old, new = machine.pod(container="old"), machine.pod(container="new")
    chain.add(old)
    chain.add(new)
    machine.inside(old).veth("eth0", "elsewhere")
    chain.delete(old)
    assert not machine.inside(old).run("ip", "link", "show", "dev", "eth0", check=False)
    assert machine.inside(new).ip("link", "show", "dev", "eth0")
    assert len(machine.endpoints()) == 1
    chain.check(new)


def test_a_repeated_add_of_a_sandbox_holds_one_address(machine: Machine) -> None:
    """The runtime lost the answer to its first ADD and tries again."""
    chain, pod = machine.chain(), machine.pod()
    first, second = chain.add(pod), chain.add(pod)
    eventually(lambda: list(machine.held()) == [address(second)])
    assert address(first) not in machine.held()
    chain.check(pod)
    chain.delete(pod)
    assert not machine.remains()


def test_a_repeated_add_releases_no_address_whose_interface_is_still_up(machine: Machine) -> None:
    """It fails before it has replaced the interface of the first."""
    chain, pod = machine.chain(), machine.pod()
    first = address(chain.add(pod))
    (machine.lib / "mtu").unlink(missing_ok=True)
    settings = {"CONTAINERID": pod.container_id, "NETNS": pod.netns, "IFNAME": "eth0"}
    settings["ARGS"] = ";".join(f"{key}={value}" for key, value in pod.args.items())
    conf = calico(name=NETWORK, cniVersion="1.0.0", require_mtu_file=True, args=pod.config_args)
    done = machine.run("ADD", conf, **settings)
    assert "failed to read MTU file" in json.loads(done.stdout)["msg"]
    assert machine.remains().routes == [first] and list(machine.held()) == [first]
    chain.check(pod)
    assert address(chain.add(pod)) != first
    chain.delete(pod)
    assert not machine.remains()


def test_row_47_another_interface_name_keeps_the_endpoints_name(machine: Machine) -> None:
    chain = machine.chain()
    where = machine.namespace()
    first = machine.pod(container="c", inside=where)
    second = machine.pod(container="c", inside=where, ifname="net1")
    chain.add(first)
    chain.add(second)
    ((name, endpoint),) = machine.endpoints().items()
    assert name == "default/node--1-k8s-nginx-eth0" and endpoint["spec"]["endpoint"] == "eth0"
    assert where.ip("link", "show", "dev", "net1")
    chain.delete(second)
    chain.delete(first)
    assert not machine.remains()


def test_row_48_pods_a_and_a_1_are_two(machine: Machine) -> None:
    chain = machine.chain()
    one, two = machine.pod("a"), machine.pod("a-1")
    chain.add(two)
    chain.add(one)
    assert sorted(machine.endpoints()) == ["default/node--1-k8s-a--1-eth0", "default/node--1-k8s-a-eth0"]
    chain.delete(one)
    assert list(machine.endpoints()) == ["default/node--1-k8s-a--1-eth0"]


# --- DEL ----------------------------------------------------------------------------------------


def detached(pod: Attachment, netns: str) -> Attachment:
    return Attachment(pod.container_id, netns, pod.ifname, pod.args, pod.capabilities, pod.config_args)


@pytest.mark.parametrize("netns", ["", "/run/netns/no-such-thing", "/proc/self/cmdline"])
def test_row_49_delete_without_the_namespace(machine: Machine, netns: str) -> None:
    """The namespace may still live: its interface goes all the same."""
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    chain.delete(detached(pod, netns))
    assert not machine.remains()
    assert not machine.inside(pod).run("ip", "link", "show", "dev", "eth0", check=False)


def test_row_49_delete_after_the_namespace_has_gone(machine: Machine) -> None:
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    machine.inside(pod).close()
    machine.pods.clear()
    chain.delete(pod)
    eventually(lambda: not machine.remains())


def test_row_49_delete_without_interface_and_twice_and_never_added(machine: Machine) -> None:
    chain, pod = machine.chain(), machine.pod()
    chain.delete(machine.pod("never"))
    chain.add(pod)
    machine.inside(pod).netlink.execute(links.delete("eth0"))
    for _ in range(3):
        chain.delete(pod)
    assert not machine.remains()


def test_delete_releases_what_version_2_of_the_plugin_held(machine: Machine) -> None:
    """Under the pod's name; a sandbox of this version leaves that to the one that it belongs to."""
    done = machine.run("ADD", PLAIN | {"name": "default"}, "calico-ipam", **plain_settings(machine, "nginx"))
    assert done.returncode == 0 and list(machine.held().values()) == ["default.nginx"]
    chain, new, old = machine.chain(), machine.pod(container="new"), machine.pod(container="old")
    chain.add(new)
    chain.delete(new)
    assert list(machine.held().values()) == ["default.nginx"]
    chain.delete(old)
    assert not machine.remains()


def test_row_50_delete_waits_for_a_ready_datastore(machine: Machine) -> None:
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    before = machine.remains()
    machine.ready(False)
    eventually(lambda: _fails(chain.check, pod))  # the server hears of it by a watch
    for refused in (partial(chain.delete, pod), partial(chain.add, machine.pod("other"))):
        with pytest.raises(CniError, match="Calico is currently not ready to process requests"):
            refused()
    assert machine.remains() == before
    machine.ready(True)
    eventually(lambda: not _fails(chain.delete, pod))
    assert not machine.remains()


def _fails(call: Any, *args: Any) -> bool:
    try:
        call(*args)
    except CniError:
        return True
    return False


def test_row_50_delete_waits_for_the_datastore_to_come_back(machine: Machine) -> None:
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    machine.etcd.kill()
    with pytest.raises(CniError) as caught:
        chain.delete(pod)
    assert caught.value.code == 11
    assert machine.inside(pod).ip("link", "show", "dev", "eth0")
    with pytest.raises(CniError):
        chain.add(machine.pod("other"))
    machine.start_etcd()
    eventually(lambda: not _fails(chain.delete, pod))
    assert not machine.remains()


def test_row_50_delete_waits_for_the_nodename_file(machine: Machine) -> None:
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    before = machine.remains()
    (machine.lib / "nodename").unlink()
    reason = "no such file or directory: check that the calico/node container is running"
    for call in (chain.delete, chain.add):
        with pytest.raises(CniError, match=reason):
            call(pod)
    assert machine.remains() == before
    machine.chain(calico(nodename_file_optional=True, nodename="node-1")).delete(pod)
    assert not machine.remains()


def test_row_51_delete_beside_somebody_who_keeps_changing_the_endpoint(machine: Machine) -> None:
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    ((name, endpoint),) = machine.endpoints().items()
    stop = threading.Event()

    def change() -> None:
        path = f"/calico/resources/v3/projectcalico.org/workloadendpoints/{name}"
        while not stop.is_set() and machine.endpoints():
            machine.host.call(machine.etcd.put, path, json.dumps(endpoint))

    changing = threading.Thread(target=change)
    changing.start()
    try:
        eventually(lambda: not _fails(chain.delete, pod))
    finally:
        stop.set()
        changing.join()
    chain.delete(pod)  # the other may have written it once more
    assert not machine.remains()


def test_row_52_an_endpoint_that_is_gone_already(machine: Machine) -> None:
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    (name,) = machine.endpoints()
    machine.delete_endpoint(name)
    chain.delete(pod)
    assert not machine.remains()


def test_an_endpoint_that_nobody_can_read_does_not_stay(machine: Machine) -> None:
    path = "/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-k8s-nginx-eth0"
    machine.host.call(machine.etcd.put, path, '{"kind": "WorkloadEndpoint", "spec": {"node": 7')
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    chain.check(pod)
    machine.host.call(machine.etcd.put, path, "[]")
    chain.delete(pod)
    assert not machine.remains()


# --- the host -----------------------------------------------------------------------------------


def test_row_53_a_left_over_interface_is_replaced(machine: Machine) -> None:
    machine.host.veth(HOST, "nowhere")
    chain, pod = machine.chain(), machine.pod()
    chain.add(pod)
    machine.inside(pod).run("ping", "-c", "1", "-W", "30", "192.0.2.1")
    chain.delete(pod)
    assert not machine.remains()


def test_row_54_an_address_that_is_routed_elsewhere(machine: Machine) -> None:
    chain = machine.chain()
    earlier = machine.pod("earlier")
    kept = address(chain.add(earlier))
    taken = f"10.65.0.{int(kept.rpartition('.')[2]) + 1}"
    uplink = machine.host.ifindex("uplink")
    machine.host.netlink.execute(
        routes.replace_message(Route(f"{taken}/32", ifindex=uplink, scope=routes.SCOPE_LINK))
    )
    try:
        with pytest.raises(CniError) as caught:
            chain.add(machine.pod())
    finally:
        machine.host.run("ip", "route", "del", f"{taken}/32")
    assert f"already exists for an interface other than '{HOST}'" in caught.value.msg
    assert f"Dst: {taken}/32" in caught.value.msg and "Iface: uplink" in caught.value.msg
    assert list(machine.held()) == [kept]
    assert machine.remains().interfaces == [host_name("default", "earlier")]


def test_the_hosts_own_namespace_is_refused(machine: Machine) -> None:
    own = f"/proc/{machine.server}/ns/net"
    settings = {"CONTAINERID": "c", "NETNS": own, "IFNAME": "uplink"}
    for command in ("ADD", "DEL"):
        assert run(machine, command, settings)["code"] == 8
    assert machine.host.ip("link", "show", "dev", "uplink")


def test_add_needs_a_namespace(machine: Machine) -> None:
    for netns in ("/no/such/namespace", "/proc/self/cmdline"):
        answer = run(machine, "ADD", {"CONTAINERID": "c", "NETNS": netns, "IFNAME": "eth0"})
        assert answer["code"] == 3 and f'failed to open netns "{netns}"' in answer["msg"]
    assert not machine.remains()


# --- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "version", "said"),
    [
        ("CHECK", "0.3.1", "config version does not allow CHECK"),
        ("GC", "1.0.0", "config version does not allow GC"),
        ("STATUS", "1.0.0", "config version does not allow STATUS"),
        ("ADD", "2.0.0", "incompatible CNI versions"),
        ("DEL", "9.9.9", "incompatible CNI versions"),
    ],
)
@pytest.mark.parametrize("plugin", ["calico", "calico-ipam"])
def test_row_58_versions(machine: Machine, plugin: str, command: str, version: str, said: str) -> None:
    done = machine.run(command, PLAIN | {"cniVersion": version}, plugin, **plain_settings(machine))
    error = json.loads(done.stdout)
    assert (done.returncode, error["code"], error["msg"]) == (1, 1, said)


# --- waiting for policy -------------------------------------------------------------------------


def test_row_59_a_policy_file_that_never_appears(machine: Machine) -> None:
    log = machine.folder / "cni.log"
    conf = calico(policy_setup_timeout_seconds=1, log_file_path=str(log))
    machine.chain(conf).add(machine.pod())
    assert "Error waiting for endpoint to become ready. Unblocking pod creation..." in log.read_text()


def test_add_waits_until_the_policy_is_programmed(machine: Machine) -> None:
    status = machine.folder / "status"
    status.mkdir()
    conf = calico(policy_setup_timeout_seconds=60, endpoint_status_dir=str(status))
    adding = threading.Thread(target=machine.chain(conf).add, args=(machine.pod(),))
    adding.start()
    eventually(machine.endpoints)
    adding.join(0.2)
    assert adding.is_alive()
    (status / "k8s default%2Fnginx eth0").touch()
    adding.join(120)
    assert not adding.is_alive()
