"""WireGuard's devices, tables and rules in a real kernel, with keys and peers that are a dictionary's."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.felix.wireguard_door import KIND, Node
from tests.netns_lab import Namespace
from tests.support.aio import run
from tests.support.memory_backend import MemoryBackend
from tortie.datastore.client import Client
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node as Resource
from tortie.datastore.types.node import NodeStatus
from tortie.felix import wgbootstrap
from tortie.felix.calc.topology import NodeAddresses
from tortie.linux import links
from tortie.linux import wireguard as wg

pytestmark = pytest.mark.kernel

FAR = "A" * 42 + "E="  # a key of node 2
RULE = "99:\tnot from all fwmark 0x200000/0x200000 lookup {}"
NODES = {
    "node1": NodeAddresses("172.16.0.1/24", wireguard=((4, "10.65.0.1"),)),
    "node2": NodeAddresses("172.16.0.2/24", keys=((4, FAR),), tunnels=("10.65.0.65",)),
}


@pytest.fixture
def node(make_netns: Callable[[], Namespace], monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(wg, "KIND", KIND)
    ns, far = make_netns(), make_netns()
    ns.veth("eth0", "eth0", far)
    ns.sh("ip address add 172.16.0.1/24 dev eth0")
    yield Node(ns, NODES)


# --- what others do not know yet ----------------------------------------------------------------


def test_other_nodes_own_addresses_are_reached_plainly_until_they_can_know_this_nodes_key(node: Node) -> None:
    node.start()
    plain = ["10.65.0.65 dev wireguard.cali scope link", "throw 172.16.0.2"]
    assert node.table() == plain
    node.nodes["node1"] = replace(node.nodes["node1"], keys=((4, FAR.replace("A", "B")),))  # before a reboot
    node.follow()
    assert node.table() == plain
    node.publish()
    node.follow()
    assert node.table() == [*plain[:1], "172.16.0.2 dev wireguard.cali scope link"]


def kept(node: Node, stored: str) -> tuple[bool, bool, str]:
    """Of the device, the rule and the key in the datastore: what a start leaves, before its first pass."""
    client = Client(MemoryBackend())
    resource = Resource(metadata=ObjectMeta(name="node1"), status=NodeStatus(wireguardPublicKey=stored))
    created = run(client.create(resource))
    run(wgbootstrap.clear_stale(node.options, node.kernel, client, created))
    status = run(client.get(Resource, "node1")).status
    return "wireguard.cali" in node.links(), bool(node.rules()), status.wireguardPublicKey


def test_what_an_earlier_run_left_goes_on_while_its_key_is_the_one_that_others_know(node: Node) -> None:
    node.start()
    key = node.wireguard.keys()[4]
    assert kept(node, key) == (True, True, key)
    node.options = replace(node.options, devices=("wg.new", "wg-v6.cali"))
    assert kept(node, key) == (True, True, key), "under the name it had"
    node.options = replace(node.options, encrypt_host=False)
    assert kept(node, FAR) == (True, True, FAR), "the other nodes are reached anyway"


@pytest.mark.parametrize("why", ["another key", "no key", "no peer", "rebooted", "rebooted, never had one"])
def test_what_an_earlier_run_left_goes_where_others_do_not_know_it(node: Node, why: str) -> None:
    rebooted = why.startswith("rebooted")
    node.start(versions=frozenset() if rebooted else frozenset((4,)))
    key = node.wireguard.keys()[4]
    if why == "no peer":
        del node.nodes["node2"]
        node.follow()
    if rebooted:
        node.options = replace(node.options, versions=frozenset((4,)))
    stored = {"another key": FAR, "no peer": key, "rebooted": FAR}.get(why, "")
    assert kept(node, stored) == (False, False, "")


# --- addresses ----------------------------------------------------------------------------------


def test_an_address_that_the_kernel_refuses_is_told_and_leaves_key_and_device_alone(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    only = frozenset((6,))
    node.nodes["node1"] = NodeAddresses(v6="fd16::1/64", wireguard=((6, "ff02::1"),))
    node.start(versions=only, host=only)
    (devices, *_) = node.wireguard.duties
    assert "add address ff02::1/128" in devices.outcome.failed["wg-v6.cali"]
    assert any("ff02::1/128" in line for line in caplog.messages), caplog.messages
    key, ifindex = node.wireguard.keys()[6], node.ns.ifindex("wg-v6.cali")
    assert key and "lookup 1\n" in node.ns.sh("ip -6 rule")
    node.follow()
    assert (node.wireguard.keys()[6], node.ns.ifindex("wg-v6.cali")) == (key, ifindex)
    node.nodes["node1"] = NodeAddresses(v6="fd16::1/64", wireguard=((6, "fd65::1"),))
    node.follow()
    assert devices.outcome.ok and node.wireguard.keys()[6] == key
    assert "fd65::1/128" in node.ns.sh("ip address show dev wg-v6.cali")


# --- what is left of another configuration ------------------------------------------------------


def test_the_device_of_the_other_ip_version_is_not_this_ones(node: Node) -> None:
    node.start(versions=frozenset((6,)))
    node.options = replace(node.options, versions=frozenset((4, 6)))
    before = node.links()
    assert wgbootstrap.held_by(node.kernel, node.options, 4, "") == {}
    assert kept(node, FAR) == (False, False, "") and node.links() == before


@pytest.mark.parametrize(
    ("mark", "port", "ours"),
    [(0x200000, 51820, True), (0x200000, 1, False), (0, 51820, False)],
)
def test_a_device_of_another_name_was_ours_by_its_mark_and_by_its_port_or_key(
    node: Node, mark: int, port: int, ours: bool
) -> None:
    """At the start as later on."""
    node.start(versions=frozenset())
    node.ns.netlink.execute(links.create_bridge("other", up=True))
    node.door.set_device("other", private_key=b"x" * wg.KEY_SIZE, port=port, mark=mark)
    key = node.door.read("other").public_key
    assert ("other" in wgbootstrap.held_by(node.kernel, node.options, 4, "")) is ours
    assert ("other" in wgbootstrap.held_by(node.kernel, node.options, 4, key)) is (mark != 0)
    node.follow()
    assert ("other" in node.links()) is not ours


def test_a_device_of_the_name_that_has_not_our_mark_is_somebodys(node: Node) -> None:
    node.start(versions=frozenset())
    node.ns.netlink.execute(links.create_bridge("wireguard.cali", up=True))
    node.door.set_device("wireguard.cali", private_key=b"x" * wg.KEY_SIZE, port=1, mark=0)
    node.options = replace(node.options, versions=frozenset((4,)))
    assert kept(node, FAR) == (True, False, "")


@pytest.mark.parametrize("mark", [None, 0x400000])
@pytest.mark.parametrize("still_on", [True, False])
def test_another_range_of_tables_leaves_nothing_in_the_one_before(
    node: Node, still_on: bool, mark: int | None
) -> None:
    """Also where the mark was changed with it."""
    node.start(table=7)
    assert node.rules() == [RULE.format(7)] and len(node.table(7)) == 2
    node.ns.sh("ip route add 10.98.0.0/24 dev eth0 table 7")
    node.ns.sh("ip rule add priority 98 fwmark 0x1 lookup 7")
    changed = {} if mark is None else {"mark": mark}
    node.start(table=1, versions=frozenset((4,)) if still_on else frozenset(), **changed)
    theirs = "98:\tfrom all fwmark 0x1 lookup 7"
    ours = RULE.format(1) if mark is None else RULE.format(1).replace("0x200000", f"{mark:#x}")
    assert node.rules() == ([theirs, ours] if still_on else [theirs])
    assert node.table(7) == ["10.98.0.0/24 dev eth0 scope link"]
    assert len(node.table(1)) == (2 if still_on else 0)


def test_without_a_table_there_is_no_wireguard_and_nothing_of_it(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.start(table=7)
    main = node.table(254)
    node.start(table=0)
    assert "wireguard.cali" not in node.links() and not node.rules()
    assert node.table(254) == main and node.table(7) == []
    assert node.wireguard.keys() == {4: "", 6: ""}
    assert any("Unable to assign table index" in line for line in caplog.messages)


def test_a_route_over_a_device_that_nobody_knows_yet_stays(node: Node) -> None:
    """The kernel's event about the device may come after our look at the routes."""
    node.start()
    node.ns.netlink.execute(links.create_bridge("theirs", up=True))
    node.ns.sh("ip route add 10.98.0.0/24 dev theirs table 1")
    node.clock.now += 1000
    run(node.wireguard.sync())
    assert any(line.startswith("10.98.0.0/24 dev theirs") for line in node.table())


def test_a_device_that_was_renamed_goes_and_that_of_somebody_else_with_our_mark_stays(node: Node) -> None:
    node.start()
    node.publish()
    node.ns.netlink.execute(links.create_bridge("theirs", up=True))
    node.door.set_device("theirs", private_key=b"x" * wg.KEY_SIZE, port=12345, mark=node.options.mark)
    for name in ("wg.key", "wg.port"):  # what the one before is known by
        node.start(devices=(name, "wg-v6.cali"), ports=(1, 2))
        assert node.links() & {"theirs", "wireguard.cali", "wg.key", "wg.port"} == {"theirs", name}
