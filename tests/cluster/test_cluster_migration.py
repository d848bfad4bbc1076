"""From Calico to Tortie and back, by the node: pods keep addresses and connections, denied stays denied.

docs/migrate-from-calico.md tells it to users.
"""

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.calico_node import (
    BLOCKS,
    ONLY_CALICOS,
    PODS,
    Way,
    address,
    dress,
    interface,
    start_bird,
)
from tests.cluster.calico_store import GUID, fill_etcd, fill_kubernetes
from tests.support.etcd import Gateway
from tests.support.kubernetes import programs
from tortie.core.speaker import Speaker
from tortie.lab.cluster import Lab, LabNode, shim_path, wait_until
from tortie.lab.probe import Probe, run
from tortie.lab.traffic import Flow, Stream

pytestmark = pytest.mark.cluster

MAKE_ROOM = r"""
ip route show proto bgp | while read -r route; do
    ip route add $route proto bgp metric 4096 && ip route del $route proto bgp
done
"""  # as in the documentation


@pytest.fixture(params=["etcd", "kubernetes"])
def lab(
    request: pytest.FixtureRequest, speaker: Speaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """Three machines of Calico: in etcd with BGP and no tunnel, in Kubernetes with VXLAN."""
    kubernetes = request.param == "kubernetes"
    if kubernetes:
        programs("kube-apiserver")
    env = {"CALICO_NETWORKING_BACKEND": "vxlan"} if kubernetes else {}
    lab = Lab(tmp_path_factory.mktemp("lab"), 3, speakers=(speaker,), agent_env=env, kubernetes=kubernetes)
    try:
        lab.lay_ground()
        for _ in BLOCKS:
            lab.add_machine()
        (fill_kubernetes if kubernetes else fill_etcd)(lab)
        for number, node in enumerate(lab.nodes.values()):
            # Newer releases of Calico give BIRD's routes a metric.
            dress(lab, node, Way(kubernetes, 1024 if number == 1 else 0), _conflist(lab, node))
        yield lab
    finally:
        lab.down()


def _conflist(lab: Lab, node: LabNode) -> dict[str, object]:
    """What Calico's installer has written."""
    where: dict[str, object] = {"datastore_type": "etcdv3", "etcd_endpoints": lab.etcd.endpoint}
    if lab.kubernetes is not None:
        kubeconfig = {"kubeconfig": str(lab.kubernetes.kubeconfig("node"))}
        where = {"datastore_type": "kubernetes", "kubernetes": kubeconfig}
    calico = {"type": "calico", "log_level": "info", "log_file_path": "/var/log/calico/cni/cni.log",
              "nodename": node.name, "mtu": 0, "ipam": {"type": "calico-ipam"},
              "policy": {"type": "k8s"}}  # fmt: skip
    return {"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [
        {**calico, **where}, {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}}]}  # fmt: skip


def refused(lab: Lab, expected: set[tuple[str, str]] | None = None) -> set[tuple[str, str]]:
    """Pairs that do not reach each other; with what is expected, no other is called one for being slow."""
    return {pair for pair, answer in lab.matrix(timeout=1.0, refused=expected).items() if not answer.ok}


def take_over(node: LabNode) -> None:
    """The rolling update of the DaemonSet reaches a node: Calico's processes die, ours start."""
    node.box.kill("bird", "-R")
    for name in ("calico", "calico-ipam"):
        shutil.copy2(shim_path(), node.box.path(f"/opt/cni/bin/{name}"))
    node.start_agent()
    node.wait_ready()


def links(lab: Lab) -> dict[str, Any]:
    """Pod -> the host side of its interface."""
    found = {}
    for pod, (node, _) in PODS.items():
        [link] = json.loads(lab.nodes[node].box.output("ip", "-j", "link", "show", interface(pod)))
        found[pod] = (
            link["ifindex"],
            link["address"],
            lab.pods[pod].output("ip", "-br", "addr", "show", "eth0"),
        )
    return found


def test_a_cluster_is_taken_over_node_by_node(lab: Lab) -> None:
    wait_until(lambda: refused(lab) == {("c", "b")}, "Calico's own network", 240,
               lambda: str(refused(lab)))  # fmt: skip
    before, stored = links(lab), ipam(lab)
    with Flow(lab.pods["c"], lab.pods["b"]) as denied:
        for node in lab.nodes.values():
            without_loss(lab, node)
    assert denied.answered == set()
    assert (links(lab), ipam(lab)) == (before, stored)
    stays_what_is_not_calicos(lab)
    everything_known(lab)
    pods_come_and_go(lab)
    goes_back(lab, lab.nodes["node-1"])


def without_loss(lab: Lab, node: LabNode) -> None:
    """Take one node over, with traffic from, to and across it."""
    a, b, c, d = (lab.pods[name] for name in "abcd")
    with Flow(a, b) as allowed, Flow(b, c) as onward, Stream(d, b) as stream:
        take_over(node)
        await_no_leftovers(node)
    assert (allowed.lost, onward.lost) == ([], []), f"{node.name}: of {allowed.sent}"
    assert (stream.failure, stream.retransmitted) == ("", 0), node.name
    assert refused(lab, {("c", "b")}) == {("c", "b")}, node.name


def await_no_leftovers(node: LabNode) -> None:
    wait_until(lambda: leftovers(node) == [], f"what Calico left on {node.name} to go", 240,
               lambda: "\n".join(leftovers(node)))  # fmt: skip


def leftovers(node: LabNode) -> list[str]:
    """Lines that only Calico can have written; routes of BIRD are ours if that is our speaker."""
    box = node.box
    saved = box.run("iptables-save", check=False)
    if saved.returncode != 0:
        return ["cut short"]  # a set that it names went meanwhile
    found = [*saved.stdout.splitlines(), *box.output("ipset", "list", "-n").split()]
    found = [line for line in found if any(word in line for word in ONLY_CALICOS)]
    if node.speaker == "bird":
        return found
    return [*found, *box.output("ip", "route", "show", "proto", "bird").splitlines()]


def stays_what_is_not_calicos(lab: Lab) -> None:
    for node in lab.nodes.values():
        rules = node.box.output("iptables-save")
        for line in ("-A PREROUTING -j KUBE-SERVICES", "-A INPUT -j KUBE-FIREWALL",
                     "-A FORWARD -d 203.0.113.9/32 -j DROP"):  # fmt: skip
            assert line in rules, node.name
        assert "203.0.113.9" in node.box.output("ipset", "list", "theirs")
        # Each of the kernel's chains leads to ours once.
        assert rules.count("-j cali-FORWARD") == 1


def everything_known(lab: Lab) -> None:
    """calicoctl and IPAM see what Calico has stored."""
    assert "found 0 problems" in lab.calicoctl("ipam", "check").stdout
    shown = lab.calicoctl("get", "wep", "-o", "wide").stdout
    assert all(f"{address(pod)}/32" in shown and interface(pod) in shown for pod in PODS)
    cluster = json.loads(lab.calicoctl("get", "clusterinformation", "default", "-o", "json").stdout)
    assert cluster["spec"]["clusterGUID"] == GUID
    assert "knp.default.db" in lab.calicoctl("get", "networkpolicy").stdout
    spec = json.loads(lab.calicoctl("get", "ippool", "default-ipv4-ippool", "-o", "json").stdout)["spec"]
    assert spec["vxlanMode"] == ("Always" if lab.kubernetes else "Never") and spec["natOutgoing"] is True


def ipam(lab: Lab) -> dict[str, Any]:
    """Every block as it is stored."""
    if lab.kubernetes is None:
        found = Gateway(lab.etcd.endpoint).entries("/calico/ipam/v2/assignment/")
        return {key: json.loads(value) for key, value in found.items()}
    listed = lab.kubernetes.ask("GET", "/apis/crd.projectcalico.org/v1/ipamblocks")
    return {one["metadata"]["name"]: one["spec"] for one in listed["items"]}


def goes_back(lab: Lab, node: LabNode) -> None:
    """Our agent ends and Calico's begins: what it finds has the names by which it knows its own."""
    here, *there = (lab.pods[f"new{number}"] for number in range(len(BLOCKS)))
    with Flow(there[0], here) as inward, Flow(here, there[1]) as outward:
        node.stop_agent()
        assert foreign(node) == []
        if lab.kubernetes is None:
            hand_routes_to_bird(lab, node)
    assert (inward.lost, outward.lost) == ([], []), f"of {inward.sent}"
    assert refused(lab, set()) == set()


def hand_routes_to_bird(lab: Lab, node: LabNode) -> None:
    """BIRD puts none where another one is: ours make room, and carry the traffic until it has seen that."""
    start_bird(lab, node, 0)
    node.box.run("sh", "-c", MAKE_ROOM)
    count = len(BLOCKS)
    wait_until(lambda: node.box.output("ip", "route", "show", "proto", "bird").count("/26 ") == count,
               "BIRD to have its routes", 240, lambda: node.box.output("ip", "route"))  # fmt: skip
    node.box.run("ip", "route", "flush", "proto", "bgp")


def foreign(node: LabNode) -> list[str]:
    """Names that are neither the kernel's, nor Calico's, nor those of somebody else on this machine."""
    box = node.box
    rules = box.output("iptables-save") + box.output("ip6tables-save")
    links = {one["ifname"] for one in json.loads(box.output("ip", "-j", "link"))}
    sets = {*box.output("ipset", "list", "-n").split()} - {"theirs"}
    return [
        *(name for name in re.findall(r"^:(\S+)", rules, re.M) if not re.match(r"cali-|[A-Z-]+$", name)),
        *(line for line in re.findall(r"^-A.* cali-.*", rules, re.M)
          if not re.search(r'--comment "cali:[-\w]{16}"', line)),
        # The kernel's own end with a zero, as tunl0 does.
        *(name for name in links if not re.match(r"cali|vxlan\.calico$|lo$|\w+0$", name)),
        *(name for name in sets if not re.match(r"cali[46]0", name)),
    ]  # fmt: skip


def pods_come_and_go(lab: Lab) -> None:
    """Among those of Calico's days: by its network configuration, without an address twice."""
    apps = zip("baa", BLOCKS, strict=True)  # the policy that is b's is the first one's, too
    new = [lab.add_pod(f"new{n}", node, labels={"app": app}) for n, (app, node) in enumerate(apps)]
    taken = [pod.address() for pod in new]
    assert len({*taken, *map(address, PODS)}) == len(taken) + len(PODS)
    target = [Probe(pod.netns_fd, address("b"), 80) for pod in new[1:]]
    wait_until(lambda: all(answer.ok for answer in run(target, 1.0)), "new pods to reach b", 240)
    for name in [*PODS]:
        old = interface(name)
        node = lab.nodes[PODS[name][0]]
        lab.delete_pod(name)
        assert old not in node.box.output("ip", "-br", "link")
    wait_until(
        lambda: refused(lab) == set(), "the new pods to reach each other", 240, lambda: str(refused(lab))
    )
    shown = lab.calicoctl("ipam", "show", f"--ip={address('a')}").stdout
    assert "is not assigned" in shown, shown
    assert "found 0 problems" in lab.calicoctl("ipam", "check").stdout
