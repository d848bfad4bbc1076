"""WireGuard between whole nodes, in two networks that know no pod: keys, addresses, routes, and off again.

In a guest, as few hosts' kernels have it. What felix makes of it is tested in test_felix_wireguard_vm.py.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster_guest import guest_lab
from tortie.lab.box import LabError
from tortie.lab.cluster import Lab, LabNode, wait_until
from tortie.lab.wire import Capture

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]  # Python is twenty times slower there

NODES = {"a": "node-1", "b": "node-2"}  # pod -> its node; node-2 is behind the router
PATIENCE = 1200.0  # seconds: a busy machine, and a guest on it


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    settings = {"CALICO_IPV4POOL_IPIP": "Never", "CALICO_IPV4POOL_VXLAN": "Never"}
    with guest_lab(tmp_path_factory.mktemp("lab"), "wireguard", NODES, PATIENCE, **settings) as lab:
        yield lab


def switch(lab: Lab, on: bool) -> None:
    spec = json.dumps({"spec": {"wireguardEnabled": on}})
    done = lab.calicoctl("patch", "felixconfiguration", "default", "-p", spec)
    assert done.returncode == 0, done.stderr


def answers(lab: Lab) -> bool:
    try:
        return all(answer.ok for answer in lab.matrix(timeout=60.0).values())
    except LabError:
        return False


def has_device(node: LabNode) -> bool:
    return "wireguard.cali" in node.box.output("ip", "-o", "link", "show")


def addresses(node: LabNode) -> str:
    return node.box.output("ip", "-o", "-4", "addr", "show", "dev", "wireguard.cali")


def test_pods_of_two_networks_talk_through_wireguard_alone(lab: Lab) -> None:
    switch(lab, on=True)
    wait_until(lambda: answers(lab), "pods to reach each other", PATIENCE)
    ips = [node.ip for node in lab.nodes.values()]
    pods = [pod.address() for pod in lab.pods.values()]
    with Capture([*pods, *ips]) as capture:
        assert answers(lab)
    kinds = {pair: {one.kind for one in seen} for pair, seen in capture.seen.items()}
    assert not [pair for pair in kinds if set(pair) & set(pods)], kinds
    assert "wireguard" in kinds[ips[0], ips[1]] and "wireguard" in kinds[ips[1], ips[0]]


def test_each_node_says_its_key_and_has_an_address_for_the_tunnel(lab: Lab) -> None:
    items: list[Any] = []

    def all_have() -> bool:
        items[:] = json.loads(lab.calicoctl("get", "nodes", "-o", "json").stdout)["items"]
        return all(
            one.get("status", {}).get("wireguardPublicKey")
            and one["spec"].get("wireguard", {}).get("interfaceIPv4Address")
            for one in items
        )

    wait_until(all_have, "each node to have a key and an address", PATIENCE, lambda: str(items))
    for item in items:
        node = lab.nodes[item["metadata"]["name"]]
        node.wait_until(
            lambda n=node, a=item["spec"]["wireguard"]["interfaceIPv4Address"]: f"inet {a}/" in addresses(n),  # type: ignore[misc]
            "the tunnel's address", PATIENCE,
        )  # fmt: skip
    audit = lab.calicoctl("ipam", "check").stdout
    assert "Check complete; found 0 problems." in audit, audit


def test_switched_off_nothing_of_it_is_left(lab: Lab) -> None:
    switch(lab, on=False)
    for node in lab.nodes.values():
        node.wait_until(lambda node=node: not has_device(node), "no device", PATIENCE)  # type: ignore[misc]
        node.wait_until(lambda n=node: "lookup 1" not in n.box.output("ip", "rule"), "no rule", PATIENCE)  # type: ignore[misc]

    def withdrawn() -> bool:
        shown = json.loads(lab.calicoctl("get", "nodes", "-o", "json").stdout)
        return not any(item.get("status", {}).get("wireguardPublicKey") for item in shown["items"])

    wait_until(withdrawn, "the keys to be taken back", PATIENCE)
