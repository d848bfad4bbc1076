"""What a packet goes through on its way: the hooks that stand, and the rules that it meets."""

from typing import Any

import pytest

from tests.felix.fakes import FakeClock, FakeKernel
from tortie.felix.calc import model
from tortie.felix.calc.graph import State
from tortie.felix.calc.model import HostEndpoint, PolicyId, PolicyRef, Profile, Tier, Workload, WorkloadId
from tortie.felix.dataplane.chains import Key
from tortie.felix.dataplane.duty import Duty
from tortie.felix.dataplane.tables import TableWriter
from tortie.felix.rules import ir
from tortie.felix.rules.evaluate import FORWARDED, Packet, Sets, evaluate
from tortie.felix.rules.iptables import Features
from tortie.felix.rules.settings import Settings

pytestmark = pytest.mark.unit


def tables() -> TableWriter:
    """All rules of a node with one workload."""
    duty: Duty[Key, Any] = Duty("tables", FakeKernel(), interval=0, clock=FakeClock(), rand=lambda: 0.5)
    writer = TableWriter(4, Settings(), Features(), duty)
    pod = Workload(WorkloadId("k8s", "default/pod", "eth0"), "cali1", ("10.0.0.1/32",), profiles=("open",))
    rules = (model.Rule("allow"),)
    writer.start(State({pod.id: pod}, profiles={"open": Profile("open", rules, rules)}))
    return writer


def steps(writer: TableWriter, **packet: Any) -> list[str]:
    """The chains in which a forwarded packet meets rules for it, one for each rule."""
    sent = Packet("10.0.0.1", "10.0.1.1", 6, in_interface="cali1", out_interface="eth0", **packet)
    found = evaluate(writer.ruleset(), Sets({}), sent, FORWARDED)
    assert found.outcome == "accept"
    return [f"{table} {chain}" for table, chain, _ in found.path]


def test_a_packet_of_a_standing_connection_meets_no_more_than_it_needs() -> None:
    assert steps(tables(), state="ESTABLISHED") == [
        "raw PREROUTING",
        "raw cali-PREROUTING",
        "filter FORWARD",
        "filter cali-FORWARD",
        "filter cali-from-wl-dispatch",
        "filter cali-fw-cali1",
    ]


def test_hooks_are_there_while_somebody_needs_them() -> None:
    writer = tables()
    bare = writer.ruleset().keys()
    tiers = (Tier("default", ingress=(PolicyRef(PolicyId("p", "", "GlobalNetworkPolicy"), "all()"),)),)
    writer.hosts({"eth0": HostEndpoint("h", "eth0", tiers=tiers)})
    assert writer.ruleset().keys() - bare >= {(ir.MANGLE, "POSTROUTING"), (ir.FILTER, "OUTPUT")}
    assert (ir.MANGLE, "PREROUTING") not in writer.ruleset()
    writer.hosts({"eth0": HostEndpoint("h", "eth0", pre_dnat_tiers=tiers)})
    assert (ir.MANGLE, "PREROUTING") in writer.ruleset()
    writer.hosts({})
    assert writer.ruleset().keys() == bare
