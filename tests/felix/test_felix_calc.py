"""The calculation: any order, repetition or split of changes leads where a fresh start leads."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.felix.objects import (
    allow,
    global_policy,
    host,
    migration,
    node,
    policy,
    pool,
    profile,
    tier,
    workload,
)
from tortie.datastore.keys import AffinityKey, BlockKey, Key, ResourceKey
from tortie.datastore.selector import parse
from tortie.datastore.syncer import Update
from tortie.datastore.types.bgp import BGPConfiguration, BGPConfigurationSpec, CIDRBlock
from tortie.datastore.types.endpoint import HostEndpoint, HostEndpointSpec, QoSControls
from tortie.datastore.types.ipam import Affinity, AllocationAttribute, Block
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.policy import (
    EntityRule,
    GlobalNetworkSet,
    NetworkSet,
    NetworkSetSpec,
    Rule,
)
from tortie.felix.calc.graph import Calculation, Inputs, State
from tortie.felix.calc.members import Item, MemberIndex, contribution
from tortie.felix.calc.model import ALLOW_ALL, DENY_ALL, Bandwidth, WorkloadId
from tortie.felix.calc.rules import PortSource, SelectorSource, ServiceSource, Source
from tortie.felix.dataplane.shaping import bucket
from tortie.linux.qdisc import Bucket

pytestmark = pytest.mark.unit

Objects = Mapping[Key, Any]
INPUTS = Inputs("node1", owns_routes=lambda pool: pool.spec.vxlanMode == "CrossSubnet")


def calculated(*steps: Objects, inputs: Inputs = INPUTS) -> State:
    """The state after each of `steps` was written over the last (None deletes)."""
    calc = Calculation(inputs)
    for step in steps:
        for key, value in step.items():
            calc.update(Update("deleted" if value is None else "new", key, value))
    calc.flush()
    return calc.state


def plain(state: State) -> dict[str, Any]:
    """The state as comparable data."""
    sets = {ident: (one.kind, sorted(one.v4), sorted(one.v6)) for ident, one in state.sets.items()}
    names = (
        "workloads",
        "hosts",
        "profiles",
        "policies",
        "pools",
        "nodes",
        "blackholes",
        "block_routes",
        "owners",
        "service_cidrs",
        "problems",
    )
    return {"sets": sets} | {name: getattr(state, name) for name in names}


def ident(name: str) -> WorkloadId:
    return WorkloadId("k8s", f"default/{name}", "eth0")


# --- endpoints ----------------------------------------------------------------------------------


def test_a_local_endpoint_and_what_it_needs() -> None:
    state = calculated(dict([workload("a", "10.0.0.1", profiles=("p",)), profile("p", allow())]))
    (found,) = state.workloads.values()
    assert (found.id, found.interface, found.nets) == (ident("a"), "calia", ("10.0.0.1/32",))
    assert state.profiles["p"].inbound == (ALLOW_ALL,)
    assert state.problems == {}


def test_endpoints_of_other_nodes_are_no_concern() -> None:
    state = calculated(dict([workload("a", "10.0.0.1", node="node2", profiles=("p",)), profile("p")]))
    assert (state.workloads, state.profiles) == ({}, {})


def test_a_missing_profile_denies_and_is_told() -> None:
    state = calculated(dict([workload("a", profiles=("p",))]))
    assert state.profiles["p"].inbound == state.profiles["p"].outbound == (DENY_ALL,)
    assert "does not exist" in state.problems["Profile(p)"]
    repaired = calculated(dict([workload("a", profiles=("p",)), profile("p", allow())]))
    assert repaired.problems == {}


def test_a_profile_that_cannot_be_understood_denies_as_a_whole() -> None:
    broken = profile("p", allow(source=EntityRule(nets=("nonsense",))), allow())
    state = calculated(dict([workload("a", profiles=("p",)), broken]))
    assert state.profiles["p"].outbound == (DENY_ALL,)
    assert "nonsense" in state.problems["Profile(p)"]


def test_the_default_allow_profile_needs_not_be_stored() -> None:
    state = calculated(dict([workload("a", profiles=("projectcalico-default-allow",))]))
    assert state.profiles["projectcalico-default-allow"].inbound == (ALLOW_ALL,)


@pytest.mark.parametrize(
    "fields",
    [
        {"interface": "eth0"},
        {"interface": 'cali"; x'},
        {"interface": "cali+"},
        {"interface": "caliverylongname0"},
        {"addresses": ("10.0.0.0/24",)},
        {"addresses": ("x",)},
        {"mac": "nonsense"},
        {"spoofing": ("10.0.0.0/8",)},
        {"qos": QoSControls(ingressPacketRate=10_001)},
        {"qos": QoSControls(dscp="9" * 5000)},
        {"qos": QoSControls(egressBandwidth=-1)},
        {"qos": QoSControls(ingressBandwidth=10**15 + 1)},
        {"qos": QoSControls(ingressBandwidth=2000, ingressPeakrate=2000)},
    ],
)
def test_an_endpoint_that_cannot_be_enforced_counts_as_absent(fields: dict[str, Any]) -> None:
    broken = workload("a", **fields)
    state = calculated(dict([broken]))
    assert state.workloads == {}
    assert str(broken[0]) in state.problems
    after = calculated(dict([workload("a")]), dict([broken]))
    assert after.workloads == {}, "a good endpoint that became a bad one must go"
    assert calculated(dict([broken]), dict([workload("a")])).problems == {}


@pytest.mark.parametrize(
    ("given", "ingress", "egress"),
    [
        (QoSControls(), Bandwidth(), Bandwidth()),
        (QoSControls(ingressBandwidth=10**6), Bandwidth(10**6, 4 << 30), Bandwidth()),
        (QoSControls(egressBandwidth=10**6, egressBurst=5), Bandwidth(), Bandwidth(10**6, 5)),
        (
            QoSControls(ingressBandwidth=10**6, ingressPeakrate=10**7, ingressMinburst=9),
            Bandwidth(10**6, 4 << 30, 10**7, 9),
            Bandwidth(),
        ),
        (QoSControls(ingressBurst=5, egressPeakrate=10**7, egressMinburst=9), Bandwidth(), Bandwidth()),
    ],
)
def test_bandwidth_with_what_goes_with_it(given: QoSControls, ingress: Bandwidth, egress: Bandwidth) -> None:
    (found,) = calculated(dict([workload("a", qos=given)])).workloads.values()
    assert (found.ingress, found.egress) == (ingress, egress)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (Bandwidth(), None),
        (Bandwidth(8_000_000, 800_000), Bucket(1_000_000, 100_000, 125_000)),
        (Bandwidth(8_000_000, 8), Bucket(1_000_000, 1514, 26_514)),  # a packet at least
        (Bandwidth(1000, 4 << 30), Bucket(125, 34_359, 34_362)),  # no more than the kernel can count
        (Bandwidth(8_000_000, 800_000, 16_000_000), Bucket(1_000_000, 100_000, 51_514, 2_000_000, 1514)),
    ],
)
def test_bandwidth_as_a_token_bucket(limit: Bandwidth, expected: Bucket | None) -> None:
    assert bucket(limit, 1500) == expected


def test_of_two_endpoints_on_one_interface_the_smaller_wins_and_the_other_waits() -> None:
    both = dict([workload("b", interface="calix"), workload("a", interface="calix")])
    assert list(calculated(both).workloads) == [ident("a")]
    gone = {workload("a")[0]: None}
    assert list(calculated(both, gone).workloads) == [ident("b")]


def test_an_endpoint_without_addresses_is_not_ready() -> None:
    assert calculated(dict([workload("a", addresses=())])).workloads == {}


def test_spoofing_and_floating_addresses_need_permission() -> None:
    calc = Calculation(Inputs("node1", spoofing=True, floating_ips=True))
    key, value = workload("a", spoofing=("10.9.0.0/16",), floating=(("1.2.3.4", "10.0.0.1"),))
    calc.update(Update("new", key, value))
    calc.flush()
    (found,) = calc.state.workloads.values()
    assert found.spoofed_sources == ("10.9.0.0/16",)
    assert [(one.external, one.internal) for one in found.floating_ips] == [("1.2.3.4", "10.0.0.1")]
    (without,) = calculated(dict([workload("a", floating=(("1.2.3.4", "10.0.0.1"),))])).workloads.values()
    assert without.floating_ips == ()


# --- sets ---------------------------------------------------------------------------------------


def members(state: State, selector: str) -> set[str]:
    one = state.sets[parse(selector).id]
    return one.v4 | one.v6


def from_label(text: str) -> Rule:
    return allow(source=EntityRule(selector=text))


def test_a_rules_selector_is_a_set_of_all_that_matches_anywhere() -> None:
    objects = dict(
        [
            workload("a", profiles=("p",)),
            workload("far", "10.0.9.9", "fd00::9", node="node2", labels={"app": "db"}),
            profile("p", from_label("app == 'db'")),
        ]
    )
    objects[ResourceKey("GlobalNetworkSet", "g")] = GlobalNetworkSet(
        metadata=ObjectMeta(name="g", labels={"app": "db"}),
        spec=NetworkSetSpec(nets=("192.168.0.0/16", "0.0.0.0/0")),  # type: ignore[arg-type]
    )
    objects[ResourceKey("HostEndpoint", "h")] = HostEndpoint(
        metadata=ObjectMeta(name="h", labels={"app": "db"}),
        spec=HostEndpointSpec(node="node3", expectedIPs=("172.16.0.3",)),
    )
    state = calculated(objects)
    assert members(state, "app == 'db'") == {
        "10.0.9.9", "fd00::9", "192.168.0.0/16", "0.0.0.0/1", "128.0.0.0/1", "172.16.0.3",
    }  # fmt: skip


def test_one_wrong_address_takes_none_of_the_others_along() -> None:
    """What a list is to keep out must not come in for a typing error in one line of it."""
    objects = dict([workload("a", profiles=("p",)), profile("p", from_label("app == 'bad'"))])
    key = ResourceKey("GlobalNetworkSet", "g")
    objects[key] = GlobalNetworkSet(
        metadata=ObjectMeta(name="g", labels={"app": "bad"}),
        spec=NetworkSetSpec(nets=("192.0.2.0/24", "198.51.100.0/33", "203.0.113.7")),  # type: ignore[arg-type]
    )
    host = ResourceKey("HostEndpoint", "h")
    objects[host] = HostEndpoint(
        metadata=ObjectMeta(name="h", labels={"app": "bad"}),
        spec=HostEndpointSpec(node="node1", interfaceName="eth0", expectedIPs=("172.16.0.3", "x")),
    )
    state = calculated(objects)
    assert members(state, "app == 'bad'") == {"192.0.2.0/24", "203.0.113.7", "172.16.0.3"}
    assert "198.51.100.0/33" in state.problems[str(key)] and "'x'" in state.problems[str(host)]
    assert state.hosts["h"].interface == "eth0", "else the host's policy would be off for it"


def test_labels_are_inherited_from_profiles_and_namespaces() -> None:
    objects = dict(
        [
            workload("a", profiles=("p",)),
            workload("far", "10.0.9.9", node="node2", profiles=("kns.x",), labels={"pcns.team": "forged"}),
            profile("p", from_label("pcns.team == 'red'"), from_label("pcns.team == 'forged'")),
            profile("kns.x", labels={"pcns.team": "red"}),
        ]
    )
    objects[ResourceKey("NetworkSet", "n", "x")] = NetworkSet(
        metadata=ObjectMeta(name="n", namespace="x"), spec=NetworkSetSpec(nets=("1.1.1.0/24",))
    )
    state = calculated(objects)
    assert members(state, "pcns.team == 'red'") == {"10.0.9.9", "1.1.1.0/24"}
    assert members(state, "pcns.team == 'forged'") == set()


def test_a_set_is_kept_while_any_active_rule_names_it() -> None:
    rule = from_label("a == 'b'")
    objects = dict(
        [workload("a", profiles=("p",)), profile("p", rule), profile("q", rule), profile("r", rule)]
    )
    ident_of = parse("a == 'b'").id
    assert set(calculated(objects).sets) == {ident_of}
    moved = dict([workload("a", profiles=("q",))])
    assert set(calculated(objects, moved).sets) == {ident_of}
    assert calculated(objects, {workload("a")[0]: None}).sets == {}


# --- topology -----------------------------------------------------------------------------------


def test_own_confirmed_blocks_of_pools_that_felix_routes_are_blackholed() -> None:
    objects: dict[Key, Any] = dict(
        [pool("mine", "10.0.0.0/16", vxlan="CrossSubnet"), pool("bgps", "10.1.0.0/16")]
    )
    for cidr, state in (
        ("10.0.0.0/26", "confirmed"), ("10.0.1.0/26", ""), ("10.0.2.0/26", "pending"), ("10.0.3.1/32", ""),
        ("10.1.0.0/26", "confirmed"),
    ):  # fmt: skip
        objects[AffinityKey(cidr, "node1")] = Affinity(state=state)
    objects[AffinityKey("10.0.9.0/26", "node2")] = Affinity(state="confirmed")
    assert calculated(objects).blackholes == {"10.0.0.0/26", "10.0.1.0/26"}


def test_blocks_of_nodes_in_the_own_subnet_are_reached_directly() -> None:
    objects: dict[Key, Any] = dict(
        [
            pool("mine", "10.0.0.0/16", vxlan="CrossSubnet"),
            node("node1", "172.16.0.1/24"),
            node("node2", "172.16.0.2/32"),
            node("node3", "172.17.0.3/24"),
        ]
    )
    borrowed = AllocationAttribute(secondary={"node": "node2"})
    objects[BlockKey("10.0.0.0/30")] = Block(
        cidr="10.0.0.0/30", affinity="host:node1", allocations=(None, 0, None, None), attributes=(borrowed,)
    )
    objects[BlockKey("10.0.0.4/30")] = Block(cidr="10.0.0.4/30", affinity="host:node2")
    objects[BlockKey("10.0.0.8/30")] = Block(cidr="10.0.0.8/30", affinity="host:node3")
    objects[BlockKey("10.9.0.0/30")] = Block(cidr="10.9.0.0/30", affinity="host:node2")
    found = calculated(objects).block_routes
    assert {dst: route.gateway for dst, route in found.items() if route.direct} == {
        "10.0.0.4/30": "172.16.0.2",
        "10.0.0.1/32": "172.16.0.2",
    }
    assert {dst: route.gateway for dst, route in found.items() if not route.direct} == {
        "10.0.0.8/30": "172.17.0.3"  # beyond the own subnet: by a tunnel, if there is one
    }


def test_endpoints_may_say_who_has_which_address() -> None:
    """RouteSource WorkloadIPs. Of two nodes that have one address, the first by name counts."""
    inputs = replace(INPUTS, wireguard=True, workload_ips=True)
    objects: dict[Key, Any] = dict(
        [
            pool("mine", "10.0.0.0/16", vxlan="CrossSubnet"),
            pool("bgps", "10.1.0.0/16"),
            node("node1", "172.16.0.1/24"),
            node("node2", "172.16.0.2/24"),
            node("node3", "172.17.0.3/24"),
            workload("a", "10.0.0.1"),
            workload("b", "10.0.0.2", "10.1.0.2", node="node2"),
            workload("c", "10.0.0.3", node="node3"),
            workload("moved", "10.0.0.3", node="node2"),
        ]
    )
    objects[AffinityKey("10.0.0.0/26", "node1")] = Affinity(state="confirmed")
    state = calculated(objects, inputs=inputs)
    owners = {
        "10.0.0.1/32": "node1", "10.0.0.2/32": "node2", "10.0.0.3/32": "node2", "10.1.0.2/32": "node2",
    }  # fmt: skip
    assert state.owners == owners
    assert {dst: route.gateway for dst, route in state.block_routes.items()} == {
        "10.0.0.2/32": "172.16.0.2",
        "10.0.0.3/32": "172.16.0.2",
    }
    assert not state.blackholes, "nobody says what is in the block"
    gone = {workload("moved", node="node2")[0]: None, workload("b", node="node2")[0]: None}
    state = calculated(objects, gone, inputs=inputs)
    assert {dst: route.gateway for dst, route in state.block_routes.items()} == {"10.0.0.3/32": "172.17.0.3"}


def test_pools_nodes_and_service_addresses() -> None:
    spec = BGPConfigurationSpec(serviceClusterIPs=(CIDRBlock(cidr="10.96.0.1/12"),))
    objects: dict[Key, Any] = dict(
        [pool("a", "10.0.0.1/16", nat=True), node("n", "172.16.0.9/24", "fd00::9")]
    )
    objects[ResourceKey("BGPConfiguration", "default")] = BGPConfiguration(spec=spec)
    objects[ResourceKey("BGPConfiguration", "node.x")] = BGPConfiguration(
        spec=BGPConfigurationSpec(serviceClusterIPs=(CIDRBlock(cidr="1.0.0.0/8"),))
    )
    state = calculated(objects)
    assert state.pools["10.0.0.0/16"].nat_outgoing
    assert (state.nodes["n"].of(4), state.nodes["n"].of(6)) == ("172.16.0.9", "fd00::9")
    assert state.service_cidrs == {"10.96.0.0/12"}


# --- migrations ---------------------------------------------------------------------------------


def called(name: str, **fields: str) -> dict[str, str]:
    return {"orchestratorID": "k8s", "workloadID": f"default/{name}", **fields}


def test_a_target_is_selected_or_named_and_comes_before_a_source() -> None:
    job = {"job": "1"}
    pods = dict([workload("a", labels=job), workload("b"), workload("c"), workload("d"), workload("e")])
    moves = dict(
        [
            migration("1", source={"workload": called("a")}, target={"selector": "job == '1'"}),
            migration("2", target={"workloadEndpoint": called("b", endpointID="eth0")}),
            migration("3", source={"workload": called("b")}),
            migration("4", source={"workload": called("c", hostname="elsewhere", endpointID="eth9")}),
            migration("5", source={"workloadEndpoint": called("d", endpointID="eth1")}),
        ]
    )

    def roles(*steps: Objects) -> dict[str, str]:
        state = calculated(*steps)
        return {one.workload.removeprefix("default/"): w.migration for one, w in state.workloads.items()}

    expected = {"a": "target", "b": "target", "c": "source", "d": "none", "e": "none"}
    assert roles(pods, moves) == roles(moves, pods) == expected
    assert roles(pods, moves, dict.fromkeys(moves)) == dict.fromkeys("abcde", "none")
    moved = {**pods, **dict([workload("a"), workload("e", labels=job)])}
    assert roles(pods, moves, moved) == {**expected, "a": "source", "e": "target"}


def test_other_orchestrators_workloads_are_told_apart_by_their_node() -> None:
    _, value = workload("vm")
    other = ResourceKey("WorkloadEndpoint", "node1-openstack-vm-port", "region")
    spec = structs.replace(
        value.spec, orchestrator="openstack", pod="", workload="vm", endpoint="port", interfaceName="calip"
    )
    port = structs.replace(value, metadata=ObjectMeta(name=other.name, namespace="region"), spec=spec)
    for where, role in (("node1", "target"), ("node2", "none"), ("", "none")):
        named = called("vm", orchestratorID="openstack", workloadID="region/vm", hostname=where)
        moves = dict([migration("1", target={"workloadEndpoint": {**named, "endpointID": "port"}})])
        (found,) = calculated({other: port}, moves).workloads.values()
        assert found.migration == role, where


# --- histories ----------------------------------------------------------------------------------


def some_objects(rand: Random) -> dict[Key, Any]:
    """Any of a small world of objects, some of them broken, in any state."""
    selectors = ["app == 'a'", "app == 'b'", "has(x)", "app != 'a'", "pcns.t == '1'"]

    def rules() -> list[Rule]:
        chosen = [from_label(rand.choice(selectors)) for _ in range(rand.randint(0, 2))]
        named = allow(
            protocol="TCP", destination=EntityRule(selector=rand.choice(selectors), ports=("http",))
        )
        bad = allow(source=EntityRule(nets=("x",)))
        return [*chosen, *([named] if rand.random() < 0.3 else []), *([bad] if rand.random() < 0.1 else [])]

    def labels() -> dict[str, str]:
        return {name: rand.choice("ab") for name in rand.sample(["app", "x"], rand.randint(0, 2))}

    objects: dict[Key, Any] = {}
    for number in range(6):
        key, value = workload(
            f"w{number}",
            *(f"10.0.0.{rand.randint(1, 4)}" for _ in range(rand.randint(0, 2))),
            node=rand.choice(["node1", "node1", "node2"]) if number < 4 else "node2",
            interface=rand.choice(["calix", f"cali{number}", "eth0"]),
            profiles=tuple(rand.sample(["p", "q", "r"], rand.randint(0, 2))),
            labels=labels(),
            ports=(("http", 80 + rand.randint(0, 1)),) if rand.random() < 0.5 else (),
        )
        objects[key] = value
    for name in ("p", "q", "r"):
        key, value = profile(name, *rules(), labels={"pcns.t": rand.choice("12")})
        objects[key] = value
    objects.update(
        [pool("a", "10.0.0.0/16", nat=rand.random() < 0.5, vxlan=rand.choice(["", "CrossSubnet"]))]
    )
    objects.update([node("node1", "172.16.0.1/24"), node("node2", f"172.16.0.{rand.randint(2, 3)}")])
    objects[AffinityKey("10.0.0.0/26", "node1")] = Affinity(state=rand.choice(["confirmed", "pending"]))
    objects[BlockKey("10.0.0.64/26")] = Block(cidr="10.0.0.64/26", affinity="host:node2")
    for name in ("t", "default"):
        objects.update([tier(name, rand.choice([None, 1, 2]), rand.choice(["Pass", "Deny"]))])
    for number in range(4):
        fields: dict[str, Any] = {
            "selector": rand.choice(["", "(", *selectors]),
            "order": rand.choice([None, 1, 2]),
            "tier": rand.choice(["t", "default", "unknown"]),
            "types": rand.choice([("Ingress",), ("Egress",), ()]),
            "ingress": tuple(rules()),
            "egress": tuple(rules()),
        }
        if rand.random() < 0.5:
            flags: dict[str, Any] = rand.choice(
                [{}, {"doNotTrack": True}, {"preDNAT": True}, {"applyOnForward": True}]
            )
            objects.update([global_policy(f"g{number}", **fields, **flags)])
        else:
            objects.update([policy(f"n{number}", **fields)])
    for number in range(2):
        where = rand.choice(["node1", "node2"])
        wanted = rand.choice(["*", "eth0", "", "eth 0"])
        profiles = tuple(rand.sample(["p", "q"], 1))
        objects.update([host(f"h{number}", wanted, node=where, labels=labels(), profiles=profiles)])
    for number in range(3):
        one = {"orchestratorID": "k8s", "workloadID": f"default/w{rand.randint(0, 3)}", "hostname": "any"}
        target = rand.choice(
            [None, {"workloadEndpoint": {**one, "endpointID": rand.choice(["eth0", "eth1", ""])}}]
            + [{"selector": rand.choice(["(", *selectors])}] * 2
        )
        source = rand.choice([None, {"workload": one}, {"workloadEndpoint": {**one, "endpointID": "eth0"}}])
        objects.update([migration(f"m{number}", source=source, target=target)])
    return {key: value for key, value in objects.items() if rand.random() < 0.8}


def a_history(rand: Random, end: Objects) -> Iterable[Update]:
    """Updates that pass through other worlds and arrive at `end`, some of them twice."""
    told: dict[Key, Any] = {}
    for world in [*(some_objects(rand) for _ in range(rand.randint(0, 2))), dict(end)]:
        keys = [*world.keys(), *(key for key in told if key not in world)]
        rand.shuffle(keys)
        for key in keys:
            value = world.get(key)
            for _ in range(rand.choice([1, 1, 2])):
                yield Update("deleted" if value is None else "updated", key, value)
            told[key] = value
        told = {key: value for key, value in told.items() if value is not None}


@settings(max_examples=300, deadline=None)
@given(st.integers(min_value=0))
def test_every_history_ends_where_a_fresh_start_ends(seed: int) -> None:
    rand = Random(seed)
    end = some_objects(rand)
    inputs = replace(INPUTS, wireguard=True, workload_ips=rand.random() < 0.5)
    calc = Calculation(inputs)
    for update in a_history(rand, end):
        calc.update(update)
        if rand.random() < 0.2:
            calc.flush()
    calc.flush()
    assert plain(calc.state) == plain(calculated(end, inputs=inputs))


@settings(max_examples=200, deadline=None)
@given(st.integers(min_value=0))
def test_what_changed_is_always_named(seed: int) -> None:
    """Whoever looks only at what flush() names has the same picture as one who looks at everything."""
    rand = Random(seed)
    calc = Calculation(INPUTS)
    kinds = ("workloads", "hosts", "profiles", "policies", "sets")
    seen: dict[str, dict[Any, Any]] = {kind: {} for kind in kinds}
    topology: Any = None
    for update in a_history(rand, some_objects(rand)):
        calc.update(update)
        if rand.random() < 0.4:
            continue
        touched = calc.flush()
        now = plain(calc.state)
        for name in seen:
            for key in getattr(touched, name):
                seen[name].pop(key, None)
                if key in now[name]:
                    seen[name][key] = now[name][key]
            assert seen[name] == now[name]
        current = [now[name] for name in ("pools", "nodes", "blackholes", "block_routes")]
        assert touched.topology or repr(current) == topology
        topology = repr(current)


# --- members against brute force -------------------------------------------------------------------


SOURCES: list[Source] = [
    SelectorSource(parse("app == 'a'")),
    SelectorSource(parse("app != 'a'")),
    PortSource(parse("has(x)"), "tcp", "http"),
    PortSource(parse("all()"), "any", "http"),
    ServiceSource("ns/db", False),
    ServiceSource("ns/db", True),
]


@settings(max_examples=300, deadline=None)
@given(st.integers(min_value=0))
def test_sets_hold_the_union_of_what_matches(seed: int) -> None:
    rand = Random(seed)
    index = MemberIndex()
    items: dict[int, Item] = {}
    parents: dict[str, dict[str, str]] = {}
    services: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    active: dict[str, Source] = {}
    for _ in range(rand.randint(1, 25)):
        match rand.randint(0, 3):
            case 0:
                number = rand.randint(0, 4)
                item = None if rand.random() < 0.3 else an_item(rand)
                index.update_item(number, item)
                items.pop(number, None)
                if item is not None:
                    items[number] = item
            case 1:
                parents["p"] = {"app": rand.choice("ab")} if rand.random() < 0.7 else {}
                index.update_profile_labels("p", parents["p"])
            case 2:
                source = rand.choice(SOURCES)
                if source.id in active:
                    index.deactivate(source.id)
                    del active[source.id]
                else:
                    index.activate(source)
                    active[source.id] = source
            case 3:
                services = (
                    frozenset(rand.sample(["1.1.1.1", "fd00::1"], rand.randint(0, 2))),
                    frozenset(rand.sample(["1.1.1.1,tcp:80", "fd00::1,udp:53"], rand.randint(0, 2))),
                )
                index.update_service("ns/db", *services)
    assert set(index.sets) == set(active)
    for name, source in active.items():
        expected = brute_force(source, items, parents, services)
        assert index.sets[name].v4 | index.sets[name].v6 == expected
        assert all(":" not in one.split(",")[0] for one in index.sets[name].v4)


def brute_force(
    source: Source,
    items: Mapping[int, Item],
    parents: Mapping[str, Mapping[str, str]],
    services: tuple[frozenset[str], frozenset[str]],
) -> set[str]:
    if isinstance(source, ServiceSource):
        return set(services[source.with_ports])
    found: set[str] = set()
    for item in items.values():
        labels: dict[str, str] = {}
        for name in reversed(item.profiles):
            labels.update(parents.get(name, {}))
        labels.update(item.labels)
        if source.selector.evaluate(labels):
            found.update(contribution(source, item))
    return found


def an_item(rand: Random) -> Item:
    nets = tuple(rand.sample(["10.0.0.1/32", "10.0.0.2/32", "fd00::1/128", "10.0.0.0/8", "::/0"], 2))
    labels = tuple((name, rand.choice("ab")) for name in rand.sample(["app", "x"], rand.randint(0, 2)))
    ports = tuple((rand.choice(["http", "dns"]), rand.choice(["tcp", "udp"]), 80) for _ in range(2))
    return Item(nets, labels, ("p",) if rand.random() < 0.5 else (), ports)
