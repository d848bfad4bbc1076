"""Connections that a new policy denies go on, as in Calico, or are cut where configuration asks for it."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.felix.cluster_lab import Cluster
from tests.felix.node_lab import Node
from tests.felix.objects import allow, global_policy, host, profile
from tests.felix.process_lab import FelixProcess, basics
from tests.felix.worlds import PODS, pod_object
from tests.netns_lab import Namespace, eventually
from tests.support.etcd import Etcd
from tortie.datastore.keys import Key, ResourceKey, key_of
from tortie.datastore.types.cluster import FelixConfiguration
from tortie.datastore.types.meta import ObjectMeta
from tortie.datastore.types.policy import EntityRule, Rule
from tortie.felix.config import RESTART
from tortie.felix.dataplane.cut import HOST, Judge
from tortie.felix.rules import ir
from tortie.felix.rules.evaluate import Sets
from tortie.linux.conntrack_table import Connection, Ends

kernel = pytest.mark.kernel

A, B, C = PODS[:3]
SERVICE = "10.96.0.1"  # translated to B
_PATIENCE = 60.0  # seconds
ANY = {"ingress": (allow(),), "egress": (allow(),)}
OPEN: dict[Key, Any] = dict(
    [(key_of(one), one) for one in map(pod_object, (A, B, C))]
    + [profile(name, allow()) for name in ("kns.one", "kns.two")]
    + [host("h", labels={"role": "node"}), global_policy("open", selector="role == 'node'", **ANY)]
)


def denying(name: str, selector: str, *nets: str) -> dict[Key, Any]:
    """With a policy in front of all others that denies those networks' access."""
    rules = (Rule(action="Deny", source=EntityRule(nets=nets)), allow())
    key, one = global_policy(name, selector=selector, order=1, ingress=rules, types=("Ingress",))
    return {**OPEN, key: one}


class Talk:
    """A connection between two namespaces that both keep open."""

    def __init__(
        self,
        kind: int,
        source: Namespace,
        target: Namespace,
        address: str,
        port: int,
        to: tuple[str, int] | None = None,
    ) -> None:
        """`to`: where the opener turns, if it is not the address itself."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = target.call(socket.socket, family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        self.opener = source.call(socket.socket, family, kind)
        self.opener.settimeout(_PATIENCE)
        if kind == socket.SOCK_STREAM:
            listening.listen()
            self.opener.connect(to or (address, port))
            self.answerer = listening.accept()[0]
            listening.close()
        else:
            self.opener.connect(to or (address, port))
            self.opener.send(b"hello")
            listening.settimeout(_PATIENCE)
            listening.connect(listening.recvfrom(9)[1])
            self.answerer = listening
        self.goes_on()

    def goes_on(self) -> None:
        """There and back; raises TimeoutError if not."""
        for sender, receiver in ((self.opener, self.answerer), (self.answerer, self.opener)):
            receiver.settimeout(_PATIENCE)
            sender.send(b"x")
            assert receiver.recv(9) == b"x"

    def is_cut(self) -> bool:
        """Nothing arrives, whoever sends first."""
        for sender, receiver in ((self.answerer, self.opener), (self.opener, self.answerer)):
            receiver.settimeout(0.2)
            sender.send(b"y")
            try:
                receiver.recv(9)
            except TimeoutError:
                continue
            return False
        return True

    def close(self) -> None:
        self.opener.close()
        self.answerer.close()


Make = Callable[..., Cluster]


@pytest.fixture
def cluster(make_netns: Callable[[], Namespace]) -> Iterator[Make]:
    made: list[Cluster] = []

    def make(dataplane: str, **options: object) -> Cluster:
        made.append(Cluster(Node(make_netns), dataplane, **options))
        made[-1].become(OPEN)
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def talks() -> Iterator[Callable[..., dict[str, Talk]]]:
    made: list[Talk] = []

    def make(here: Cluster) -> dict[str, Talk]:
        ns, node = here.namespaces, here.node
        node.ns.sh(f"iptables-nft -t nat -A PREROUTING -p tcp -d {SERVICE} -j DNAT --to-destination {B.v4}:4")
        tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
        found = {}
        for source in (A, C):
            one = source.name
            found[f"{one} tcp4"] = Talk(tcp, ns[one], ns["b"], B.v4, 1)
            found[f"{one} tcp6"] = Talk(tcp, ns[one], ns["b"], B.v6, 2)
            found[f"{one} udp4"] = Talk(udp, ns[one], ns["b"], B.v4, 3 if one == "a" else 30)
            found[f"{one} service"] = Talk(tcp, ns[one], ns["b"], B.v4, 4, (SERVICE, 80))
        found["host"] = Talk(tcp, node.outside, node.ns, "172.16.0.1", 5)
        found["ssh"] = Talk(tcp, node.outside, node.ns, "172.16.0.1", 22)
        made.extend(found.values())
        return found

    yield make
    for one in made:
        one.close()


both = pytest.mark.parametrize("dataplane", ["nft", "nftables"])
TO_B = denying("p", "app == 'db'", "10.65.0.1/32", "fd65::1/128")


@kernel
@both
def test_established_connections_go_on_by_default(
    cluster: Make, talks: Callable[..., dict[str, Talk]], dataplane: str
) -> None:
    here = cluster(dataplane)
    found = talks(here)
    here.become(TO_B)
    for talk in found.values():
        talk.goes_on()


@kernel
@both
def test_connections_that_policy_denies_are_cut_if_asked_for(
    cluster: Make, talks: Callable[..., dict[str, Talk]], dataplane: str
) -> None:
    here = cluster(dataplane, cut_denied=True)
    found = talks(here)
    here.become(TO_B)
    cut = {"a tcp4", "a tcp6", "a service"}
    assert {name for name in cut if found[name].is_cut()} == cut
    # B may begin a conversation with A as ever, and in UDP its answer is one.
    found["a udp4"].opener.send(b"y")
    found["a udp4"].answerer.settimeout(0.2)
    with pytest.raises(TimeoutError):
        found["a udp4"].answerer.recv(9)
    rest = found.keys() - cut - {"a udp4"}
    for name in rest:
        found[name].goes_on()
    here.become(denying("q", "role == 'node'", "172.16.0.254/32"))
    assert found["host"].is_cut()
    for name in rest - {"host"}:  # ssh among them, a failsafe
        found[name].goes_on()


@kernel
def test_an_annotation_turns_it_on_and_what_was_denied_before_is_cut(
    make_netns: Callable[[], Namespace], etcd: Etcd, tmp_path: Path
) -> None:
    felix = FelixProcess(Node(make_netns), etcd, tmp_path)
    a, b, c = (felix.node.pod(name) for name in "abc")
    basics(felix, "open")
    for pod in (a, b, c):
        felix.endpoint(pod.name, "open")
    felix.started()
    eventually(lambda: a.reaches(b.v4) and c.reaches(b.v4))
    denied, allowed = (Talk(socket.SOCK_STREAM, pod.ns, b.ns, b.v4, port) for pod, port in ((a, 1), (c, 2)))
    try:
        rules = (Rule(action="Deny", source=EntityRule(nets=(f"{a.v4}/32",))), allow())
        felix.put(global_policy("p", selector="all()", ingress=rules, types=("Ingress",)))
        eventually(lambda: not a.reaches(b.v4))
        denied.goes_on()
        annotations = {"config.projectcalico.org/CutDeniedFlows": "true"}
        asking = FelixConfiguration(metadata=ObjectMeta(name="default", annotations=annotations))
        felix.put((ResourceKey("FelixConfiguration", "default"), asking))
        assert felix.ends() == RESTART
        felix.started()
        assert denied.is_cut()
        allowed.goes_on()
        felix.wait_for(r"cut \d+ IPv4 connections that policy denies now")  # pings among them
    finally:
        denied.close()
        allowed.close()
        felix.close()


# --- the decision ---------------------------------------------------------------------------------


def judge(*rules: ir.Rule, places: dict[str, str | None] | None = None) -> Judge:
    """The rules are those for what is forwarded."""
    where = places if places is not None else {"10.0.0.1": "cali1", "10.0.0.2": "cali2", "172.16.0.1": HOST}
    hooks = {
        (ir.FILTER, "FORWARD"): ir.Hook(rules),
        (ir.FILTER, "INPUT"): ir.Hook((ir.Rule(action=ir.DROP),)),
    }
    return Judge(hooks, Sets({}), where.get)


def connection(src: str, dst: str, *, sport: int = 5, expected: bool = False, behind: str = "") -> Connection:
    reply = Ends(behind or dst, src, 80, sport)
    return Connection(4, 6, Ends(src, dst, sport, 80), reply, expected, b"")


@pytest.mark.unit
def test_a_connection_is_judged_by_where_its_ends_are() -> None:
    to_two = ir.Rule((ir.Net("dst", "10.0.0.2/32"), ir.Interface("out", "cali2")), ir.DROP)
    found = judge(to_two)
    assert found.denies(connection("10.0.0.1", "10.0.0.2"))
    assert found.denies(connection("10.0.0.1", "10.96.0.1", behind="10.0.0.2")), "by its translated end"
    assert not found.denies(connection("10.0.0.2", "10.0.0.1")), "answers have no say"
    assert found.denies(connection("10.0.0.2", "172.16.0.1")), "to the host"
    assert not found.denies(connection("172.16.0.1", "10.0.0.2")), "from the host"


@pytest.mark.unit
def test_what_nobody_can_judge_is_let_be() -> None:
    found = judge(ir.Rule(action=ir.DROP))
    assert not found.denies(connection("10.0.0.1", "10.9.9.9")), "nobody knows where that is"
    assert not found.denies(connection("172.16.0.1", "172.16.0.1")), "the host with itself"
    assert not found.denies(connection("10.0.0.1", "10.0.0.2", expected=True)), "belongs to another"


@pytest.mark.unit
def test_a_rule_that_cannot_be_enforced_cuts_nothing() -> None:
    assert not judge(ir.Rule((ir.InSet("src", "s:gone"),), ir.DROP)).denies(
        connection("10.0.0.1", "10.0.0.2")
    )


@pytest.mark.unit
def test_the_source_port_counts_where_a_rule_reads_it() -> None:
    found = judge(ir.Rule((ir.Ports("src", ((6, 6),)),), ir.DROP))
    assert [found.denies(connection("10.0.0.1", "10.0.0.2", sport=port)) for port in (5, 6, 7)] == [
        False,
        True,
        False,
    ]
