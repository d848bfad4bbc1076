"""The ipset edge against a real kernel: members, shapes, ownership, refusals."""

import asyncio
from random import Random

import pytest

from tests.linux.reconciled import Reconciled
from tests.netns_lab import Namespace
from tortie.core.errors import KernelError
from tortie.core.reconcile import Outcome
from tortie.linux.ipsets import IPSet, SetTarget

pytestmark = pytest.mark.kernel


class Host(Reconciled):
    def __init__(self, ns: Namespace, version: int = 4) -> None:
        self.target = SetTarget(version)
        super().__init__(ns, "sets", self.target)

    def want(self, **sets: IPSet) -> Outcome:
        self.reconciler.want({name.replace("_", ":"): value for name, value in sets.items()})
        return self.sync()

    def there(self) -> dict[str, set[str]]:
        """Name -> members, as ipset shows them."""
        found: dict[str, set[str]] = {}
        for line in self.ns.run("ipset", "save").splitlines():
            words = line.split()
            if words[0] == "create":
                found[words[1]] = set()
            else:
                found[words[1]].add(words[2])
        return found


def nets(*members: str, version: int = 4, maximum: int = 1000) -> IPSet:
    return IPSet("hash:net", version, frozenset(members), maximum)


PORTS = IPSet("hash:ip,port", 4, frozenset(["10.0.0.1,tcp:80", "10.0.0.1,udp:53", "10.0.0.2,sctp:9"]), 1000)
SIX = IPSet("hash:ip", 6, frozenset(["fd00::1", "::ffff:10.0.0.1"]), 1000)


def test_sets_of_every_type_come_true_and_stay(netns: Namespace) -> None:
    host, six = Host(netns), Host(netns, 6)
    wishes = {"cali40a": nets("10.0.0.0/8", "1.2.3.4", "0.0.0.0/1", "128.0.0.0/1"), "cali40p": PORTS}
    assert host.want(**wishes).ok
    assert six.want(cali60x=SIX).ok
    assert host.there() == {name: set(value.members) for name, value in {**wishes, "cali60x": SIX}.items()}
    for one in (host, six):
        again = one.resync()
        assert (again.updated, again.deleted) == (0, 0)


def test_members_change_one_by_one(netns: Namespace) -> None:
    host = Host(netns)
    host.want(cali40a=nets("10.0.0.1", "10.0.0.2"))
    created = netns.run("ipset", "save", "cali40a").splitlines()[0]
    assert host.want(cali40a=nets("10.0.0.2", "10.0.0.3")).ok
    assert host.there() == {"cali40a": {"10.0.0.2", "10.0.0.3"}}
    assert netns.run("ipset", "save", "cali40a").splitlines()[0] == created, "the very same set"


def test_a_reading_that_a_write_overtakes_is_worthless_and_changes_nothing(netns: Namespace) -> None:
    host = Host(netns)
    host.want(cali40a=nets("10.0.0.1"))
    changed = {"cali40a": nets("10.0.0.2")}

    async def both() -> tuple[object, object]:
        return await asyncio.gather(
            host.target.read(), host.target.apply(changed, ()), return_exceptions=True
        )

    read, applied = netns.call(asyncio.run, both())
    assert isinstance(read, KernelError) and applied == {}
    assert host.want(cali40a=nets("10.0.0.3")).ok
    assert host.there() == {"cali40a": {"10.0.0.3"}}, "what the write left was still known"


def test_another_shape_is_swapped_in_under_the_rules_that_use_it(netns: Namespace) -> None:
    host = Host(netns)
    host.want(cali40a=nets("10.0.0.1"))
    netns.sh("iptables-nft -A INPUT -m set --match-set cali40a src -j DROP")
    assert host.want(cali40a=nets("10.0.0.0/24", maximum=2000)).ok
    assert host.there() == {"cali40a": {"10.0.0.0/24"}}
    assert "maxelem 2000" in netns.run("ipset", "save")
    assert host.resync().updated == 0


def test_another_type_has_to_wait_for_the_rules_that_use_it(netns: Namespace) -> None:
    host = Host(netns)
    host.want(cali40a=nets("10.0.0.1"))
    netns.sh("iptables-nft -A INPUT -m set --match-set cali40a src -j DROP")
    other = IPSet("hash:ip", 4, frozenset(["10.0.0.9"]), 1000)
    outcome = host.want(cali40a=other)
    assert "in use" in outcome.failed["cali40a"]
    assert host.there() == {"cali40a": {"10.0.0.1"}}
    netns.sh("iptables-nft -F INPUT")
    assert host.sync().ok
    assert host.there() == {"cali40a": {"10.0.0.9"}}


def test_a_left_over_temporary_set_is_in_nobodys_way(netns: Namespace) -> None:
    netns.sh("ipset create cali4t0 hash:net")
    host = Host(netns)
    host.want(cali40a=nets("10.0.0.1"))
    assert host.there() == {"cali40a": {"10.0.0.1"}}
    netns.sh("ipset create cali4t0 hash:net")
    host.want(cali40a=nets("10.0.0.1", maximum=2000))  # fails, and is looked at anew
    assert host.sync().ok
    assert host.there() == {"cali40a": {"10.0.0.1"}}
    assert "maxelem 2000" in netns.run("ipset", "save")


def test_sets_of_others_and_of_the_other_family_are_left_alone(netns: Namespace) -> None:
    theirs = ("KUBE-A hash:ip", "cali60b hash:net family inet6", "felix-other hash:net", "b hash:ip,port")
    for line in (*theirs, "felix-masq-ipam-pools hash:net", "cali40old hash:net"):
        netns.sh(f"ipset create {line}")
    host = Host(netns)
    host.want(cali40a=nets())
    assert set(host.there()) == {"KUBE-A", "cali60b", "felix-other", "b", "cali40a"}


def test_damage_is_repaired(netns: Namespace) -> None:
    host = Host(netns)
    wishes = {"cali40a": nets("10.0.0.1", "10.0.0.2"), "cali40b": PORTS}
    host.want(**wishes)
    for vandal in (
        "del cali40a 10.0.0.1",
        "add cali40a 9.9.9.9",
        "flush cali40b",
        "destroy cali40a",
        "destroy",
    ):
        netns.sh(f"ipset {vandal}")
        assert host.resync().ok
        assert host.there() == {name: set(value.members) for name, value in wishes.items()}


def test_a_set_in_use_waits_and_the_others_go(netns: Namespace) -> None:
    host = Host(netns)
    host.want(cali40a=nets(), cali40b=nets(), cali40c=nets())
    netns.sh("iptables-nft -A INPUT -m set --match-set cali40b src -j DROP")
    outcome = host.want()
    assert list(outcome.failed) == ["cali40b"] and "in use" in outcome.failed["cali40b"]
    assert set(host.there()) == {"cali40b"}
    netns.sh("iptables-nft -F INPUT")
    assert host.sync().ok and host.there() == {}


def test_a_set_that_is_full_fails_alone(netns: Namespace) -> None:
    host = Host(netns)
    many = [f"10.0.{n // 250}.{n % 250}" for n in range(600)]
    small = IPSet("hash:net", 4, frozenset(many), 64)
    outcome = host.want(cali40full=small, cali40ok=nets("10.0.0.1"), cali40z=nets("10.0.0.2"))
    assert list(outcome.failed) == ["cali40full"] and "full" in outcome.failed["cali40full"]
    there = host.there()
    assert (there["cali40ok"], there["cali40z"]) == ({"10.0.0.1"}, {"10.0.0.2"})
    assert "cali40full" not in there, "a rule must not find half of a set"


def test_a_set_whose_old_and_new_members_do_not_fit_at_once_is_swapped(netns: Namespace) -> None:
    host = Host(netns)
    old, new = (frozenset(f"10.0.{net}.{n}" for n in range(60)) for net in (1, 2))
    assert host.want(cali40a=IPSet("hash:net", 4, old, 64)).ok
    netns.sh("iptables-nft -A INPUT -m set --match-set cali40a src -j DROP")
    outcome = host.want(cali40a=IPSet("hash:net", 4, new, 64))
    assert outcome.ok, outcome.failed
    assert host.there() == {"cali40a": new}


def test_any_history_ends_in_the_last_wish(netns: Namespace) -> None:
    rand = Random(4)
    host = Host(netns)
    for _ in range(25):
        wishes = {
            f"cali40{name}": IPSet(
                rand.choice(["hash:net", "hash:ip"]),
                4,
                frozenset(f"10.0.0.{rand.randint(1, 9)}" for _ in range(rand.randint(0, 6))),
                rand.choice([1000, 2000]),
            )
            for name in rand.sample("abcd", rand.randint(0, 4))
        }
        if rand.random() < 0.3:
            host.reconciler.forget()
        assert host.want(**wishes).ok
        assert host.there() == {name: set(value.members) for name, value in wishes.items()}
