"""Who is reached through WireGuard: the decisions, and that a node whose kernel has none goes on without."""

from base64 import b64encode
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.felix.wireguard_door import peers_after
from tests.felix.wireguard_lab import DEVICES, World, picture
from tests.netns_lab import Namespace
from tests.support.aio import run
from tests.support.memory_backend import MemoryBackend
from tortie.core.errors import UpdateConflict
from tortie.datastore.backend import KV
from tortie.datastore.client import Client
from tortie.datastore.keys import BlockKey
from tortie.datastore.syncer import Update
from tortie.datastore.types.ipam import AllocationAttribute, Block
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.node import Node, NodeBGPSpec, NodeSpec, NodeStatus, NodeWireguardSpec
from tortie.felix import wgkeys
from tortie.felix.calc import topology
from tortie.felix.calc.graph import Calculation
from tortie.felix.calc.topology import NodeAddresses
from tortie.felix.calc.wireguard import Peer, Plan, holders, plan
from tortie.felix.config import Sources, resolve
from tortie.felix.dataplane.wgdevice import changes
from tortie.linux import links
from tortie.linux import wireguard as wg

pytestmark = pytest.mark.unit

NAMES = ("node1", "node2", "node3", "node4")
KEYS = tuple(b64encode(bytes([number]) * 32).decode() for number in range(1, 5))
OWN = KEYS[0]


def at(number: int, key: str = "", *tunnels: str, v4: bool = True) -> NodeAddresses:
    return NodeAddresses(
        f"172.16.0.{number}/24" if v4 else "",
        f"fd16::{number}/64",
        keys=((4, key),) if key else (),
        tunnels=tunnels,
    )


# --- examples -----------------------------------------------------------------------------------


def test_blocks_borrowed_addresses_and_tunnel_addresses_go_to_who_has_them() -> None:
    owners = {"10.1.0.0/26": "node1", "10.2.0.0/26": "node2", "10.2.0.7/32": "node1", "10.2.0.8/32": "node3"}
    owners |= {"10.9.0.0/26": "", "fd10::/122": "node2", "10.1.0.9/32": "node1"}
    nodes = {"node1": at(1, OWN, "10.1.0.1"), "node2": at(2, KEYS[1], "10.2.0.1", "fd10::1"), "node3": at(3)}
    held = holders(4, owners, nodes, "node1")
    assert held == {
        "node1": {"10.1.0.0/26", "10.2.0.7/32"},
        "node2": {"10.2.0.0/26", "10.2.0.1/32"},
        "node3": {"10.2.0.8/32"},
    }
    assert plan(4, OWN, held, nodes, "node1") == Plan(
        {KEYS[1]: Peer("node2", "172.16.0.2", frozenset({"10.2.0.0/26", "10.2.0.1/32"}))},
        {
            "10.1.0.0/26": False,
            "10.2.0.7/32": False,
            "10.2.0.0/26": True,
            "10.2.0.1/32": True,
            "10.2.0.8/32": False,
        },
    )


def test_with_host_encryption_other_nodes_own_addresses_are_theirs_too() -> None:
    nodes = {"node1": at(1, OWN), "node2": at(2, KEYS[1])}
    held = holders(4, {}, nodes, "node1", encrypt_host=True)
    assert held == {"node1": frozenset(), "node2": {"172.16.0.2/32"}}
    assert holders(6, {}, nodes, "node1", encrypt_host=True)["node2"] == {"fd16::2/128"}


@pytest.mark.parametrize("claimed", [KEYS[1], OWN], ids=["another's", "ours"])
def test_a_key_that_several_claim_is_nobodys(claimed: str) -> None:
    nodes = {"node1": at(1, OWN), "node2": at(2, KEYS[1]), "node3": at(3, claimed)}
    found = plan(4, OWN, {"node2": frozenset({"10.2.0.0/26"})}, nodes, "node1")
    assert "node3" in found.disputed and claimed not in found.peers
    assert found.ways == {"10.2.0.0/26": claimed == OWN}


def test_a_peer_needs_an_address_of_the_family() -> None:
    nodes = {"node1": at(1, OWN), "node2": at(2, KEYS[1], v4=False)}
    assert plan(4, OWN, {"node2": frozenset({"10.2.0.0/26"})}, nodes, "node1") == Plan(
        {}, {"10.2.0.0/26": False}
    )


# --- for all ------------------------------------------------------------------------------------

nets = st.one_of(
    st.builds(lambda n: f"10.0.{n}.0/26", st.integers(0, 7)),
    st.builds(lambda n, m: f"10.0.{n}.{m}/32", st.integers(0, 7), st.integers(0, 63)),
)
worlds = st.tuples(
    st.dictionaries(nets, st.sampled_from(("", *NAMES, "gone")), max_size=10),
    st.fixed_dictionaries({name: st.sampled_from(("", *KEYS)) for name in NAMES[1:]}),
    st.fixed_dictionaries({name: st.booleans() for name in NAMES[1:]}),
)


@given(worlds)
def test_a_packet_goes_where_the_longest_prefix_says_and_encrypted_if_that_node_can(world: Any) -> None:
    """Against each address of the world looked up by itself."""
    owners, keys, addressed = world
    nodes = {"node1": at(1, OWN)} | {
        name: at(number, keys[name], v4=addressed[name]) for number, name in enumerate(NAMES[1:], 2)
    }
    held = holders(4, owners, nodes, "node1")
    found = plan(4, OWN, held, nodes, "node1")
    claims = [OWN, *keys.values()]
    able = {name for name in NAMES[1:] if keys[name] and claims.count(keys[name]) == 1 and addressed[name]}
    for address in {net.partition("/")[0] for net in owners}:
        covering = {net for net in owners if owners[net] and _holds(net, address)}
        if not covering:
            continue
        whose = owners[max(covering, key=lambda net: int(net.partition("/")[2]))]
        route = max(
            (net for net in found.ways if _holds(net, address)), key=lambda net: int(net.partition("/")[2])
        )
        assert found.ways[route] == (whose in able)
        peers = [peer for peer in found.peers.values() if route in peer.allowed]
        assert [peer.node for peer in peers] == ([whose] if whose in able else [])


def _holds(net: str, address: str) -> bool:
    return ip_network(address).subnet_of(ip_network(net))  # type: ignore[arg-type]


@given(worlds)
def test_what_peers_may_send_and_what_is_sent_to_them_is_the_same_and_nobody_elses(world: Any) -> None:
    owners, keys, addressed = world
    nodes = {name: at(number, keys[name], v4=addressed[name]) for number, name in enumerate(NAMES[1:], 2)}
    found = plan(4, OWN, holders(4, owners, nodes, "node1"), nodes, "node1")
    allowed = [net for peer in found.peers.values() for net in peer.allowed]
    assert len(allowed) == len(set(allowed))
    assert set(allowed) == {net for net, through in found.ways.items() if through}
    assert OWN not in found.peers


# --- what the kernel is told about peers --------------------------------------------------------

peers = st.dictionaries(
    st.sampled_from(KEYS),
    st.builds(
        wg.Peer,
        endpoint=st.sampled_from(("172.16.0.2", "172.16.0.3")),
        port=st.just(51820),
        keepalive=st.sampled_from((0, 25)),
        allowed=st.frozensets(st.sampled_from(("10.1.0.0/26", "10.2.0.0/26", "10.2.0.7/32"))),
    ),
)


def _each_net_once(found: dict[str, wg.Peer]) -> bool:
    given_out = [net for peer in found.values() for net in peer.allowed]
    return len(given_out) == len(set(given_out))


@given(peers.filter(_each_net_once), peers.filter(_each_net_once))
def test_a_change_of_peers_ends_as_wished_whatever_was_there(
    there: dict[str, wg.Peer], wanted: dict[str, wg.Peer]
) -> None:
    update = {key: peer for key, peer in wanted.items() if there.get(key) != peer}
    told = list(changes(update, there.keys() - wanted.keys(), there))
    assert peers_after(there, told) == wanted


def test_a_new_allowed_ip_does_not_touch_the_others() -> None:
    before = wg.Peer("172.16.0.2", 51820, 0, frozenset({"10.1.0.0/26"}))
    after = wg.Peer("172.16.0.2", 51820, 0, frozenset({"10.1.0.0/26", "10.2.0.7/32"}))
    assert list(changes({KEYS[1]: after}, (), {KEYS[1]: before})) == [
        wg.PeerChange(KEYS[1], update_only=True, allowed=("10.2.0.7/32",))
    ]


# --- what nodes say -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [(KEYS[0], KEYS[0]), ("", ""), ("A" * 43 + "=", ""), ("AAAA", ""), ("no key", ""), ("ä", "")],
)
def test_only_a_key_is_a_key(text: str, key: str) -> None:
    status = NodeStatus(wireguardPublicKey=text)
    assert topology.node_addresses(Node(metadata=ObjectMeta(name="n"), status=status)).key(4) == key


def test_what_a_node_says_of_its_tunnels() -> None:
    spec = NodeSpec(
        bgp=NodeBGPSpec(ipv4Address="172.16.0.2/24", ipv4IPIPTunnelAddr="10.2.0.2"),
        ipv4VXLANTunnelAddr="10.2.0.3",
        ipv6VXLANTunnelAddr="fd10:0::3",
        wireguard=NodeWireguardSpec(interfaceIPv4Address="10.2.0.4", interfaceIPv6Address="fd10::4"),
    )
    found = topology.node_addresses(Node(metadata=ObjectMeta(name="n"), spec=spec))
    assert sorted(found.tunnels) == ["10.2.0.2", "10.2.0.3", "10.2.0.4", "fd10::3", "fd10::4"]
    assert (found.wireguard_address(4), found.wireguard_address(6)) == ("10.2.0.4", "fd10::4")


def test_an_address_of_the_other_ip_version_is_none() -> None:
    wireguard = NodeWireguardSpec(interfaceIPv4Address="fd10::4", interfaceIPv6Address="10.2.0.4")
    node = Node(metadata=ObjectMeta(name="n"), spec=NodeSpec(wireguard=wireguard))
    assert topology.node_addresses(node).wireguard == ()


def test_owners_of_all_blocks_are_known_only_where_somebody_asks() -> None:
    allocations, attributes = (None, 0, None, None), (AllocationAttribute(secondary={"node": "node3"}),)
    block = Block(cidr="10.2.0.0/26", affinity="host:node2", allocations=allocations, attributes=attributes)
    for on, owners in ((True, {"10.2.0.0/26": "node2", "10.2.0.1/32": "node3"}), (False, {})):
        config, _ = resolve(Sources("node1", {"FELIX_WIREGUARDENABLED": str(on)}))
        assert config.needs_blocks is on
        calculation = Calculation(config.inputs())
        calculation.update(Update("new", BlockKey("10.2.0.0/26"), block))
        calculation.flush()
        assert calculation.state.owners == owners


# --- configuration ------------------------------------------------------------------------------


def options(**given_values: str) -> Any:
    config, _ = resolve(Sources("node1", {f"FELIX_{name}": value for name, value in given_values.items()}))
    return config.options(frozenset((4, 6)), "1").wireguard


def test_every_parameter_has_its_effect() -> None:
    assert options().versions == frozenset() and options().table == 1
    found = options(
        WireguardEnabled="true", WireguardEnabledV6="true", WireguardListeningPort="1000",
        WireguardListeningPortV6="1001", WireguardRoutingRulePriority="55", WireguardInterfaceName="wg4",
        WireguardInterfaceNameV6="wg6", WireguardMTU="1300", WireguardHostEncryptionEnabled="true",
        WireguardPersistentKeepAlive="25", WireguardThreadingEnabled="true", RouteTableRanges="7-9",
        DeviceRouteProtocol="80", RouteSyncDisabled="true", RouteRefreshInterval="33",
    )  # fmt: skip
    assert (found.versions, found.host, found.ports, found.devices) == (
        frozenset((4, 6)), frozenset((4, 6)), (1000, 1001), ("wg4", "wg6"),
    )  # fmt: skip
    assert (found.priority, found.table, found.keepalive, found.threading) == (55, 7, 25, True)
    assert (found.sizes, found.encrypt_host, found.mark) == (((1300, 60), (0, 80)), True, 0x200000)
    assert (found.protocol, found.routes, found.interval) == (80, False, 33)
    assert options(WireguardPersistentKeepAlive="100000").keepalive == 65535
    assert options(WireguardEnabled="true", ClusterType="aks").sizes == ((0, 60), (0, 80))
    cloud = options(WireguardEnabled="true", WireguardHostEncryptionEnabled="true", ClusterType="k8s,aks")
    assert cloud.sizes == ((0, 160), (0, 180))


def test_the_mark_is_of_what_enforces() -> None:
    config, _ = resolve(
        Sources("node1", {"FELIX_WIREGUARDENABLED": "true", "FELIX_NFTABLESMARKMASK": "0xff0"})
    )
    for nftables, mark in ((False, 0x200000), (True, 0x200)):
        assert config.options(frozenset((4,)), "1", nftables=nftables).wireguard.mark == mark


@pytest.mark.parametrize(
    ("ranges", "table"), [("253-255", 0), ("254-256", 256), ("50-60,7-9", 7), ("250-260", 250)]
)
def test_the_first_table_that_is_not_the_kernels(ranges: str, table: int) -> None:
    assert options(RouteTableRanges=ranges).table == table


def test_the_older_range_of_tables_counts_where_the_newer_says_nothing() -> None:
    assert options(RouteTableRange="11-12").table == 11
    assert options(RouteTableRange="11-12", RouteTableRanges="13-14").table == 13


# --- telling others -----------------------------------------------------------------------------


class Busy(MemoryBackend):
    """Somebody else writes the Node in front of each of our first `others` writes."""

    def __init__(self, others: int) -> None:
        super().__init__()
        self.others = others

    async def update(self, kv: KV) -> KV:
        if self.others:
            self.others -= 1
            stored = await self.get(kv.key)
            await super().update(KV(kv.key, labelled(stored.value, self.others), stored.revision))
        return await super().update(kv)


def labelled(node: Node, number: int) -> Node:
    return node.with_metadata(labels={"other": str(number)})


async def _published(backend: MemoryBackend, keys: Mapping[int, str]) -> Node:
    client = Client(backend)
    await client.create(
        Node(metadata=ObjectMeta(name="node1"), status=NodeStatus(wireguardPublicKeyV6=KEYS[3]))
    )
    await wgkeys.publish(client, "node1", keys)
    return await client.get(Node, "node1")


@pytest.mark.parametrize("others", [0, 2])
def test_keys_come_into_the_node_and_nothing_of_others_is_lost(others: int) -> None:
    found = run(_published(Busy(others), {4: OWN}))
    assert found.status == NodeStatus(wireguardPublicKey=OWN, wireguardPublicKeyV6=KEYS[3])
    assert found.labels == ({"other": "0"} if others else {})


def test_a_key_that_is_no_more_is_taken_out() -> None:
    assert run(_published(Busy(0), {4: "", 6: ""})).status == NodeStatus()


def test_who_always_comes_too_late_says_so() -> None:
    with pytest.raises(UpdateConflict):
        run(_published(Busy(99), {4: OWN}))


def test_a_node_that_is_not_there_has_nobody_to_tell() -> None:
    run(wgkeys.publish(Client(MemoryBackend()), "node1", {4: OWN}))


# --- without a device ---------------------------------------------------------------------------


@pytest.mark.kernel
@pytest.mark.parametrize("why", ["as this kernel is", "the name is taken"])
def test_a_node_that_cannot_have_a_device_goes_on_without(
    make_netns: Callable[[], Namespace], caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """What can be had of it depends on this machine's kernel; that pods talk, and what is said, does not."""
    world = World(make_netns, machines=2)
    machine = world.machines[1]
    try:
        able = why == "as this kernel is" and _has_wireguard(make_netns())
        if why == "the name is taken":
            for device in DEVICES.values():
                machine.ns.netlink.execute(links.create_bridge(device))
        world.start(WireguardEnabled="true", WireguardEnabledV6="true")
        for version in (4, 6):
            key = machine.driver.wireguard.keys()[version]
            assert bool(key) is able
            said = f"IPv{version} WireGuard devices could not be made so"
            reason = "there is a bridge of this name" if "taken" in why else "this kernel has no WireGuard"
            assert able or any(said in line and reason in line for line in caplog.messages), caplog.messages
            assert world.pods_reach(1, 2, version)
        rules = machine.ns.sh("ip rule") + machine.ns.sh("ip -6 rule")
        assert ("lookup 1 " in rules) is able
        assert world.node(1).status == NodeStatus() or able
        assert all(device in machine.ns.sh("ip link") for device in DEVICES.values()) is (
            able or "taken" in why
        )
    finally:
        world.close()


def _has_wireguard(ns: Namespace) -> bool:
    return ns.netlink.request([links.create("try", wg.KIND)]) == [None]


@pytest.mark.kernel
def test_where_it_is_off_what_an_earlier_felix_left_goes_and_nothing_else(
    make_netns: Callable[[], Namespace],
) -> None:
    """A felix that was replaced by one without WireGuard while it was down."""
    world = World(make_netns, machines=2)
    machine = world.machines[1]
    try:
        for command in ("ip", "ip -6"):
            machine.ns.sh(f"{command} rule add priority 98 fwmark 0x1 lookup 1")
        machine.ns.sh("ip route add 10.98.0.0/24 dev eth0 table 1")
        before = picture(machine)
        for command, net in (("ip", "10.65.0.64/26"), ("ip -6", "fd65::40/122")):
            machine.ns.sh(f"{command} rule add priority 77 not fwmark 0x80000/0x80000 lookup 1")
            machine.ns.sh(f"{command} route add throw {net} table 1")
        world.start()
        assert picture(machine) == before
        assert machine.driver.wireguard.keys() == {4: "", 6: ""}
    finally:
        world.close()
