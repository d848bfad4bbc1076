"""The driver against a real kernel: hostile names, and what the kernel refuses."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.felix.driver_lab import HOSTILE, Felix, only_iptables
from tests.felix.node_lab import Node, comparable, pings, udp_sees
from tortie.felix.calc.graph import Touched
from tortie.felix.calc.model import (
    HostEndpoint,
    Members,
    Policy,
    PolicyId,
    PolicyRef,
    Profile,
    Rule,
    Side,
    Tier,
)
from tortie.felix.dataplane.driver import Driver
from tortie.felix.rules.settings import Failsafe, Settings
from tortie.linux.routes import Route

pytestmark = pytest.mark.kernel


def test_hostile_names_never_reach_a_ruleset(node: Node, make_felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = make_felix()
    for number, name in enumerate(HOSTILE):
        rule = Rule("allow", annotations=((name, name),))
        daemon.state.profiles[name] = Profile(name, (rule,), (rule,))
        daemon.add(a, *HOSTILE[: number + 1])
    assert daemon.apply(), daemon.driver.failures()
    rules = node.rules()
    assert rules.isascii()
    for line in comparable(rules):
        assert len(line) < 1000 and (line[:1] in "*:" or line.startswith("-A ") or line == "COMMIT"), line
        assert not line.startswith("-A ") or '--comment "cali:' in line, line


def test_a_rule_the_kernel_refuses_closes_its_endpoint_and_no_other(
    node: Node, make_felix: Callable[..., Felix]
) -> None:
    a, b, c = (node.pod(name) for name in "abc")
    daemon = make_felix()
    daemon.state.profiles["bad"] = Profile(
        "bad", (Rule("allow", src=Side(sets=("s:missing",))),), (Rule("allow"),)
    )
    good = daemon.add(a, "open")
    bad = daemon.add(b, "bad")
    daemon.add(c, "open")
    assert not daemon.apply()
    troubles = daemon.driver.endpoint_troubles()
    assert troubles[good] == ""
    assert "cali-pri-bad" in troubles[bad] and "drops everything" in troubles[bad]
    assert a.reaches(c.v4, within=60) and not a.reaches(b.v4)


def test_a_policy_the_kernel_refuses_closes_those_it_applies_to_and_says_so(
    node: Node, make_felix: Callable[..., Felix]
) -> None:
    """Also where it is reached through a group's chain, and on the host, but for its failsafes."""
    a, b, c = (node.pod(name) for name in "abc")
    daemon = make_felix(settings=Settings(failsafe_in=(Failsafe("udp", 5000),)))
    refused = Rule("allow", src=Side(sets=("s:missing",)))
    for name, rule in (("bad", refused), ("good", Rule("allow"))):
        ident = PolicyId(name, "", "GlobalNetworkPolicy")
        daemon.state.policies[ident] = Policy(ident, "default", (rule,), (Rule("allow"),))
    refs = tuple(PolicyRef(ident, "all()") for ident in daemon.state.policies)
    open_one = daemon.add(a, "open")
    grouped = daemon.add(b, "open", tiers=(Tier("default", ingress=refs),))
    daemon.add(c, "open")
    hosted = (Tier("default", ingress=refs[:1], egress=refs),)
    daemon.state.hosts["h"] = HostEndpoint("h", "eth0", tiers=hosted)
    assert not daemon.apply()
    troubles, hosts = daemon.driver.endpoint_troubles(), daemon.driver.host_troubles()
    assert troubles[open_one] == ""
    for why in (troubles[grouped], hosts["h"]):
        assert "cali-pi-gnp/bad" in why and "drops everything" in why
    assert a.reaches(c.v4, within=60) and c.reaches(a.v6, within=60)
    assert not a.reaches(b.v4) and not a.reaches(b.v6)
    assert not pings(node.outside, "172.16.0.1")
    assert udp_sees(node.ns, node.outside, "172.16.0.1") == "172.16.0.254"
    for ident in daemon.state.policies:
        daemon.state.policies[ident] = Policy(ident, "default", (Rule("allow"),), (Rule("allow"),))
    assert daemon.apply(Touched(policies=set(daemon.state.policies))), daemon.driver.failures()
    assert a.reaches(b.v4, within=60) and pings(node.outside, "172.16.0.1", within=60)
    assert set(daemon.driver.endpoint_troubles().values()) == {""} == {daemon.driver.host_troubles()["h"]}


def test_a_set_the_kernel_refuses_to_change_closes_who_looks_into_it_and_says_so(
    node: Node, make_felix: Callable[..., Felix]
) -> None:
    """It still has the members of before, whom the policy is to let in no more."""
    a, b, c, d = (node.pod(name) for name in "abcd")
    daemon = make_felix()
    daemon.state.profiles["few"] = Profile("few", (Rule("allow", src=Side(sets=("s:few",))),), ())
    daemon.state.sets["s:few"] = Members("ip", {b.v4, c.v4})
    guarded, open_one = daemon.add(a, "few"), daemon.add(d, "open")
    for pod in (b, c):
        daemon.add(pod, "open")
    assert daemon.apply(), daemon.driver.failures()
    assert b.reaches(a.v4, within=60) and c.reaches(a.v4, within=60)
    daemon.state.sets["s:few"] = Members("ip", {c.v4, "300.0.0.1"})
    for apply in (daemon.apply, daemon.resync):
        assert not apply()
        assert not b.reaches(a.v4) and b.reaches(d.v4, within=60)
        troubles = daemon.driver.endpoint_troubles()
        assert "cali-pri-few: drops everything instead: IP set s:few: " in troubles[guarded]
        assert troubles[open_one] == ""
    daemon.state.sets["s:few"] = Members("ip", {c.v4})
    assert daemon.apply(), daemon.driver.failures()
    assert c.reaches(a.v4, within=60) and not b.reaches(a.v4)
    assert daemon.driver.endpoint_troubles()[guarded] == ""


def test_events_during_an_apply_are_taken_with_the_next(node: Node, make_felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = make_felix()
    daemon.add(a, "open")
    assert daemon.apply()
    daemon.remove(a)
    daemon.add(a, "open", mac="aa:bb:cc:dd:ee:ff")

    async def interrupted() -> bool:
        daemon.driver.forget()
        applying = asyncio.create_task(daemon.driver.apply())
        for _ in range(50):
            await asyncio.sleep(0.001)
            daemon.driver.forget()
            daemon.driver.interface_gone(99)
            daemon.driver.route_seen(Route(f"{a.v4}/32", ifindex=node.ns.ifindex("calia"), scope=253), False)
        return await applying

    assert daemon.loop.run(interrupted())
    assert daemon.driver.next_due() < time.monotonic()
    assert daemon.apply()
    assert f"{a.v4} dev calia scope link" in node.routes()


@only_iptables
def test_address_families_are_chosen(node: Node, make_felix: Callable[..., Felix]) -> None:
    a = node.pod("a")
    daemon = make_felix()
    daemon.options = replace(daemon.options, wiring=replace(daemon.options.wiring, versions=frozenset((4,))))
    daemon.driver = Driver(
        daemon.options, daemon.kernel, daemon.interfaces, clock=daemon.clock, rand=lambda: 0.5
    )
    daemon.add(a, "open")
    daemon.apply()
    assert "cali" in node.rules(4) and "cali" not in node.rules(6)
    assert not [line for line in node.routes() if a.v6 in line]
