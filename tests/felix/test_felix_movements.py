"""Live migrations: when a workload that moves here gets routes, and which."""

import socket
import struct
from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.felix.driver_lab import Felix
from tests.felix.node_lab import Loop, Node, Pod
from tests.felix.objects import migration
from tests.felix.process_lab import FelixProcess
from tests.netns_lab import eventually
from tortie.felix.announcements import Listener, announces
from tortie.felix.calc.model import MigrationRole, WorkloadId
from tortie.felix.dataplane.endpoints import Wiring
from tortie.felix.dataplane.interfaces import Interface
from tortie.felix.dataplane.movements import Event, Movement, Movements, Phase, after

BASE, TARGET, LIVE, SETTLING, LEAVING = Phase
POD = WorkloadId("k8s", "default/vm", "eth0")
PATIENCE = 30.0


# --- how it goes --------------------------------------------------------------------------------

STEPS = {  # what comes -> where it leads from each phase; Calico's table but for LEAVING, its BASE
    "target": (TARGET, TARGET, LIVE, SETTLING, TARGET),
    "announced": (BASE, LIVE, LIVE, SETTLING, LEAVING),
    "none": (BASE, SETTLING, SETTLING, SETTLING, LEAVING),
    "over": (BASE, TARGET, LIVE, BASE, LEAVING),
    "source": (LEAVING, LEAVING, LEAVING, LEAVING, LEAVING),
    "gone": (BASE, BASE, BASE, BASE, BASE),
}
events = st.sampled_from(sorted(STEPS))


@pytest.mark.unit
@pytest.mark.parametrize("event", STEPS)
def test_every_step(event: Event) -> None:
    for before, expected in zip(Phase, STEPS[event], strict=True):
        assert after(Movement(before), event, 100.0, PATIENCE).phase is expected


@pytest.mark.unit
@given(st.lists(st.tuples(events, st.floats(0, 100)), max_size=20))
def test_only_settling_ends_by_itself_and_repetition_does_not_put_it_off(
    steps: list[tuple[Event, float]],
) -> None:
    now, movement = 0.0, Movement()
    for event, passed in steps:
        now += passed
        before, movement = movement, after(movement, event, now, PATIENCE)
        assert (movement.until < inf) is (movement.phase is SETTLING)
        if movement.phase is SETTLING:
            assert movement.until == (before.until if before.phase is SETTLING else now + PATIENCE)
        assert after(movement, event, now + 1, PATIENCE) == movement or event == "none"


@pytest.mark.unit
@given(st.lists(st.tuples(st.sampled_from(["none", "target", "source"]), st.floats(0, 50)), max_size=20))
def test_time_passes_for_each_by_itself(steps: list[tuple[MigrationRole, float]]) -> None:
    """Whoever waits for next_due() and then settles misses nothing; one that is gone leaves nothing."""
    other = WorkloadId("k8s", "default/other", "eth0")
    movements, now = Movements(PATIENCE), 0.0
    movements.take(other, "target", now)
    for role, passed in steps:
        now += passed
        due = movements.next_due()
        assert movements.settle(now) == ({POD} if due <= now else set())
        assert movements.next_due() > now
        movements.take(POD, role, now)
        movements.take(POD, role, now)
        assert movements.phase(other) is TARGET
    movements.gone(POD)
    assert (movements.phase(POD), movements.next_due(), list(movements.targets())) == (BASE, inf, [other])


@pytest.mark.unit
def test_a_migration_as_it_should_go() -> None:
    movements = Movements(PATIENCE)
    movements.take(POD, "target", 0.0)
    assert list(movements.targets()) == [POD] and movements.phase(POD) is TARGET
    assert movements.announced(POD) and not movements.announced(POD)
    assert not movements.targets() and movements.phase(POD) is LIVE
    movements.take(POD, "none", 10.0)
    assert movements.phase(POD) is SETTLING and movements.next_due() == 40.0
    assert movements.settle(39.9) == set() and movements.settle(40.0) == {POD}
    assert movements.phase(POD) is BASE


# --- who speaks ---------------------------------------------------------------------------------


MAC, EVERY = b"\x02\0\0\0\0\x07", b"\xff" * 6


def arp(sender: str, target: str, operation: int = 1, mac: bytes = MAC) -> bytes:
    head = EVERY + mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, operation)
    return head + mac + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)


RARP = EVERY + MAC + struct.pack("!HHHBBH", 0x8035, 1, 0x0800, 6, 4, 3) + bytes(20)


@pytest.mark.unit
@given(st.binary(max_size=64))
def test_what_is_an_announcement(noise: bytes) -> None:
    assert announces(arp("10.65.0.1", "10.65.0.1")) and announces(arp("10.65.0.1", "10.65.0.1", 2))
    assert announces(arp("10.65.0.1", "10.65.0.1") + bytes(18)) and announces(RARP)
    assert not announces(arp("10.65.0.1", "169.254.1.1"))
    assert not announces(arp("10.65.0.1", "10.65.0.1")[:-1])
    assert not announces(b"\xff" * 12 + b"\x08\x00" + arp("10.65.0.1", "10.65.0.1")[14:])
    announces(noise)
    announces(arp("10.65.0.1", "10.65.0.1")[:14] + noise)


# --- in the kernel ------------------------------------------------------------------------------


def asks_for(pod: Pod, address: str) -> None:
    """The pod sends ARP."""
    with pod.ns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as speaking:
        speaking.bind(("eth0", 0))
        speaking.send(arp(pod.v4, address, mac=speaking.getsockname()[4]))


def routes(pod: Pod) -> list[int]:
    """The metrics of the routes to a pod's addresses, IPv4 first; IPv6 shows 1024 where none was given."""
    v4 = pod.node.ns.ip("route", "show", "dev", pod.interface)
    v6 = pod.node.ns.ip("-6", "route", "show", pod.v6, "dev", pod.interface)
    return [int(one.get("metric", 0)) for one in [*v4, *v6]]


def listening(felix: FelixProcess) -> int:
    """How many packet sockets there are on the node."""
    return len(felix.node.ns.sh("cat /proc/self/net/packet").splitlines()) - 1


@pytest.mark.kernel
@pytest.mark.parametrize("dataplane", ["nftables"])
def test_what_cni_made_goes_at_once_and_time_wakes_felix(make_felix: Callable[..., Felix]) -> None:
    quiet = {"table_interval": 0, "table_recheck": 0, "set_interval": 0, "route_interval": 0}
    felix = make_felix(wiring=Wiring(patience=PATIENCE), **quiet)
    vm = felix.node.pod("vm")
    vm.cni_route()
    assert felix.apply() and routes(vm) == [0, 1024]
    ident = felix.add(vm, "open", migration="target")
    assert felix.apply() and routes(vm) == []
    felix.driver.announced(ident)
    felix.settle()
    assert routes(vm) == [512, 512]
    assert felix.driver.next_due() > felix.clock() + PATIENCE
    felix.add(vm, "open")
    assert felix.apply() and routes(vm) == [512, 512]
    assert felix.driver.next_due() <= felix.clock() + PATIENCE
    felix.skew += PATIENCE
    assert felix.apply() and routes(vm) == [0, 1024]


@pytest.mark.kernel
def test_an_interface_that_is_made_anew_is_listened_on_again(node: Node) -> None:
    heard: list[WorkloadId] = []
    listener, loop = Listener(heard.append), Loop(node.ns)
    ghost = Interface("calighost", 4711, running=True, mtu=1500)

    def follow(pod: Pod) -> None:
        (link,) = node.ns.ip("link", "show", pod.interface)
        listener.follow({POD: Interface(pod.interface, link["ifindex"], running=True, mtu=1500)})

    try:
        loop.call(lambda: listener.follow({POD: ghost}))
        first = node.pod("vm")
        loop.call(lambda: follow(first))
        first.delete()
        again = node.pod("vm")
        loop.call(lambda: follow(again))
        asks_for(again, again.v4)
        eventually(lambda: heard == [POD])
    finally:
        loop.call(listener.close)
        loop.close()


@pytest.mark.kernel
def test_a_guest_that_moves_here_is_routed_to_from_its_first_word(felix: FelixProcess) -> None:
    felix.parameters |= {"LIVEMIGRATIONROUTECONVERGENCETIME": "1", "IPV6ELEVATEDROUTEPRIORITY": "600"}
    felix.started()
    vm, other = felix.node.pod("vm"), felix.node.pod("other")
    vm.cni_route()
    felix.endpoint("other", "open")
    named = {"orchestratorID": "k8s", "workloadID": "default/vm", "endpointID": "eth0"}
    move = migration("move", target={"workloadEndpoint": named})
    felix.put(move)
    felix.endpoint("vm", "open")
    felix.wait_for("live migration of k8s/default/vm/eth0: target")
    eventually(lambda: routes(vm) == [] and routes(other) == [0, 1024])
    eventually(lambda: listening(felix) == 1)
    eventually(lambda: " 0003 " in felix.node.ns.sh("cat /proc/self/net/packet"))  # bound as well

    asks_for(vm, "169.254.1.1")
    asks_for(other, other.v4)
    assert routes(vm) == [] and "moved here" not in felix.log
    asks_for(vm, vm.v4)
    eventually(lambda: routes(vm) == [512, 600])
    assert listening(felix) == 0
    assert other.reaches(vm.v4, within=60) and other.reaches(vm.v6, within=60)

    felix.kill()
    felix.started()
    assert routes(vm) == [512, 600]
    felix.delete(move[0])
    felix.wait_for("vm/eth0: settling")
    eventually(lambda: routes(vm) == [0, 1024])
    felix.put(migration("on", source={"workload": named}))
    eventually(lambda: routes(vm) == [1025, 1025])
    assert other.reaches(vm.v4, within=60) and other.reaches(vm.v6, within=60)
