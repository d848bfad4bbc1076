"""Start-up on a machine with a real etcd: what is written, what is kept, and what is refused."""

import re
import subprocess

import pytest

from tests.node.conftest import NODES, POOLS, Machine
from tortie.lab.cluster import command, wait_until

pytestmark = pytest.mark.kernel

RESOURCES = "/calico/resources/v3/projectcalico.org/"


def other_node(machine: Machine, address: str) -> None:
    machine.start()
    node = machine.entries(NODES)[machine.node.name]
    node["metadata"] |= {"name": "other", "uid": "00000000-0000-4000-8000-000000000001"}
    node["spec"]["bgp"]["ipv4Address"] = address
    machine.store(f"{NODES}other", node)


# --- what is written ------------------------------------------------------------------------------


def test_a_first_start_writes_all_a_cluster_needs(machine: Machine) -> None:
    machine.start(CLUSTER_TYPE="lab,bgp")
    entries = machine.entries(RESOURCES)
    assert {key for key in entries if not key.startswith("ippools/default-ipv6")} == {
        "bgpconfigurations/default",
        "clusterinformations/default",
        "felixconfigurations/default",
        "felixconfigurations/node.node-1",
        "ipamconfigurations/default",
        "ippools/default-ipv4-ippool",
        "nodes/node-1",
        *(f"tiers/{name}" for name in ("default", "kube-admin", "kube-baseline")),
    }
    node = entries["nodes/node-1"]
    assert node["kind"] == "Node" and node["metadata"]["name"] == "node-1"
    assert node["spec"]["bgp"] == {"ipv4Address": f"{machine.ip}/24"}
    assert node["spec"]["interfaces"] == [{"name": "eth0", "addresses": [machine.ip]}]
    about = entries["clusterinformations/default"]["spec"]
    assert re.fullmatch("[0-9a-f]{32}", about["clusterGUID"])
    assert (about["clusterType"], about["datastoreReady"]) == ("lab,bgp", True)
    assert about["calicoVersion"].startswith("v3.")
    assert entries["felixconfigurations/node.node-1"]["spec"]["defaultEndpointToHostAction"] == "Return"
    pool = entries["ippools/default-ipv4-ippool"]["spec"]
    assert (pool["cidr"], pool["blockSize"], pool["natOutgoing"]) == ("192.168.0.0/16", 26, True)
    assert machine.node.box.path("/var/lib/calico/nodename").read_text() == "node-1"


def test_the_name_is_kept_where_its_folder_is(machine: Machine) -> None:
    machine.start(CALICO_LIB_DIR="/var/lib/elsewhere")
    assert machine.node.box.path("/var/lib/elsewhere/nodename").read_text() == "node-1"
    assert not machine.node.box.path("/var/lib/calico/nodename").exists()
    machine.start(CALICO_LIB_DIR="/var/lib/elsewhere", NODENAME="(unset)", HOSTNAME="other")
    assert set(machine.entries(NODES)) == {"node-1"}


def test_the_first_pod_finds_its_mtu(machine: Machine) -> None:
    """CNI may begin as soon as the name is there, before felix has looked at anything."""
    machine.node.box.run("ip", "link", "set", "eth0", "mtu", "1400")
    machine.start(CALICO_IPV4POOL_IPIP="Always")
    assert machine.node.box.path("/var/lib/calico/mtu").read_text() == "1380"


def test_felix_finds_its_tunnel_addresses(machine: Machine) -> None:
    """Felix starts again when one changes: the first is there before felix is."""
    machine.start(CALICO_IPV4POOL_VXLAN="Always")
    assert machine.stored()["ipv4VXLANTunnelAddr"].startswith("192.168.")


def test_a_second_start_changes_nothing(machine: Machine) -> None:
    machine.start()
    before = machine.entries()
    machine.start()
    assert machine.entries() == before


def test_what_others_put_into_the_node_stays(machine: Machine) -> None:
    machine.start(AS="64600")
    node = machine.entries(NODES)["node-1"]
    assert node["spec"]["bgp"]["asNumber"] == 64600
    node["metadata"]["labels"] = {"rack": "a"}
    node["spec"]["bgp"]["routeReflectorClusterID"] = "244.0.0.1"
    node["spec"]["futureField"] = {"x": 1}
    machine.store(f"{NODES}node-1", node)
    machine.start(CALICO_K8S_NODE_REF="worker-1")
    again = machine.entries(NODES)["node-1"]
    assert again["metadata"]["labels"] == {"rack": "a"}
    assert again["spec"]["futureField"] == {"x": 1}
    assert again["spec"]["orchRefs"] == [{"nodeName": "worker-1", "orchestrator": "k8s"}]
    bgp = {"ipv4Address": f"{machine.ip}/24", "asNumber": 64600, "routeReflectorClusterID": "244.0.0.1"}
    assert again["spec"]["bgp"] == bgp


def test_pools_as_the_environment_says(machine: Machine) -> None:
    machine.start(
        CALICO_IPV4POOL_CIDR="10.244.0.0/16",
        CALICO_IPV4POOL_BLOCK_SIZE="28",
        CALICO_IPV4POOL_IPIP="CrossSubnet",
        CALICO_IPV6POOL_CIDR="fd10:244::/64",
        CALICO_IPV6POOL_NAT_OUTGOING="true",
    )
    pools = {name: pool["spec"] for name, pool in machine.entries(POOLS).items()}
    assert pools.keys() == {"default-ipv4-ippool", "default-ipv6-ippool"}
    v4, v6 = pools["default-ipv4-ippool"], pools["default-ipv6-ippool"]
    assert (v4["cidr"], v4["blockSize"], v4["ipipMode"]) == ("10.244.0.0/16", 28, "CrossSubnet")
    assert (v6["cidr"], v6["natOutgoing"]) == ("fd10:244::/64", True)
    machine.start(CALICO_IPV4POOL_CIDR="10.1.0.0/16")  # there is one already
    assert {name: pool["spec"] for name, pool in machine.entries(POOLS).items()} == pools


def test_no_pools_if_none_are_wanted(machine: Machine) -> None:
    machine.start(NO_DEFAULT_POOLS="true")
    assert machine.entries(POOLS) == {}


def test_a_cluster_that_is_locked_stays_locked(machine: Machine) -> None:
    """A migration sets datastoreReady to false; a node that starts must not end it."""
    machine.start(CLUSTER_TYPE="a")
    key = f"{RESOURCES}clusterinformations/default"
    about = machine.entries(key)[""]
    about["spec"]["datastoreReady"] = False
    machine.store(key, about)
    machine.start(CLUSTER_TYPE="b,a")
    again = machine.entries(key)[""]["spec"]
    assert again["datastoreReady"] is False
    assert again["clusterType"] == "a,b" and again["clusterGUID"] == about["spec"]["clusterGUID"]


def test_many_nodes_that_start_at_once_make_one_cluster(machine: Machine) -> None:
    env = {"ETCD_ENDPOINTS": machine.lab.etcd.endpoint, "DISABLE_NODE_IP_CHECK": "true"}
    starts = [
        subprocess.Popen(
            machine.node.box.command(
                [command("calico-node"), "-startup"],
                {**env, "NODENAME": f"many-{number}", "CALICO_NODENAME_FILE": f"/run/many-{number}"},
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for start in starts:
        _, said = start.communicate(timeout=300)
        assert start.returncode == 0, said
    assert len(machine.entries(NODES)) == 6
    assert len(machine.entries(f"{RESOURCES}clusterinformations/")) == 1
    assert sum(name.startswith("default-ipv4") for name in machine.entries(POOLS)) == 1


# --- before pods come -----------------------------------------------------------------------------


def guards(machine: Machine) -> tuple[str, str]:
    """What stands in iptables and in nftables proper, without the counters that others may move."""
    run = machine.node.box.run
    saved = [run(f"{tool}-nft-save", "-t", "filter") for tool in ("iptables", "ip6tables")]
    listed = [run("nft", "-s", "list", "table", one, "calico", check=False) for one in ("ip", "ip6")]
    rules, tables = ("".join(one.stdout for one in some) for some in (saved, listed))
    return re.sub(r"(?m)^(#.*\n|:.*)", "", rules), tables


def test_before_a_pod_can_come_all_pods_are_denied(machine: Machine) -> None:
    """CNI starts beside felix: what it attaches must not be open until felix has got that far."""
    machine.start(FELIX_INTERFACEPREFIX="tap", FELIX_IPTABLESBACKEND="nft")
    rules, tables = guards(machine)
    assert not tables
    assert rules.count("-i tap+") >= 2 and "-i cali+" not in rules
    assert rules.count('"Unknown interface" -j DROP') == 4  # to and from pods, in both families
    machine.node.box.run("iptables-nft", "-A", "cali-FORWARD", "-j", "RETURN")
    before = guards(machine)
    machine.start(FELIX_INTERFACEPREFIX="tap", FELIX_IPTABLESBACKEND="nft")
    assert guards(machine) == before, "what stands is left alone"


def test_pods_are_denied_in_the_dataplane_that_the_datastore_names(machine: Machine) -> None:
    machine.start(CALICO_DISABLE_FELIX="true")
    key = f"{RESOURCES}felixconfigurations/node.node-1"
    about = machine.entries(key)[""]
    about["spec"]["nftablesMode"] = "Enabled"
    machine.store(key, about)
    machine.start()
    rules, tables = guards(machine)
    assert "cali" not in rules and tables.count('Unknown interface"') == 4


def test_without_felix_nobody_is_denied(machine: Machine) -> None:
    machine.start(CALICO_DISABLE_FELIX="true")
    rules, tables = guards(machine)
    assert "cali" not in rules + tables


def test_where_felix_cannot_start_no_pod_is_attached(machine: Machine) -> None:
    machine.refuse(
        "InterfacePrefix from environment variable = 'not a name'", FELIX_INTERFACEPREFIX="not a name"
    )
    machine.refuse("iptables", FELIX_IPTABLESBACKEND="nft", PATH="/nowhere")
    assert not machine.node.box.path("/var/lib/calico/nodename").exists()


# --- the node's name ------------------------------------------------------------------------------


def test_the_name_of_an_earlier_start_is_kept(machine: Machine) -> None:
    machine.start(NODENAME="first")
    machine.start(NODENAME="(unset)", HOSTNAME="second", DISABLE_NODE_IP_CHECK="true")
    assert machine.entries(NODES).keys() == {"first"}


def test_without_a_name_the_host_names_the_node(machine: Machine) -> None:
    machine.start(NODENAME="(unset)", HOSTNAME="Host-B")
    assert machine.entries(NODES).keys() == {"host-b"}


@pytest.mark.parametrize("name", ["Upper", "a/b", "a b", "x" * 254])
def test_a_bad_name_is_refused_before_anything_is_written(machine: Machine, name: str) -> None:
    machine.refuse("NODENAME", NODENAME=name)
    assert machine.entries() == {}
    assert not machine.node.box.path("/var/lib/calico/nodename").exists()


# --- addresses ------------------------------------------------------------------------------------


def test_an_address_of_another_node_is_refused(machine: Machine) -> None:
    other_node(machine, "172.18.0.99/24")
    before = machine.entries()
    text = "Calico node 'other' is already using the IPv4 address 172.18.0.99"
    machine.refuse(text, IP="172.18.0.99")
    assert machine.entries() == before
    machine.start(IP="172.18.0.99/24", DISABLE_NODE_IP_CHECK="true")
    assert machine.stored()["bgp"]["ipv4Address"] == "172.18.0.99/24"


def test_an_address_that_became_another_nodes_is_given_up(machine: Machine) -> None:
    """The stale address must not keep its new owner from starting."""
    other_node(machine, "172.18.0.99/24")
    machine.readdress("172.18.0.99/24")
    machine.refuse("is already using the IPv4 address", IP="autodetect")
    assert "bgp" not in machine.stored()


def test_a_running_node_keeps_its_address_while_it_has_it(machine: Machine) -> None:
    box = machine.node.box
    machine.start()
    box.run("ip", "link", "add", "late0", "type", "bridge")  # a later interface would be chosen first
    box.run("ip", "addr", "add", "10.77.0.1/24", "dev", "late0")
    assert machine.calico_node("-monitor-addresses").returncode == 0
    assert machine.stored()["bgp"]["ipv4Address"] == f"{machine.ip}/24"
    assert {one["name"] for one in machine.stored()["interfaces"]} == {"eth0", "late0"}
    machine.readdress("172.18.0.98/24")
    assert machine.calico_node("-monitor-addresses").returncode == 0
    assert machine.stored()["bgp"]["ipv4Address"] == "10.77.0.1/24"


def test_without_any_address_a_known_one_is_kept(machine: Machine) -> None:
    machine.start()
    method = {"IP_AUTODETECTION_METHOD": "interface=wlan.*"}
    machine.start(**method)
    assert machine.stored()["bgp"]["ipv4Address"] == f"{machine.ip}/24"


def test_without_networking_no_address_is_needed(machine: Machine) -> None:
    machine.start(CALICO_NETWORKING_BACKEND="none", IP_AUTODETECTION_METHOD="interface=wlan.*")
    assert "bgp" not in machine.stored()


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("IP", "not an address"),
        ("IP", "fd00::1"),
        ("IP6", "10.0.0.1"),
        ("IP_AUTODETECTION_METHOD", "best-guess"),
        ("IP_AUTODETECTION_METHOD", "interface=["),
        ("IP_AUTODETECTION_METHOD", "interface=wlan.*"),
        ("IP6_AUTODETECTION_METHOD", "cidr=x"),
        ("AS", "4294967296"),
        ("AS", "one"),
    ],
)
def test_a_bad_address_or_number_is_refused(machine: Machine, variable: str, value: str) -> None:
    extra = {"IP6": "autodetect"} if variable.startswith("IP6_") else {}
    machine.refuse(variable, repr(value), **{**extra, variable: value})
    assert machine.entries(NODES) == {} and machine.entries(POOLS) == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CALICO_IPV4POOL_CIDR", "10.0.0.0/99"),
        ("CALICO_IPV4POOL_CIDR", "fd00::/48"),
        ("CALICO_IPV4POOL_CIDR", "10.0.0.0/27"),
        ("CALICO_IPV4POOL_BLOCK_SIZE", "33"),
        ("CALICO_IPV4POOL_IPIP", "sometimes"),
        ("CALICO_IPV4POOL_NODE_SELECTOR", "rack = 'a'"),
        ("CALICO_IPV6POOL_CIDR", "10.0.0.0/16"),
        ("CALICO_IPV6POOL_BLOCK_SIZE", "64"),
    ],
)
def test_a_bad_pool_is_refused(machine: Machine, variable: str, value: str) -> None:
    machine.refuse(value, **{variable: value})
    assert machine.entries(POOLS) == {}


def test_pools_that_are_wanted_and_not_wanted_are_refused(machine: Machine) -> None:
    machine.refuse("NO_DEFAULT_POOLS", NO_DEFAULT_POOLS="true", CALICO_IPV4POOL_CIDR="10.0.0.0/8")


# --- the datastore --------------------------------------------------------------------------------


def test_the_environment_alone_names_the_datastore(machine: Machine) -> None:
    """calicoctl's file is calicoctl's: felix, confd and the CNI server do not read it either."""
    folder = machine.node.box.path("/etc/calico")
    folder.mkdir(parents=True, exist_ok=True)
    spec = "datastoreType: etcdv3\n  etcdEndpoints: http://172.18.0.1:9"
    text = f"apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n  {spec}\n"
    (folder / "calicoctl.cfg").write_text(text)
    machine.start()
    assert machine.stored()["bgp"]["ipv4Address"] == f"{machine.ip}/24"


def test_an_unreachable_datastore_is_named(machine: Machine) -> None:
    said = "other-name cannot start: no etcd endpoint answers: http://172.18.0.1:9"
    machine.refuse(said, ETCD_ENDPOINTS="http://172.18.0.1:9", NODENAME="other-name")
    machine.refuse("ETCD_ENDPOINTS", ETCD_ENDPOINTS="not a url")


def test_a_start_waits_for_the_datastore_if_told_to(machine: Machine) -> None:
    lab = machine.lab
    lab.etcd.kill()
    env = {"ETCD_ENDPOINTS": lab.etcd.endpoint, "NODENAME": "patient", "WAIT_FOR_DATASTORE": "true"}
    log = lab.folder / "patient.log"
    start = machine.node.box.start([command("calico-node"), "-startup"], log, env)
    wait_until(lambda: "connecting to datastore - retry" in log.read_text(), "the start to wait", 180)
    assert start.poll() is None
    lab.etcd.start()
    assert start.wait(timeout=180) == 0
    assert log.read_text().count("connecting to datastore - retry") == 1
    assert "patient" in machine.entries(NODES)
