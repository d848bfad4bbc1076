"""WireGuard between three machines: what is on the wire, and what is left of it; in a guest that has it."""

import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import pytest

from tests.felix.node_lab import udp_sees
from tests.felix.wireguard_lab import DEVICES, VERSIONS, Conversation, Machine, World, block_of, picture
from tests.netns_lab import Namespace
from tortie.datastore.keys import ResourceKey
from tortie.datastore.types.node import NodeStatus
from tortie.lab.wire import Capture, Wrapping
from tortie.linux import genetlink, links, wireguard
from tortie.linux.codec import attributes

pytestmark = pytest.mark.vm

ON = {"WireguardEnabled": "true", "WireguardEnabledV6": "true"}
PORTS = {4: 51820, 6: 51821}
RENEWED = 120.0  # seconds after which a session that is used has another handshake (WireGuard's paper, 6.1)
OTHER = {"WireguardInterfaceName": "wg.other", "WireguardListeningPort": "51899"}
BOTH = frozenset(((1, 2), (2, 1)))  # those that can encrypt
ALL = BOTH | {(1, 3), (3, 1)}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    world = World(make)
    yield world
    world.close()
    for namespace in made:
        namespace.close()


class Constant(NamedTuple):
    """What was there before the first test: machines as they were, and connections, which go on."""

    before: dict[int, list[str]]
    conversations: list[Conversation]

    def talk(self) -> None:
        for one in self.conversations:
            one.exchange()


@pytest.fixture(scope="module")
def constant(world: World) -> Iterator[Constant]:
    before = {number: picture(machine) for number, machine in world.machines.items()}
    pod, far = world.machines[1].pod, world.machines[2].pod
    found = Constant(before, [Conversation(pod.ns, address) for address in (far.v4, far.v6)])
    found.talk()
    yield found
    for one in found.conversations:
        one.close()


def captured(world: World, traffic: Callable[[], object]) -> dict[tuple[str, str], frozenset[Wrapping]]:
    """Who sent what to whom on the wire meanwhile, between machines and pods."""
    addresses = {address for machine in world.machines.values() for address in machine.addresses.values()}
    addresses |= {one for machine in world.machines.values() for one in (machine.pod.v4, machine.pod.v6)}
    with world.wire.call(Capture, addresses) as capture:
        traffic()
    return dict(capture.seen)


def check(
    world: World, encrypted: Iterable[tuple[int, int]] = BOTH, ports: Mapping[int, int] = PORTS
) -> None:
    """All pods reach each other in both families; between these machines nothing but WireGuard is seen.

    Towards the machine that has none, everything is plain.
    """
    for version in VERSIONS:
        seen = captured(world, lambda version=version: _everybody(world, version))  # type: ignore[misc]
        for one, other in ALL:
            near, far = world.machines[one], world.machines[other]
            around = near.addresses[version], far.addresses[version]
            pods = (near.pod.v4, far.pod.v4) if version == 4 else (near.pod.v6, far.pod.v6)
            hidden = Wrapping("wireguard", *around, 0, ports[version])
            if (one, other) in encrypted:
                assert pods not in seen, seen
                assert hidden in seen[around], seen
            else:
                assert seen[pods] == {Wrapping()}
                assert hidden not in seen.get(around, ()), seen


def _everybody(world: World, version: int) -> None:
    for one, other in ALL:
        assert world.pods_reach(one, other, version), f"{one} to {other}, IPv{version}\n{evidence(world)}"


def evidence(world: World) -> str:
    return "\n".join(
        line for machine in world.machines.values() for line in (machine.name, *picture(machine))
    )


def handshakes(machine: Machine, version: int) -> dict[bytes, bytes]:
    """Public key of each peer -> when the last handshake with it was."""

    def read() -> list[bytes]:
        with genetlink.open_socket() as door:
            family = genetlink.family_id(door, wireguard.KIND)
            return [one.body for one in door.dump(wireguard.get_device(family, DEVICES[version]))]

    found: dict[bytes, bytes] = {}
    for body in machine.ns.call(read):
        for encoded in wireguard._each(attributes(body, genetlink.HEADER.size).get(wireguard._PEERS, b"")):
            peer = attributes(encoded)
            found[peer[wireguard._PEER_KEY]] = peer[6]  # WGPEER_A_LAST_HANDSHAKE_TIME
    return found


# --- the tests, which go on from each other -----------------------------------------------------


def test_switched_on_under_connections(world: World, constant: Constant) -> None:
    world.start(**ON)
    check(world)
    constant.talk()


def test_what_the_kernel_is_told(world: World) -> None:
    ns = world.machines[1].ns
    assert "99:\tnot from all fwmark 0x200000/0x200000 lookup 1\n" in ns.sh("ip rule")
    assert ns.sh("ip route show table 1").splitlines() == [
        "throw 10.65.0.0/26 ",
        "10.65.0.64/26 dev wireguard.cali scope link ",
        "10.65.0.65 dev wireguard.cali scope link ",
        "throw 10.65.0.128/26 ",
    ]
    assert ns.sh("ip -6 route show table 1").splitlines() == [
        "throw fd65::/122 dev lo metric 1024 pref medium",
        "fd65::41 dev wg-v6.cali metric 1024 pref medium",
        "fd65::40/122 dev wg-v6.cali metric 1024 pref medium",
        "throw fd65::80/122 dev lo metric 1024 pref medium",
    ]
    for version, mtu in ((4, 1440), (6, 1420)):
        (link,) = ns.ip("link", "show", DEVICES[version])
        assert (link["mtu"], "UP" in link["flags"]) == (mtu, True)
        (address,) = ns.ip("address", "show", DEVICES[version])[0]["addr_info"]
        own = "10.65.0.1" if version == 4 else "fd65::1"
        assert (address["local"], address["prefixlen"]) == (own, 32 if version == 4 else 128)
        threaded = ns.call(_content, f"/sys/class/net/{DEVICES[version]}/threaded")
        assert threaded in ("", "0")


def _content(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""  # the guest's /sys shows another namespace


@pytest.mark.parametrize("version", [4, 6])
def test_packets_of_just_the_size_of_the_device_pass_whole(world: World, version: int) -> None:
    size, head = (1440, 28) if version == 4 else (1420, 48)
    pod, far = world.machines[1].pod, world.machines[2].pod
    target = far.v4 if version == 4 else far.v6
    command = ["ping", "-n", "-c", "1", "-W", "60", "-M", "do", target, "-s"]
    pod.ns.run(*command, str(size - head))  # fails if there is no answer
    assert " 0 received" in pod.ns.run(*command, str(size - head + 1), check=False)


@pytest.mark.parametrize("version", [4, 6])
def test_a_nodes_own_packets_to_pods_are_encrypted_and_carry_its_tunnels_address(
    world: World, version: int
) -> None:
    near, far = world.machines[1], world.machines[2].pod
    own, target = ("10.65.0.1", far.v4) if version == 4 else ("fd65::1", far.v6)
    sources: list[str] = []
    seen = captured(world, lambda: sources.append(udp_sees(far.ns, near.ns, target)))
    assert sources == [own]
    assert not any(target in pair for pair in seen), seen


def sessions(world: World) -> list[dict[bytes, bytes]]:
    return [handshakes(machine, version) for machine in world.felixes.values() for version in VERSIONS]


def age(found: list[dict[bytes, bytes]]) -> float:
    """Seconds since the first of these handshakes (struct __kernel_timespec)."""
    first: int = min(struct.unpack("=qq", one)[0] for peers in found for one in peers.values())
    return time.time() - first


def test_a_restart_keeps_keys_and_sessions(world: World) -> None:
    """And has nothing to write: what is there is as it should be."""
    for _ in range(5):
        before, after = restarted(world)
        if before == after or age(before) < RENEWED:
            break  # else WireGuard itself may have renewed one: once more, with the new ones
    assert before == after


def restarted(world: World) -> tuple[list[dict[bytes, bytes]], list[dict[bytes, bytes]]]:
    """The sessions before and after."""
    check(world)
    nodes = [world.node(number) for number in world.machines]
    before = sessions(world)
    assert all(any(moment) for one in before for moment in one.values())
    machine = world.machines[1]
    machine.start(world.objects, **ON)
    machine.follow(world.objects)
    written = {one.name: (one.outcome.updated, one.outcome.deleted) for one in machine.wireguard_duties}
    assert {name: what for name, what in written.items() if "threads" not in name and what != (0, 0)} == {}
    world.settle()
    check(world)
    assert [world.node(number) for number in world.machines] == nodes
    return before, sessions(world)


def test_what_others_change_comes_back_and_what_is_theirs_stays(world: World) -> None:
    ns = world.machines[1].ns
    ns.sh("ip rule del priority 99")
    ns.sh("ip route del 10.65.0.64/26 table 1")
    ns.sh("ip rule add from 10.99.0.0/24 priority 98 lookup 1")
    ns.sh("ip route add 10.98.0.0/24 dev eth0 table 1")
    world.resync()
    check(world)
    assert "98:\tfrom 10.99.0.0/24 lookup 1" in ns.sh("ip rule")
    assert "10.98.0.0/24 dev eth0 scope link" in ns.sh("ip route show table 1")
    ns.sh("ip rule del priority 98")
    ns.sh("ip route del 10.98.0.0/24 table 1")


def test_a_device_that_is_deleted_comes_back_as_somebody_new(world: World) -> None:
    before = world.node(1).status
    for device in DEVICES.values():
        world.machines[1].ns.netlink.execute(links.delete(device))
    world.settle()
    after = world.node(1).status
    assert after.wireguardPublicKey and after.wireguardPublicKey != before.wireguardPublicKey
    assert after.wireguardPublicKeyV6 and after.wireguardPublicKeyV6 != before.wireguardPublicKeyV6
    check(world)


def test_a_key_that_two_claim_is_nobodys(world: World) -> None:
    """Node 3 says that node 2's is its own."""
    node = world.node(3)
    stolen = NodeStatus(wireguardPublicKey=world.node(2).status.wireguardPublicKey)
    world.change_node(3, status=stolen)
    world.machines[1].follow(world.objects)
    table = world.machines[1].ns.sh("ip route show table 1")
    assert f"throw {block_of(2, 4)}" in table and f"throw {block_of(3, 4)}" in table
    world.change_node(3, status=node.status)
    world.settle()
    check(world)


def test_a_node_that_is_deleted_is_no_peer(world: World) -> None:
    key = ResourceKey("Node", "node2")
    node = world.objects.pop(key)
    machine = world.machines[1]
    machine.follow(world.objects)
    assert handshakes(machine, 4) == {}
    world.objects[key] = node
    world.settle()
    check(world)


def test_host_encryption_with_another_name_and_port(world: World) -> None:
    """All that nodes say to each other, past a strict reverse path filter; the old device is gone."""
    world.start(**ON, **OTHER, WireguardHostEncryptionEnabled="true")
    ports = {4: 51899, 6: PORTS[6]}
    check(world, ports=ports)
    one, two = world.machines[1], world.machines[2]
    assert "wireguard.cali" not in one.ns.sh("ip link") + one.ns.sh("ip route show table 1")
    assert "172.16.0.2 dev wg.other" in one.ns.sh("ip route show table 1")
    for version in VERSIONS:
        heard: list[str] = []
        target = two.addresses[version]
        seen = captured(world, lambda: heard.append(udp_sees(two.ns, one.ns, target)))  # noqa: B023
        assert heard == [one.addresses[version]]
        around = one.addresses[version], target
        assert seen[around] == {Wrapping("wireguard", *around, 0, ports[version])}


def test_switched_off_nothing_is_left_and_no_connection_is_lost(world: World, constant: Constant) -> None:
    world.start(**OTHER)
    check(world, ())
    after = {number: picture(machine) for number, machine in world.machines.items()}
    assert after == constant.before
    assert all(world.node(number).status == NodeStatus() for number in world.machines)
    constant.talk()
