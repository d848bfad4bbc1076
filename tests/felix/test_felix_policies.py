"""Policies in the calculation: whom they apply to, in what order, and what becomes of nonsense."""

from typing import Any

import pytest

from tests.felix.fakes import FakeClock, FakeTables
from tests.felix.objects import (
    allow,
    global_policy,
    host,
    policy,
    profile,
    staged_policy,
    tier,
    workload,
)
from tests.felix.test_felix_calc import calculated, ident
from tortie.datastore.keys import AffinityKey, BlockKey, Key
from tortie.datastore.selector import parse
from tortie.datastore.syncer import Update
from tortie.datastore.types.ipam import Affinity, Block
from tortie.datastore.types.policy import EntityRule, HTTPMatch, Rule
from tortie.felix.calc import policies
from tortie.felix.calc.graph import Calculation, Inputs, State
from tortie.felix.calc.model import DENY_ALL, HostEndpoint, PolicyId, Tier
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.hosts import assign
from tortie.felix.dataplane.nft import NftTableWriter
from tortie.felix.dataplane.tables import TableWriter
from tortie.felix.rules.dispatch import ANY_INTERFACE
from tortie.felix.rules.iptables import Features
from tortie.felix.rules.settings import Settings

pytestmark = pytest.mark.unit

DENY = Rule(action="Deny")
BAD = allow(source=EntityRule(nets=("x",)))
POD = workload("a", labels={"app": "web"})


def state_of(*objects: tuple[Key, Any]) -> State:
    return calculated(dict([POD, *objects]))


def listed(state: State, pod: str = "a") -> list[tuple[str, list[str], list[str]]]:
    """The tiers of a pod: name, and the names of its policies each way."""
    tiers = state.workloads[ident(pod)].tiers
    return [
        (one.name, [ref.id.name for ref in one.ingress], [ref.id.name for ref in one.egress]) for one in tiers
    ]


# --- order --------------------------------------------------------------------------------------


def test_policies_are_asked_by_order_then_by_name() -> None:
    some = [("d", None), ("a", None), ("c", 5), ("b", 5), ("z", 1.5)]
    state = state_of(*(global_policy(name, order=order) for name, order in some))
    assert listed(state) == [("default", ["z", "b", "c", "a", "d"], ["z", "b", "c", "a", "d"])]


def test_of_one_name_the_namespace_and_the_kind_decide() -> None:
    state = state_of(policy("a"), global_policy("a"))
    (one,) = state.workloads[ident("a")].tiers
    assert [ref.id.kind for ref in one.ingress] == ["GlobalNetworkPolicy", "NetworkPolicy"]


def test_tiers_are_asked_by_order_and_unknown_ones_last() -> None:
    some = [("late", 9), ("early", 1), ("none", None), ("also", 9)]
    names = ["unknown", "none", "late", "also", "early"]
    state = state_of(
        *(tier(name, order) for name, order in some), *(global_policy(name, tier=name) for name in names)
    )
    assert [name for name, _, _ in listed(state)] == ["early", "also", "late", "none", "unknown"]


@pytest.mark.parametrize(
    ("action", "passes"), [("Pass", True), ("pass", True), ("Deny", False), (None, False), ("Allow", False)]
)
def test_only_pass_goes_on_at_the_end_of_a_tier(action: str | None, passes: bool) -> None:
    state = state_of(tier("t", 1, action), global_policy("p", tier="t"))
    assert state.workloads[ident("a")].tiers[0].default_pass is passes


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (("Ingress",), (["p"], [])),
        (("egress",), ([], ["p"])),
        (("Ingress", "Egress"), (["p"], ["p"])),
        ((), (["p"], ["p"])),
    ],
)
def test_a_policy_has_a_say_in_the_directions_it_names(types: tuple[str, ...], expected: Any) -> None:
    assert listed(state_of(global_policy("p", types=types))) == [("default", *expected)]


def test_a_policy_with_a_type_that_nobody_understands_is_said_to_have_no_say_there() -> None:
    key, value = global_policy("p", types=("Ingres", "Egress"), ingress=(allow(),))
    state = state_of((key, value))
    assert listed(state) == [("default", [], ["p"])]
    assert "Ingres" in state.problems[str(key)] and "no say" in state.problems[str(key)]


def test_a_policy_about_http_is_said_to_be_wider_than_written() -> None:
    key, value = global_policy("p", ingress=(allow(http=HTTPMatch(methods=("GET",))),))
    assert "HTTP" in state_of((key, value)).problems[str(key)]
    assert calculated(dict([POD, (key, value)]), {key: None}).problems == {}


# --- whom they apply to -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "applies"),
    [
        (policy("p"), True),
        (policy("p", selector="app == 'web'"), True),
        (policy("p", selector="app != 'web'"), False),
        (policy("p", "other"), False),
        (policy("p", "other", selector="projectcalico.org/namespace == 'default'"), False),
        (policy("p", serviceAccountSelector="x == 'y'"), False),
        (policy("p", serviceAccountSelector="team == 'red'"), True),
        (global_policy("p", namespaceSelector="x == 'ns'"), True),
        (global_policy("p", namespaceSelector="x == 'other'"), False),
        (global_policy("p", selector="all()", namespaceSelector="all()"), True),
        (global_policy("p", doNotTrack=True, applyOnForward=True), False),
        (global_policy("p", preDNAT=True, applyOnForward=True), False),
    ],
)
def test_whom_a_policy_applies_to(one: tuple[Key, Any], applies: bool) -> None:
    pod = workload("a", labels={"app": "web"}, profiles=("kns.default", "ksa.default.x"))
    labels = (
        profile("kns.default", labels={"pcns.x": "ns"}),
        profile("ksa.default.x", labels={"pcsa.team": "red"}),
    )
    assert bool(listed(calculated(dict([pod, *labels, one])))) is applies


def test_a_pod_cannot_put_itself_under_another_namespaces_policy() -> None:
    pod = workload("a", labels={"projectcalico.org/namespace": "other", "pcns.x": "ns"})
    state = calculated(
        dict([pod, policy("own"), policy("p", "other"), global_policy("g", namespaceSelector="x == 'ns'")])
    )
    assert listed(state) == [("default", ["own"], ["own"])]


def test_a_policy_for_namespaces_does_not_mean_hosts() -> None:
    """`all()` next to a namespaceSelector means all that live in a namespace, which hosts do not."""
    state = state_of(host("h"), global_policy("p", selector="all()", namespaceSelector="x != 'y'"))
    assert listed(state) and state.hosts["h"].tiers == ()


def test_each_stage_of_a_host_endpoint_has_its_own_policies() -> None:
    state = calculated(
        dict([
            host("h"),
            global_policy("own"),
            global_policy("both", applyOnForward=True),
            global_policy("untracked", applyOnForward=True, doNotTrack=True),
            global_policy("early", applyOnForward=True, preDNAT=True, types=("Ingress",)),
        ])
    )  # fmt: skip
    found = state.hosts["h"]

    def names(tiers: Any) -> Any:
        return [([ref.id.name for ref in one.ingress], [ref.id.name for ref in one.egress]) for one in tiers]

    assert names(found.tiers) == [(["both", "own"], ["both", "own"])]
    assert names(found.forward_tiers) == [(["both"], ["both"])]
    assert names(found.untracked_tiers) == [(["untracked"], ["untracked"])]
    assert names(found.pre_dnat_tiers) == [(["early"], [])]
    assert found.untracked_tiers[0].default_pass and found.pre_dnat_tiers[0].default_pass


# --- only what is needed ------------------------------------------------------------------------


def test_a_policy_is_compiled_while_it_applies_to_somebody_here() -> None:
    rule = allow(source=EntityRule(selector="app == 'db'"))
    one = global_policy("p", selector="app == 'web'", ingress=(rule,))
    assert state_of(one).policies.keys() == {PolicyId("p", "", "GlobalNetworkPolicy")}
    gone = calculated(dict([POD, one]), dict([workload("a", labels={"app": "x"})]))
    assert (gone.policies, gone.sets) == ({}, {})
    far = calculated(dict([workload("a", node="node2", labels={"app": "web"}), one]))
    assert (far.policies, far.sets) == ({}, {})


def test_a_hint_keeps_a_policy_ready() -> None:
    one = global_policy("p", selector="app == 'nobody'", performanceHints=("AssumeNeededOnEveryNode",))
    assert len(state_of(one).policies) == 1


@pytest.mark.parametrize(("kind", "stands"), [(TableWriter, True), (NftTableWriter, False)])
def test_a_policy_kept_ready_stands_in_the_filter_table(kind: type[TableWriter], stands: bool) -> None:
    """With iptables, as in Calico; and no longer than it asks for it."""
    key, asking = global_policy("p", selector="x == 'y'", performanceHints=("AssumeNeededOnEveryNode",))
    calc = Calculation(Inputs("node1"))
    duty: Duty[Any, Any] = Duty("chains", FakeTables(), interval=0, clock=FakeClock(), rand=lambda: 0.5)
    tables = kind(4, Settings(), Features(), duty)
    tables.start(calc.state)
    without = set(duty.desired)
    for value in (asking, global_policy("p", selector="x == 'y'")[1], asking, None):
        calc.update(Update("updated", key, value))
        tables.update(calc.state, calc.flush())
        held = {name for _, name in duty.desired.keys() - without}
        assert held == ({"cali-pi-gnp/p", "cali-po-gnp/p"} if stands and value is asking else set())


def test_staged_policies_are_listed_but_never_compiled() -> None:
    state = state_of(staged_policy("s", ingress=(DENY,)), staged_policy("gone", stagedAction="Delete"))
    assert listed(state) == [("default", ["s"], ["s"])]
    assert (state.policies, state.sets, state.problems) == ({}, {}, {})


def test_a_set_is_shared_by_profiles_and_policies() -> None:
    rule = allow(source=EntityRule(selector="app == 'db'"))
    pod = workload("a", profiles=("p",))
    objects = dict([pod, profile("p", rule), global_policy("g", ingress=(rule,))])
    for gone in list(objects)[1:]:
        state = calculated(objects, {gone: None})
        assert state.sets.keys() == {parse("app == 'db'").id}
    assert calculated(objects, dict.fromkeys(list(objects)[1:])).sets == {}


# --- nonsense -----------------------------------------------------------------------------------


def test_a_policy_with_a_rule_that_makes_no_sense_denies_and_says_so() -> None:
    key, value = global_policy("p", ingress=(allow(), BAD), types=("Ingress",))
    state = state_of((key, value))
    (compiled,) = state.policies.values()
    assert compiled.inbound == (DENY_ALL,)
    assert "nets" in state.problems[str(key)] and "denies" in state.problems[str(key)]
    again = calculated(dict([POD, (key, value)]), {key: value})
    assert again.problems == state.problems
    assert (
        calculated(dict([POD, (key, value)]), dict([global_policy("p", ingress=(allow(),))])).problems == {}
    )
    assert calculated(dict([POD, (key, value)]), {POD[0]: None}).problems == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"selector": "("},
        {"selector": "app == 'x') || (has(app)"},
        {"serviceAccountSelector": "x == 'y') || (all()"},
        {"serviceAccountSelector": "("},
    ],
)
def test_a_policy_for_nobody_knows_whom_counts_as_absent(fields: dict[str, str]) -> None:
    key, value = policy("p", **fields)
    for state in (state_of((key, value)), calculated(dict([POD, policy("p")]), {key: value})):
        assert listed(state) == [] and list(state.problems) == [str(key)]
    assert calculated(dict([POD, (key, value)]), {key: None}).problems == {}


def test_a_namespace_with_quotes_stays_a_namespace() -> None:
    odd = "x' || has(app) || 'y"
    key, value = policy("p", odd)
    assert listed(state_of((key, value))) == []
    key, value = policy("p", odd + '"')
    assert list(state_of((key, value)).problems) == [str(key)]


def test_a_stray_bracket_in_a_rule_does_not_leave_its_namespace() -> None:
    rule = allow(source=EntityRule(selector="app == 'x') || (has(app)"))
    (compiled,) = state_of(policy("p", ingress=(rule,))).policies.values()
    assert compiled.inbound == (DENY_ALL,)


def test_an_address_block_with_a_zone_is_refused_not_fatal() -> None:
    affinity, block = AffinityKey("fe80::%eth0/64", "node1"), BlockKey("fe80::%eth0/64")
    state = calculated({affinity: Affinity(state="confirmed"), block: Block(cidr="fe80::%eth0/64")})
    assert set(state.problems) == {str(affinity), str(block)} and not state.blackholes


def test_selectors_are_put_together_as_in_calico() -> None:
    """The canonical texts, of which the ids of sets and the names of groups are made."""
    own = policies.namespaced_selector("a == 'b' || c == 'd'", "ns", "e == 'f'")
    assert own.canonical == (
        '(((a == "b" || c == "d") && projectcalico.org/namespace == "ns") && pcsa.e == "f")'
    )
    wide = policies.global_selector("all()", "x == 'y'", "all()")
    assert wide.canonical == (
        '((has(projectcalico.org/namespace) && pcns.x == "y") && has(projectcalico.org/serviceaccount))'
    )
    assert policies.global_selector("", "", "").canonical == "all()"


# --- where host endpoints are ---------------------------------------------------------------------

ADDRESSES = {
    "eth0": {"172.16.0.1", "fd16::1"},
    "eth1": {"10.9.0.1"},
    "lo": {"127.0.0.1"},
    "cali1": {"10.9.0.1"},
}


def hosts(*endpoints: HostEndpoint) -> dict[str, str]:
    found = assign(endpoints, ADDRESSES, ("cali",))
    return {interface: one.name for interface, one in found.items()}


def test_host_endpoints_go_by_name_address_or_everywhere() -> None:
    assert hosts(
        HostEndpoint("n", "eth1"), HostEndpoint("a", "", ("172.16.0.1",)), HostEndpoint("w", "*")
    ) == {
        "eth1": "n",
        "eth0": "a",
        ANY_INTERFACE: "w",
    }
    assert hosts(HostEndpoint("a", "", ("10.9.0.1", "172.16.0.1"))) == {"eth0": "a", "eth1": "a"}


def test_of_several_host_endpoints_on_one_interface_the_smallest_name_has_it() -> None:
    assert hosts(HostEndpoint("b", "eth0"), HostEndpoint("a", "", ("fd16::1",))) == {"eth0": "a"}
    assert hosts(HostEndpoint("b", "*"), HostEndpoint("a", "*")) == {ANY_INTERFACE: "a"}


def test_an_interface_that_is_named_is_guarded_before_it_is_there() -> None:
    assert hosts(HostEndpoint("n", "eth7")) == {"eth7": "n"}
    assert hosts(HostEndpoint("n", "", ("1.2.3.4",))) == {}


def test_workloads_interfaces_have_no_host_endpoint() -> None:
    assert hosts(HostEndpoint("n", "cali1"), HostEndpoint("a", "", ("10.9.0.1",))) == {"eth1": "a"}


def test_the_endpoint_of_all_interfaces_has_no_untracked_policy() -> None:
    found = assign([HostEndpoint("w", "*", untracked_tiers=(Tier("t"),))], ADDRESSES, ("cali",))
    assert found[ANY_INTERFACE].untracked_tiers == ()
