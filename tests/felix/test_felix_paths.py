"""Whole paths through the chains of a state, packet by packet: fail closed, and both sides are asked."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.felix import naive
from tests.felix.fakes import FakeClock, FakeTables
from tests.felix.test_felix_rules import MEMBERS, a_packet, a_rule
from tortie.felix.calc.graph import State, Touched
from tortie.felix.calc.model import HostEndpoint, Pool, Profile, QoS, Rule, Workload, WorkloadId
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.tables import Tables, TableWriter
from tortie.felix.rules import ir, names
from tortie.felix.rules.evaluate import FORWARDED, INWARD, OUTWARD, Packet, Ruleset, Sets, Verdict, evaluate
from tortie.felix.rules.iptables import Features
from tortie.felix.rules.settings import Settings

pytestmark = pytest.mark.unit

STATIC_SETS: dict[str, list[str]] = {
    names.MASQUERADED_POOLS: ["10.0.0.0/8", "fd00::/8"],
    names.ALL_POOLS: ["10.0.0.0/8", "fd00::/8"],
    names.DSCP_SOURCES: [],
    names.THIS_HOST: ["172.16.0.1"],
}
SETS = Sets({**MEMBERS, **STATIC_SETS})
OPEN = Profile("open", (Rule("allow"),), (Rule("allow"),))


def writer(version: int = 4, settings: Settings | None = None) -> TableWriter:
    duty: Tables = Duty("chains", FakeTables(), interval=0, clock=FakeClock(), rand=lambda: 0.5)
    return TableWriter(version, settings or Settings(), Features(), duty)


def ruleset_of(state: State, version: int = 4, settings: Settings | None = None) -> Ruleset:
    tables = writer(version, settings)
    tables.start(state)
    return tables.ruleset()


def a_state(endpoints: Mapping[str, tuple[str, ...]], *profiles: Profile) -> State:
    """`endpoints`: interface -> the names of its profiles."""
    state = State(profiles={profile.name: profile for profile in profiles})
    for interface, chosen in endpoints.items():
        ident = WorkloadId("k8s", f"default/{interface}", "eth0")
        state.workloads[ident] = Workload(ident, interface, ("10.0.0.1/32", "fd00::1/128"), profiles=chosen)
    return state


def forward(rules: Ruleset, source: str, target: str, state: str = "NEW") -> Verdict:
    packet = Packet("10.0.0.1", "10.0.0.2", 6, 1000, 80, None, source, target, state)
    return evaluate(rules, SETS, packet, FORWARDED)


# --- fail closed --------------------------------------------------------------------------------


def test_two_open_endpoints_reach_each_other() -> None:
    rules = ruleset_of(a_state({"cali1": ("open",), "cali2": ("open",)}, OPEN))
    verdict = forward(rules, "cali1", "cali2")
    assert verdict.outcome == "accept"
    assert verdict.rule == (ir.FILTER, "FORWARD", 2), "the packet must be accepted by ours, not fall through"


@pytest.mark.parametrize(("source", "target"), [("cali9", "cali1"), ("cali1", "cali9"), ("cali9", "eth0")])
def test_an_unknown_interface_is_denied_both_ways(source: str, target: str) -> None:
    rules = ruleset_of(a_state({"cali1": ("open",), "cali2": ("open",)}, OPEN))
    verdict = forward(rules, source, target)
    assert verdict.outcome == "drop"
    assert verdict.rule is not None and "dispatch" in verdict.rule[1]


@pytest.mark.parametrize("state", ["NEW", "ESTABLISHED", "INVALID"])
def test_without_any_endpoint_every_workload_is_denied(state: str) -> None:
    rules = ruleset_of(State())
    assert forward(rules, "cali1", "cali2", state).outcome == "drop"
    assert forward(rules, "eth0", "cali2", state).outcome == "drop"
    assert forward(rules, "eth0", "eth1", state).outcome == "accept"


def test_the_guard_denies_workloads_and_nobody_else() -> None:
    tables = writer()
    tables.guard()
    rules = tables.ruleset()
    assert {table for table, _ in rules} == {ir.FILTER}
    assert forward(rules, "cali1", "eth0").outcome == "drop"
    assert forward(rules, "eth0", "cali1").outcome == "drop"
    to_host = Packet("10.0.0.1", "172.16.0.1", 6, 1, 80, None, "cali1")
    assert evaluate(rules, SETS, to_host, INWARD).outcome == "drop"
    assert forward(rules, "eth0", "eth1").outcome == "accept"
    from_host = Packet("172.16.0.1", "172.16.0.2", 6, 1, 80, None, "", "eth0")
    assert evaluate(rules, SETS, from_host, OUTWARD).outcome == "accept"


def test_no_profile_means_no_traffic() -> None:
    rules = ruleset_of(a_state({"cali1": (), "cali2": ("open",)}, OPEN))
    assert forward(rules, "cali1", "cali2").outcome == "drop"
    assert forward(rules, "cali2", "cali1").outcome == "drop"
    assert forward(rules, "eth0", "cali2").outcome == "accept"


def test_a_chain_that_is_missing_denies() -> None:
    rules = ruleset_of(a_state({"cali1": ("forgotten",), "cali2": ("open",)}, OPEN))
    assert forward(rules, "cali1", "cali2").outcome == "drop"


def test_both_ends_are_asked() -> None:
    out_only = Profile("out", (Rule("deny"),), (Rule("allow"),))
    rules = ruleset_of(a_state({"cali1": ("out",), "cali2": ("open",)}, OPEN, out_only))
    assert forward(rules, "cali1", "cali2").outcome == "accept"
    assert forward(rules, "cali2", "cali1").outcome == "drop"


def test_established_connections_go_on_and_invalid_packets_do_not() -> None:
    closed = Profile("closed", (Rule("deny"),), (Rule("deny"),))
    rules = ruleset_of(a_state({"cali1": ("closed",)}, closed))
    assert forward(rules, "cali1", "eth0", "ESTABLISHED").outcome == "accept"
    opened = ruleset_of(a_state({"cali1": ("open",)}, OPEN))
    assert forward(opened, "cali1", "eth0", "INVALID").outcome == "drop"
    tolerant = ruleset_of(a_state({"cali1": ("open",)}, OPEN), settings=Settings(drop_invalid=False))
    assert forward(tolerant, "cali1", "eth0", "INVALID").outcome == "accept"


def test_spoofed_sources_are_dropped_before_connection_tracking() -> None:
    state = a_state({"cali1": ("open",)}, OPEN)
    packet = Packet("10.9.9.9", "10.0.0.2", 6, 1, 2, None, "cali1", "eth0", reverse_path_ok=False)
    verdict = evaluate(ruleset_of(state), SETS, packet)
    assert (verdict.outcome, verdict.rule and verdict.rule[0]) == ("drop", ir.RAW)
    elsewhere = Packet("10.9.9.9", "10.0.0.2", 6, 1, 2, None, "eth1", "eth0", reverse_path_ok=False)
    assert evaluate(ruleset_of(state), SETS, elsewhere).outcome == "accept"


def test_a_permitted_spoofer_passes_with_its_prefix_only() -> None:
    ident = WorkloadId("k8s", "default/nat", "eth0")
    nat = Workload(ident, "cali1", profiles=("open",), spoofed_sources=("10.9.0.0/16",))
    rules = ruleset_of(State(workloads={ident: nat}, profiles={"open": OPEN}))
    for source, expected in (("10.9.9.9", "accept"), ("10.8.9.9", "drop")):
        packet = Packet(source, "1.1.1.1", 6, 1, 2, None, "cali1", "eth0", reverse_path_ok=False)
        assert evaluate(rules, SETS, packet).outcome == expected


def test_no_packet_looks_where_nothing_is() -> None:
    """A chain that most nodes leave empty is led to while it is not, and no longer."""
    tables, plain = writer(), a_state({"cali1": ("open",)}, OPEN)
    tables.start(plain)
    before = tables.ruleset()
    of_workloads = {names.RPF_SKIP, names.EGRESS_DSCP, names.WORKLOAD_RATE_DISPATCH, names.CIDR_BLOCK}
    of_hosts = {names.FROM_HOST_DISPATCH, names.FROM_FORWARD_DISPATCH}

    def led_to() -> set[str]:
        return (of_workloads | of_hosts) & {chain for _, chain in tables.ruleset()}

    assert led_to() == set()
    (ident,) = plain.workloads
    asking = replace(
        plain.workloads[ident], spoofed_sources=("10.9.0.0/16",), dscp=46, qos=QoS(ingress_packets=9)
    )
    full = State(
        workloads={ident: asking}, profiles={"open": OPEN}, service_cidrs=frozenset(["10.96.0.0/12"])
    )
    tables.update(full, Touched(workloads={ident}, services=True))
    assert led_to() == of_workloads
    tables.hosts({"eth0": HostEndpoint("h", "eth0")})
    assert led_to() == of_workloads | of_hosts
    tables.hosts({})
    assert led_to() == of_workloads
    tables.update(plain, Touched(workloads={ident}, services=True))
    assert tables.ruleset() == before


@pytest.mark.parametrize(("protocol", "port"), [(17, 4789), (4, 0)])
def test_workloads_may_not_wrap_packets(protocol: int, port: int) -> None:
    packet = Packet("10.0.0.1", "10.0.0.2", protocol, 1, port, None, "cali1", "eth0")
    state = a_state({"cali1": ("open",)}, OPEN)
    assert evaluate(ruleset_of(state), SETS, packet).outcome == "drop"
    allowed = Settings(allow_vxlan_from_workloads=True, allow_ipip_from_workloads=True)
    assert evaluate(ruleset_of(state, settings=allowed), SETS, packet).outcome == "accept"


# --- to and from the host -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "profile", "expected"),
    [(ir.DROP, OPEN, "drop"), (ir.ACCEPT, OPEN, "accept"), (ir.RETURN, OPEN, "accept"),
     (ir.ACCEPT, Profile("open", (), (Rule("deny"),)), "drop")],
)  # fmt: skip
def test_what_a_workload_may_say_to_the_host(action: ir.Accept, profile: Profile, expected: str) -> None:
    rules = ruleset_of(a_state({"cali1": ("open",)}, profile), settings=Settings(endpoint_to_host=action))
    packet = Packet("10.0.0.1", "172.16.0.1", 6, 1, 80, None, "cali1", dst_local=True)
    assert evaluate(rules, SETS, packet, INWARD).outcome == expected


def test_the_host_speaks_to_its_workloads_unasked() -> None:
    rules = ruleset_of(a_state({"cali1": ()}))
    packet = Packet("172.16.0.1", "10.0.0.1", 6, 1, 80, None, "", "cali1", src_local=True)
    assert evaluate(rules, SETS, packet, OUTWARD).outcome == "accept"


def test_neighbour_discovery_passes_whatever_the_policy() -> None:
    rules = ruleset_of(a_state({"cali1": ()}), 6)
    for kind, expected in ((135, "accept"), (128, "drop")):
        packet = Packet("fd00::1", "fe80::1", 58, icmp=(kind, 0), in_interface="cali1")
        assert evaluate(rules, SETS, packet, INWARD).outcome == expected


# --- address translation, loops ------------------------------------------------------------------


def test_only_what_leaves_the_pools_is_masqueraded() -> None:
    state = a_state({"cali1": ("open",)}, OPEN)
    state.pools = {"10.0.0.0/8": Pool("10.0.0.0/8", nat_outgoing=True)}
    rules = ruleset_of(state)
    for target, changes in (("1.1.1.1", [ir.Masquerade()]), ("10.7.7.7", [])):
        packet = Packet("10.0.0.1", target, 6, 1, 2, None, "cali1", "eth0")
        assert evaluate(rules, SETS, packet).changes == changes
    state.pools = {"10.0.0.0/8": Pool("10.0.0.0/8")}
    assert (
        evaluate(
            ruleset_of(state), SETS, Packet("10.0.0.1", "1.1.1.1", 6, 1, 2, None, "cali1", "eth0")
        ).changes
        == []
    )


def test_packets_to_untranslated_services_do_not_loop() -> None:
    state = State(service_cidrs=frozenset(["10.96.0.0/12", "fd96::/108"]))
    packet = Packet("8.8.8.8", "10.96.0.1", 6, 1, 2, None, "eth0", "eth0")
    assert evaluate(ruleset_of(state), SETS, packet).outcome == "drop"
    assert evaluate(ruleset_of(state, settings=Settings(service_loop=None)), SETS, packet).outcome == "accept"


# --- profiles, against the second oracle ----------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(st.integers(min_value=0))
def test_endpoints_and_their_profiles_decide_as_specified(seed: int) -> None:
    rand = Random(seed)
    profiles = [Profile(name, tuple(rules(rand)), tuple(rules(rand))) for name in ("p", "q", "r")]
    known = {profile.name: profile for profile in profiles}
    chosen = {f"cali{n}": tuple(rand.sample(["p", "q", "r"], rand.randint(0, 3))) for n in range(1, 4)}
    for version in (4, 6):
        ruleset = ruleset_of(a_state(chosen, *profiles), version)
        for _ in range(5):
            packet = a_packet(rand)
            if packet.version != version or packet.protocol == 4:
                continue
            source, target = rand.choice(["cali1", "cali2", "eth0"]), rand.choice(["cali2", "cali3", "eth0"])
            moving = Packet(packet.src, packet.dst, packet.protocol, packet.sport, packet.dport, packet.icmp,
                            source, target)  # fmt: skip
            expected = "accept"
            for interface, ingress in ((source, False), (target, True)):
                if interface in chosen:
                    own = [known[name] for name in chosen[interface]]
                    if naive.verdict_of_profiles(own, ingress, packet, MEMBERS) == "deny":
                        expected = "drop"
            assert evaluate(ruleset, SETS, moving).outcome == expected


def rules(rand: Random) -> list[Rule]:
    return [a_rule(rand, "allow", "allow", "deny", "pass", "log") for _ in range(rand.randint(0, 3))]


# --- dispatch -----------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.sets(st.text("abc-.1", min_size=1, max_size=11).map(lambda text: f"cali{text}"), max_size=12))
def test_dispatch_finds_every_endpoint_and_nothing_else(interfaces: set[str]) -> None:
    marked = {name: (f"p{number}",) for number, name in enumerate(sorted(interfaces))}
    profiles = [Profile(one, (Rule("allow"),), (Rule("allow"),)) for (one,) in marked.values()]
    ruleset = ruleset_of(a_state(marked, *profiles))
    for name in interfaces:
        verdict = forward(ruleset, name, "eth0")
        assert verdict.outcome == "accept"
        assert (ir.FILTER, names.chain(names.FROM_WORKLOAD, name)) in {step[:2] for step in verdict.path}
    for stranger in ("cali", "calia", "cali1x", "cali.-", "calix"):
        if stranger not in interfaces:
            assert forward(ruleset, stranger, "eth0").outcome == "drop"
            assert forward(ruleset, "eth0", stranger).outcome == "drop"


# --- incremental rendering -----------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(min_value=0))
def test_any_history_renders_what_a_fresh_start_renders(seed: int) -> None:
    """And at each step nothing leads to a chain that is not there."""
    rand = Random(seed)
    state, tables = State(), writer()
    tables.start(state)
    for _ in range(rand.randint(1, 8)):
        touched = a_change(rand, state)
        tables.update(state, touched)
        for one in tables.ruleset().values():
            assert all((table_of(tables, one), target) in tables.ruleset() for target in one.targets)
    assert tables.ruleset() == ruleset_of(state)


def table_of(tables: TableWriter, wanted: object) -> str:
    return next(table for (table, _), one in tables.ruleset().items() if one is wanted)


def a_change(rand: Random, state: State) -> Touched:
    touched = Touched()
    for name in rand.sample(["p", "q", "r"], rand.randint(0, 2)):
        touched.profiles.add(name)
        if name in state.profiles and rand.random() < 0.4:
            del state.profiles[name]
        else:
            state.profiles[name] = Profile(name, tuple(rules(rand)), tuple(rules(rand)))
    for number in rand.sample(range(5), rand.randint(0, 3)):
        ident = WorkloadId("k8s", f"default/{number}", "eth0")
        touched.workloads.add(ident)
        if ident in state.workloads and rand.random() < 0.5:
            del state.workloads[ident]
        else:
            free = {f"cali{n}" for n in range(8)} - {one.interface for one in state.workloads.values()}
            profiles = tuple(rand.sample(["p", "q", "r"], rand.randint(0, 2)))
            state.workloads[ident] = Workload(ident, rand.choice(sorted(free)), profiles=profiles)
    if rand.random() < 0.3:
        state.pools = {"10.0.0.0/8": Pool("10.0.0.0/8", rand.random() < 0.5)}
        touched.topology = True
    if rand.random() < 0.3:
        state.service_cidrs = frozenset(rand.sample(["10.96.0.0/12", "10.0.0.0/8"], rand.randint(0, 2)))
        touched.services = True
    return touched
