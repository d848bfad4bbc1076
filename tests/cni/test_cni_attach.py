"""ADD and DEL on a real host with real containers: what stands afterwards, and that nothing is left."""

import json
from typing import Any

import pytest

from tests.support.cni import NODE, Machine, calico, host_name, pool
from tortie.core.errors import CniError

pytestmark = pytest.mark.kernel

DUAL = calico(ipam={"type": "calico-ipam", "assign_ipv6": "true"})
V6_ONLY = calico(ipam={"type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true"})
V4_POOL, V6_POOL = pool("ipv4", "10.65.0.0/24"), pool("ipv6", "fd00:65::/112")
HOST = host_name("default", "nginx")


def sysctl(machine: Machine, name: str) -> str:
    return machine.host.run("sysctl", "-n", name.replace("/", ".")).strip()


# --- what stands --------------------------------------------------------------------------------


def test_a_pod_gets_an_interface_and_the_result_says_so(machine: Machine) -> None:
    pod = machine.pod(labels={"app": "web"}, serviceAccountName="robot")
    result = machine.chain(calico(mtu=1440)).add(pod)
    (link,) = (one for one in machine.inside(pod).ip("addr") if one["ifname"] == "eth0")
    (address,) = (one for one in link["addr_info"] if one["family"] == "inet")
    assert result == {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": HOST},
            {"name": "eth0", "mac": link["address"], "mtu": 1440, "sandbox": pod.netns},
        ],
        "ips": [{"interface": 1, "address": f"{address['local']}/32"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
    }
    assert address["prefixlen"] == 32 and link["mtu"] == 1440
    machine.chain().delete(pod)
    assert not machine.remains()


def test_inside_the_pod_everything_goes_to_the_link_local_gateway(machine: Machine) -> None:
    pod = machine.pod()
    machine.chain().add(pod)
    inside = machine.inside(pod)
    assert inside.ip("route") == [
        {"dst": "default", "gateway": "169.254.1.1", "dev": "eth0", "flags": []},
        {"dst": "169.254.1.1", "dev": "eth0", "scope": "link", "flags": []},
    ]
    answer = inside.run("arping", "-c", "1", "-w", "60", "-I", "eth0", "169.254.1.1")
    assert "ee:ee:ee:ee:ee:ee" in answer.lower()
    inside.run("ping", "-c", "1", "-W", "30", "192.0.2.1")
    assert inside.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "0"


def test_the_hosts_end_is_calicos(machine: Machine) -> None:
    pod = machine.pod()
    (ip,) = machine.chain().add(pod)["ips"]
    (link,) = machine.host.ip("link", "show", "dev", HOST)
    assert link["address"] == "ee:ee:ee:ee:ee:ee" and "UP" in link["flags"]
    assert not [one for one in machine.host.ip("-4", "addr", "show", "dev", HOST) if one.get("addr_info")]
    (route,) = machine.host.ip("route", "show", "dev", HOST)
    assert route == {"dst": ip["address"].removesuffix("/32"), "scope": "link", "flags": []}
    settings = {"proxy_arp": "1", "route_localnet": "1", "forwarding": "1"}
    for name, value in settings.items():
        assert sysctl(machine, f"net/ipv4/conf/{HOST}/{name}") == value
    assert sysctl(machine, f"net/ipv4/neigh/{HOST}/proxy_delay") == "0"
    assert sysctl(machine, f"net/ipv6/conf/{HOST}/accept_ra") == "0"


def test_the_endpoint_is_written_as_calico_writes_it(machine: Machine) -> None:
    ports = [
        {"name": "http", "containerPort": 80},
        {"containerPort": 9000},
        {"containerPort": 53, "protocol": "UDP", "hostPort": 5353, "hostIP": "192.0.2.1"},
    ]
    pod = machine.pod(
        "nginx-7", labels={"app": "web"}, serviceAccountName="robot", generateName="nginx-", ports=ports
    )
    result = machine.chain().add(pod)
    ((name, endpoint),) = machine.endpoints().items()
    assert name == "default/node--1-k8s-nginx--7-eth0"
    assert endpoint["metadata"]["generateName"] == "nginx-"
    assert endpoint["metadata"]["labels"] == {
        "app": "web",
        "projectcalico.org/namespace": "default",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "robot",
    }
    assert endpoint["spec"] == {
        "orchestrator": "k8s",
        "node": NODE,
        "containerID": pod.container_id,
        "pod": "nginx-7",
        "endpoint": "eth0",
        "serviceAccountName": "robot",
        "ipNetworks": [result["ips"][0]["address"]],
        "profiles": ["kns.default", "ksa.default.robot"],
        "interfaceName": host_name("default", "nginx-7"),
        "mac": result["interfaces"][1]["mac"],
        "ports": [
            {"name": "http", "protocol": "TCP", "port": 80, "hostPort": 0, "hostIP": ""},
            {"name": "", "protocol": "UDP", "port": 53, "hostPort": 5353, "hostIP": "192.0.2.1"},
        ],
    }


def test_the_address_is_held_under_network_and_container(machine: Machine) -> None:
    pod = machine.pod()
    (ip,) = machine.chain().add(pod)["ips"]
    assert machine.held() == {ip["address"].removesuffix("/32"): f"k8s-pod-network.{pod.container_id}"}
    (block,) = machine.entries("/calico/ipam/v2/assignment/").values()
    owner = block["attributes"][0]["secondary"]
    assert {owner[key] for key in ("node", "pod", "namespace")} == {NODE, "nginx", "default"}
    assert owner["timestamp"].endswith("+0000 UTC")


def test_ipv6_alone(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.seed(V6_POOL)
    machine.start_server()
    pod = machine.pod()
    result = machine.chain(V6_ONLY).add(pod)
    (ip,) = result["ips"]
    assert ip["address"].startswith("fd00:65::") and ip["address"].endswith("/128")
    assert result["routes"] == [{"dst": "::/0", "gw": "fe80::ecee:eeff:feee:eeee"}]
    inside = machine.inside(pod)
    (end,) = inside.ip("-6", "addr", "show", "dev", "eth0", "scope", "global")
    (own,) = filter(None, end["addr_info"])
    assert own["nodad"]  # else it is tentative for a while
    (default,) = inside.ip("-6", "route", "show", "default")
    assert (default["gateway"], default["dev"]) == ("fe80::ecee:eeff:feee:eeee", "eth0")
    assert not inside.ip("route")
    inside.run("ping", "-6", "-c", "1", "-W", "30", "2001:db8::1")
    settings = {"proxy_ndp": "1", "forwarding": "1", "accept_dad": "0", "disable_ipv6": "0", "accept_ra": "0"}
    for name, value in settings.items():
        assert sysctl(machine, f"net/ipv6/conf/{HOST}/{name}") == value
    (link,) = machine.host.ip("-6", "addr", "show", "dev", HOST)
    assert [one["local"] for one in link["addr_info"]] == ["fe80::ecee:eeff:feee:eeee"]
    assert ip["address"].removesuffix("/128") in [
        one["dst"] for one in machine.host.ip("-6", "route", "show", "dev", HOST)
    ]
    machine.chain(V6_ONLY).delete(pod)
    assert not machine.remains()


def test_dual_stack(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.seed(V4_POOL, V6_POOL)
    machine.start_server()
    pod = machine.pod()
    result = machine.chain(DUAL).add(pod)
    assert [":" in ip["address"] for ip in result["ips"]] == [False, True]
    assert [ip["interface"] for ip in result["ips"]] == [1, 1]
    inside = machine.inside(pod)
    for target in ("192.0.2.1", "2001:db8::1"):
        inside.run("ping", "-c", "1", "-W", "30", target)
    (endpoint,) = machine.endpoints().values()
    assert endpoint["spec"]["ipNetworks"] == [ip["address"] for ip in result["ips"]]
    machine.chain(DUAL).delete(pod)
    assert not machine.remains()


def test_ipv6_is_switched_on_where_the_runtime_left_it_off(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.seed(V6_POOL)
    machine.start_server()
    pod = machine.pod()
    inside = machine.inside(pod)
    inside.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    machine.chain(V6_ONLY).add(pod)
    inside.run("ping", "-6", "-c", "1", "-W", "30", "2001:db8::1")


def test_two_pods_reach_each_other(machine: Machine) -> None:
    chain = machine.chain()
    one, two = machine.pod("one"), machine.pod("two")
    addresses = [chain.add(pod)["ips"][0]["address"].removesuffix("/32") for pod in (one, two)]
    machine.inside(one).run("ping", "-c", "1", "-W", "30", addresses[1])
    for pod in (one, two):
        chain.delete(pod)
    assert not machine.remains()


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version_of_the_format(machine: Machine, version: str) -> None:
    pod = machine.pod()
    chain = machine.chain(version=version)
    result = chain.add(pod)
    assert result["cniVersion"] == version
    assert result["ips"][0].get("version") == (None if version >= "1.0.0" else "4")
    assert ("dns" in result) == (version < "1.0.0")
    if version >= "0.4.0":
        chain.check(pod)
    chain.delete(pod)
    assert not machine.remains()


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", ""])
def test_the_oldest_formats(machine: Machine, version: str) -> None:
    pod = machine.pod()
    conf = calico(name="net") | ({"cniVersion": version} if version else {})
    settings = {"CONTAINERID": pod.container_id, "NETNS": pod.netns, "IFNAME": "eth0"}
    done = machine.run("ADD", conf | {"policy": {}}, **settings)
    assert done.returncode == 0, done.stdout
    result = json.loads(done.stdout)
    assert result["cniVersion"] == (version or "0.2.0")
    assert result["ip4"]["ip"].endswith("/32") and result["dns"] == {}


# --- configuration ------------------------------------------------------------------------------


def mtu_inside(machine: Machine, pod: Any) -> int:
    (link,) = machine.inside(pod).ip("link", "show", "dev", "eth0")
    return int(link["mtu"])


def test_the_mtu_comes_from_the_configuration_else_from_the_file(machine: Machine) -> None:
    pods = [machine.pod(f"pod-{number}") for number in range(3)]
    machine.chain().add(pods[0])
    assert mtu_inside(machine, pods[0]) == 1500
    (machine.lib / "mtu").write_text("1380\n")
    assert machine.chain().add(pods[1])["interfaces"][1]["mtu"] == 1380
    assert mtu_inside(machine, pods[1]) == 1380
    machine.chain(calico(mtu=1300)).add(pods[2])
    assert mtu_inside(machine, pods[2]) == 1300


def test_a_required_mtu_file_must_be_there(machine: Machine) -> None:
    with pytest.raises(CniError, match=r"failed to read MTU file: open .*no such file"):
        machine.chain(calico(require_mtu_file=True)).add(machine.pod())
    (machine.lib / "mtu").write_text("many")
    with pytest.raises(CniError, match="not a number"):
        machine.chain().add(machine.pod())
    assert not machine.remains()


def test_container_settings_queues_and_device(machine: Machine) -> None:
    """netkit falls back to veth on kernels that do not have it."""
    pod = machine.pod()
    conf = calico(container_settings={"allow_ip_forwarding": True}, num_queues=2, device_type="netkit")
    machine.chain(conf).add(pod)
    inside = machine.inside(pod)
    assert inside.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
    (link,) = inside.ip("-d", "link", "show", "dev", "eth0")
    assert link["linkinfo"]["info_kind"] in ("veth", "netkit")
    if link["linkinfo"]["info_kind"] == "veth":
        assert link["num_tx_queues"] == 2


def test_a_network_without_policy_is_a_profile(machine: Machine) -> None:
    pod = machine.pod(labels={"app": "web"})
    machine.chain(calico(policy={}), name="plain").add(pod)
    profile = machine.entries("/calico/resources/v3/projectcalico.org/profiles/")["plain"]
    assert profile["spec"] == {
        "ingress": [{"action": "Allow"}],
        "egress": [{"action": "Allow"}],
        "labelsToApply": {"plain": ""},
    }
    (endpoint,) = machine.endpoints().values()
    assert endpoint["spec"]["profiles"] == ["plain"]
    assert "app" not in endpoint["metadata"]["labels"]


def test_without_a_source_of_labels_a_pod_is_refused(machine: Machine) -> None:
    pod = machine.pod()
    settings = {
        "CONTAINERID": pod.container_id,
        "NETNS": pod.netns,
        "IFNAME": "eth0",
        "ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx",
    }
    done = machine.run("ADD", calico(name="net", cniVersion="1.0.0"), **settings)
    error = json.loads(done.stdout)
    assert done.returncode == 1 and error["code"] == 7 and "policy.type" in error["msg"]
    assert not machine.remains()


def test_lines_go_to_the_configured_log_file(machine: Machine) -> None:
    log = machine.folder / "deep" / "down" / "cni.log"
    machine.chain(calico(log_file_path=str(log), log_level="INFO")).add(machine.pod())
    assert "attached default/nginx to network k8s-pod-network" in log.read_text()
    quiet = machine.folder / "quiet.log"
    machine.chain(calico(log_file_path=str(quiet), log_level="error")).add(machine.pod("other"))
    assert not quiet.exists()


def test_an_unusable_log_file_does_not_matter(machine: Machine) -> None:
    machine.chain(calico(log_file_path="/proc/none/cni.log")).add(machine.pod())


def test_nodename_from_the_configuration_wins(machine: Machine) -> None:
    local = {"type": "host-local", "subnet": "10.9.0.0/24", "dataDir": str(machine.folder / "networks")}
    machine.chain(calico(nodename="elsewhere", ipam=local)).add(machine.pod())
    assert list(machine.endpoints()) == ["default/elsewhere-k8s-nginx-eth0"]


def test_the_configuration_may_name_the_datastore(bare_machine: Machine) -> None:
    """The server itself knows of none that answers."""
    machine = bare_machine
    machine.seed()
    real = machine.etcd.endpoint
    machine.etcd.endpoint = "http://127.0.0.1:1"
    machine.start_server()
    machine.etcd.endpoint = real
    chain = machine.chain(calico(datastore_type="etcdv3", etcd_endpoints=real))
    pod = machine.pod()
    chain.add(pod)
    assert machine.endpoints()
    chain.delete(pod)
    assert not machine.remains()


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"mtu": 20}, "mtu = 20"),
        ({"num_queues": 100_000}, "num_queues"),
        ({"device_type": "tap"}, 'unknown device_type "tap"'),
        ({"dataplane_options": {"type": "grpc"}}, "only the Linux dataplane"),
        ({"dataplane_options": {"type": "x"}}, "invalid dataplane type: x"),
        ({"readiness_gates": ["ftp://x"]}, "readiness_gates"),
        ({"policy_setup_timeout_seconds": -1}, "invalid pod startup delay of -1"),
        ({"datastore_type": "kubernetes"}, "datastoreType"),
        ({"etcd_discovery_srv": "example.org"}, "etcd_discovery_srv"),
        ({"etcd_endpoints": "ftp://x"}, "etcd_endpoints"),
        ({"ipam": {}}, "ipam.type"),
        ({"ipam": {"type": "../evil"}}, "ipam.type"),
        ({"log_file_max_size": -1}, "log_file_max_size"),
        ({"nodename": "a b"}, "nodename"),
        ({"ipam": {"type": "calico-ipam", "ipv4_pools": ["nope"]}}, 'error parsing pool "nope"'),
        ({"ipam": {"type": "calico-ipam", "ipv4_pools": ["fd00::/64"]}}, "isn't a IPv4 address"),
        (
            {"ipam": {"type": "calico-ipam", "ipv4_pools": ["10.9.0.0/24"]}},
            "does not exist, or is not enabled",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(machine: Machine, conf: dict[str, Any], said: str) -> None:
    with pytest.raises(CniError) as caught:
        machine.chain(calico(**conf)).add(machine.pod())
    assert said in str(caught.value)
    assert not machine.remains()
