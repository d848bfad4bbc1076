"""The nftables edge against a real kernel: our table is as wished for, and nobody else's is touched."""

import asyncio
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.netns_lab import Namespace
from tortie.core.errors import KernelError
from tortie.core.reconcile import Outcome, Reconciler
from tortie.linux import generation, nft_sets, nft_usable
from tortie.linux.ipsets import IPSet
from tortie.linux.nft_elements import span
from tortie.linux.nft_sets import uncovered
from tortie.linux.nft_table import Base, Chain, Family, Found, Map, Rule, parse_map, parse_table
from tortie.linux.nftables import StrayTable, TableTarget

unit, kernel = pytest.mark.unit, pytest.mark.kernel
FORWARD = Base("filter", "forward", 0)


def rule(number: int, text: str) -> Rule:
    hashed = str(number).rjust(16, "h")
    return Rule(hashed, f'{text} comment "cali:{hashed}; for people"')


def chain(*texts: str, base: Base | None = None) -> Chain:
    return Chain(tuple(rule(abs(hash(text)) % 10**15, text) for text in texts), base)


class Table:
    """A target and the sets beside it, driven as felix drives them."""

    def __init__(self, ns: Namespace, family: Family = "ip") -> None:
        self.ns, self.now = ns, 0.0
        self.sets = nft_sets.SetTarget(family, "calico")
        self.target = TableTarget(family, "calico", self.sets, expendable=lambda name: "pi-" in name)
        self.tables: Reconciler[Any, Any] = Reconciler("table", self.target, clock=lambda: self.now)
        self.members: Reconciler[str, IPSet] = Reconciler("sets", self.sets, clock=lambda: self.now)
        self.target.wanted = self.tables.desired

    def sync(self, what: Reconciler[Any, Any] | None = None) -> Outcome:
        self.now += 1000
        return self.ns.call(asyncio.run, (what or self.tables).sync())

    def resync(self) -> Outcome:
        self.members.forget()
        self.tables.forget()
        self.sync(self.members)
        return self.sync()

    def shown(self) -> str:
        return self.ns.run("nft", "-s", "list", "ruleset")


@pytest.fixture
def table(netns: Namespace) -> Table:
    return Table(netns)


CONTENT: dict[tuple[str, str], Any] = {
    ("chain", "filter-FORWARD"): chain("counter jump filter-cali-FORWARD", base=FORWARD),
    ("chain", "filter-cali-FORWARD"): chain("iifname vmap @filter-m", "counter drop"),
    ("chain", "filter-cali-a"): chain("ip saddr @cali40s counter accept", "continue"),
    ("chain", "filter-cali-b"): chain("counter jump filter-cali-a"),
    ("map", "filter-m"): Map(frozenset({("cali1", "filter-cali-a"), ("cali2", "filter-cali-b")})),
}
SET = IPSet("hash:net", 4, frozenset({"10.0.0.1", "10.1.0.0/16"}))


def standing(table: Table) -> Table:
    table.members.put("cali40s", SET)
    table.tables.want(CONTENT)
    assert table.sync(table.members).ok
    outcome = table.sync()
    assert outcome.ok, outcome.failed
    return table


# --- reading, pure ------------------------------------------------------------------------------


@unit
def test_reading_takes_the_hashes_and_nothing_else() -> None:
    text = b"""{"nftables": [{"metainfo": {"version": "9"}}, {"table": {"family": "ip", "name": "calico"}},
      {"chain": {"family": "ip", "table": "calico", "name": "c", "handle": 1}},
      {"chain": {"name": "b", "type": "filter", "hook": "input", "prio": -150, "policy": "drop"}},
      {"rule": {"chain": "c", "comment": "cali:abcdefghijklmnop; x", "expr": [{"xt": null}]}},
      {"rule": {"chain": "c", "expr": [{"news": ["from", {"the": "future"}]}]}},
      {"map": {"name": "m", "elem": []}}, {"set": {"name": "s"}}, {"flowtable": {"name": "f"}}]}"""
    chains, maps, sets = parse_table(text)
    assert chains == {
        ("chain", "c"): Found(("abcdefghijklmnop", "")),
        ("chain", "b"): Found((), Base("filter", "input", -150), "drop"),
    }
    assert (maps, sets) == (["m"], ["s"])


@unit
def test_an_element_of_no_kind_we_write_is_unlike_all_of_ours() -> None:
    text = b"""{"nftables": [{"map": {"name": "m", "elem": [
      ["a", {"goto": {"target": "c"}}], ["b", {"drop": null}], [{"prefix": {}}, {"accept": null}]]}}]}"""
    assert parse_map(text) == Map(frozenset({("a", "c"), ("b", ""), ("", "")}))


@unit
@pytest.mark.parametrize("text", [b"", b"{", b'{"nftables": 1}', b'{"nftables": [{"chain": {}}]}'])
def test_a_listing_that_is_none_is_an_error_of_the_kernels(text: bytes) -> None:
    with pytest.raises(KernelError, match="understood"):
        parse_table(text)


@unit
@given(st.sets(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=12))
def test_what_lies_in_another_network_is_left_out(nets: set[tuple[int, int]]) -> None:
    networks = {IPv4Network((f"10.0.0.{low}", length), strict=False) for low, length in nets}
    members = frozenset(str(net).removesuffix("/32") for net in networks)
    expected = {
        str(net).removesuffix("/32")
        for net in networks
        if not any(net != other and net.subnet_of(other) for other in networks)
    }
    assert uncovered(members) == expected


# --- what stands ---------------------------------------------------------------------------------


@kernel
def test_what_is_wished_for_stands_and_reads_back_the_same(table: Table) -> None:
    standing(table)
    before = table.shown()
    other = Table(table.ns)
    other.members.put("cali40s", SET)
    other.tables.want(CONTENT)
    assert (other.sync(other.members).updated, other.sync().updated) == (0, 0)
    assert table.shown() == before


DAMAGE = [
    "nft flush ruleset",
    "nft delete table ip calico",
    "nft flush chain ip calico filter-FORWARD",
    "nft flush chain ip calico filter-cali-a",
    "nft add rule ip calico filter-cali-a accept",
    "nft insert rule ip calico filter-FORWARD accept",
    "nft add chain ip calico stray",
    "nft add map ip calico stray '{ type ifname : verdict; }'",
    "nft add set ip calico stray '{ type mark; }'",
    "nft add set ip calico stray '{ type ipv4_addr; flags interval, timeout; }'",
    "nft delete element ip calico filter-m '{ cali1 }'",
    "nft add element ip calico filter-m '{ cali3 : accept }'",
    "nft add element ip calico filter-m '{ cali3 : jump filter-cali-b }'",
    "nft add element ip calico cali40s '{ 1.2.3.4 }'",
    "nft delete element ip calico cali40s '{ 10.1.0.0/16 }'",
    "nft flush set ip calico cali40s",
    "nft add element ip calico cali40s '{ 1.0.0.0-1.0.0.6 }'",
    "nft add chain ip calico filter-FORWARD '{ policy drop; }'",
    "nft add chain ip calico stray '{ type filter hook input priority 0; policy drop; }'",
]


@kernel
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_kind_of_damage_is_repaired(table: Table, damage: str) -> None:
    standing(table)
    before = sorted(table.shown().splitlines())
    table.ns.sh(damage)
    assert sorted(table.shown().splitlines()) != before
    table.resync()
    outcome = table.resync()  # a set is deleted with the pass after the one that took its rules
    assert outcome.ok, outcome.failed
    assert sorted(table.shown().splitlines()) == before


@kernel
def test_the_table_brings_its_sets_back_when_both_are_gone(table: Table) -> None:
    """The sets are read at their own time, which may be later."""
    standing(table)
    before = table.shown()
    table.ns.sh("nft flush ruleset")
    table.tables.forget()
    assert table.sync().ok
    assert sorted(table.shown().splitlines()) == sorted(before.splitlines())


@kernel
def test_reading_the_sets_tells_that_everything_is_gone(table: Table) -> None:
    standing(table)
    assert not table.sets.take_vanished()
    table.ns.sh("nft flush ruleset")
    table.members.forget()
    table.sync(table.members)
    assert table.sets.take_vanished() and not table.sets.take_vanished()


@kernel
@pytest.mark.parametrize(
    "content",
    [
        "chain filter-FORWARD { type filter hook output priority 5; policy drop; }",
        "chain filter-FORWARD { type filter hook output priority 5; drop; }",
        "chain filter-FORWARD { drop; }; chain b { type filter hook input priority 5; jump filter-FORWARD; }",
    ],
)
def test_a_chain_that_hangs_elsewhere_is_put_where_it_belongs(table: Table, content: str) -> None:
    table.ns.run("nft", "-f", "-", stdin=f"table ip calico {{ {content}; }}\n")
    standing(table)
    assert "type filter hook forward priority filter; policy accept;" in table.shown()


@kernel
def test_tables_of_others_stay_byte_for_byte(table: Table) -> None:
    foreign = """
    add table ip filter
    add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }
    add rule ip filter FORWARD ct state established accept
    add table ip kube-proxy
    add map ip kube-proxy m { type ipv4_addr . inet_proto . inet_service : verdict; }
    add chain ip kube-proxy services
    add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @m
    add table inet calico
    add chain inet calico filter-cali-FORWARD
    add table ip6 calico-other
    add set ip6 calico-other cali40s { type ipv6_addr; }
    """
    table.ns.run("nft", "-f", "-", stdin=foreign)
    before = table.ns.run("nft", "-a", "list", "ruleset")
    standing(table)
    table.tables.want({})
    table.sync()
    stray = StrayTable("ip", "calico")
    outcome = table.sync(Reconciler("stray", stray, clock=lambda: table.now))
    assert outcome.deleted == 1
    assert table.ns.run("nft", "-a", "list", "ruleset") == before


@kernel
def test_packets_do_not_feel_a_table_go(table: Table) -> None:
    """What enforces in its stead stands already; all that its own rules could do is drop too much."""
    rules = "{ ip saddr 10.0.0.1 accept; ip saddr 10.0.0.2 drop; }"
    large = "\n".join(f"chain c{number} {rules}" for number in range(2000))
    words = f"""table ip calico {{
      map m {{ type ifname : verdict; elements = {{ "lo" : goto own }} }}
      {large}
      chain own {{ accept; }}
      chain out {{ type filter hook output priority 0; oifname vmap @m
        drop; }}
    }}"""
    stray = Reconciler("stray", StrayTable("ip", "calico"), clock=lambda: 0)
    with table.ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(10):
            table.ns.run("nft", "-f", "-", stdin=words)
            stray.forget()
            with ThreadPoolExecutor(1) as pool:
                going = pool.submit(table.sync, stray)
                while not going.done():
                    for _ in range(50):
                        sender.sendto(b"", ("127.0.0.1", 9))  # PermissionError, where it is dropped
            assert going.result().deleted == 1


@kernel
def test_packets_hardly_feel_a_table_built_anew(table: Table) -> None:
    """Of a table that goes with its hooks, hundreds would be dropped; so one that is just on its way."""

    def content(priority: int) -> dict[tuple[str, str], Any]:
        large = {("chain", f"filter-cali-{number}"): chain("counter accept") for number in range(2000)}
        return large | {
            ("chain", "filter-OUTPUT"): chain(
                "oifname vmap @filter-m", "counter drop", base=Base("filter", "output", priority)
            ),
            ("map", "filter-m"): Map(frozenset({("lo", "filter-cali-0")})),
        }

    dropped: list[int] = []
    table.tables.want(content(0))
    assert table.sync().ok
    with table.ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for priority in (5, 0) * 4:
            table.tables.want(content(priority))
            table.tables.forget()  # it is known to hang elsewhere when it has been looked at
            dropped.append(0)
            with ThreadPoolExecutor(1) as pool:
                going = pool.submit(table.sync)
                while not going.done():
                    for _ in range(50):
                        try:
                            sender.sendto(b"", ("127.0.0.1", 9))
                        except PermissionError:
                            dropped[-1] += 1
            assert going.result().ok
    assert median(dropped) <= 5, dropped  # the kernel may be interrupted amid one or the other


# --- refusals ------------------------------------------------------------------------------------


@kernel
def test_a_chain_the_kernel_refuses_drops_and_holds_nobody_up(table: Table) -> None:
    content = {
        **CONTENT,
        ("chain", "filter-cali-pi-bad"): chain("ip saddr @cali40missing counter accept"),
        ("chain", "filter-cali-pi-worse"): chain("no such words"),
        ("chain", "filter-cali-pi-good"): chain("counter accept"),
    }
    table.members.put("cali40s", SET)
    table.tables.want(content)
    table.sync(table.members)
    outcome = table.sync()
    assert set(outcome.failed) == {("chain", "filter-cali-pi-bad"), ("chain", "filter-cali-pi-worse")}
    assert all("drops everything instead" in why for why in outcome.failed.values())
    for name in ("bad", "worse"):
        assert "drop" in table.ns.sh(f"nft list chain ip calico filter-cali-pi-{name}")
    assert "accept" in table.ns.sh("nft list chain ip calico filter-cali-pi-good")
    table.ns.sh("nft add set ip calico cali40missing '{ type ipv4_addr; }'")
    table.tables.put(("chain", "filter-cali-pi-worse"), chain("counter drop"))
    assert table.sync().ok, "tried again, and whole"


@kernel
def test_many_refused_chains_hold_up_neither_the_table_nor_each_other(table: Table) -> None:
    all_of_them = [("chain", f"filter-cali-pi-{number}") for number in range(150)]
    refused = dict.fromkeys(all_of_them[::3], chain("ip saddr @cali40missing counter accept"))
    standing(table)
    for words in ("accept", "return"):
        good = {key: chain(f"counter {words}") for key in all_of_them if key not in refused}
        table.tables.want({**CONTENT, **good, **refused})
        outcome = table.sync()
        assert outcome.failed.keys() == refused.keys()
        assert all("cali40missing" in why or "No such" in why for why in outcome.failed.values())
        shown = table.shown()
        for key in all_of_them:
            body = shown.partition(f"chain {key[1]} {{")[2].partition("}")[0]
            assert ("drop" if key in refused else words) in body, body
    table.tables.want({**CONTENT, **dict.fromkeys(all_of_them, chain("counter accept"))})
    assert table.sync().ok


@kernel
def test_what_may_not_be_replaced_leaves_everything_as_it_was(table: Table) -> None:
    standing(table)
    before = table.shown()
    table.tables.put(("chain", "filter-cali-a"), chain("jump filter-nowhere"))
    table.tables.put(("chain", "filter-cali-b"), chain("counter accept"))
    outcome = table.sync()
    assert set(outcome.failed) == {("chain", "filter-cali-a"), ("chain", "filter-cali-b")}
    assert table.shown() == before


@kernel
def test_after_five_failures_the_table_is_built_anew(table: Table, tmp_path: Path) -> None:
    """Something of another's inside our table keeps a chain from going; rebuilt, nothing is lost."""
    standing(table)
    refusing = Refusing(tmp_path)
    table.ns.sh("nft add chain ip calico stray")
    for number in range(5):
        table.tables.forget()
        with refusing:
            outcome = table.sync()
        assert outcome.failed, number
    handle = table.ns.sh("nft -a list table ip calico").splitlines()[0]
    table.tables.forget()
    assert table.sync().ok
    assert table.ns.sh("nft -a list table ip calico").splitlines()[0] != handle
    other = Table(table.ns)
    other.members.put("cali40s", SET)
    other.tables.want(CONTENT)
    assert (other.sync(other.members).updated, other.sync().updated, other.sync().deleted) == (0, 0, 0)


class Refusing:
    """An `nft` that says no to every change, before the true one on PATH."""

    def __init__(self, folder: Path) -> None:
        self._path, self.folder = os.environ["PATH"], folder

    def __enter__(self) -> None:
        fake = self.folder / "nft"
        fake.write_text(
            '#!/bin/sh\nfor a; do [ "$a" = list ] && exec /usr/sbin/nft "$@"; done\necho no >&2; exit 1\n'
        )
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
        os.environ["PATH"] = f"{self.folder}:{self._path}"

    def __exit__(self, *_: object) -> None:
        os.environ["PATH"] = self._path


# --- sets ----------------------------------------------------------------------------------------


SAMPLES = {
    4: ["10.0.0.1", "10.0.0.0/24", "10.0.0.0/25", "10.0.0.128/25", "10.0.0.2", "0.0.0.0/1", "128.0.0.0/1",
        "255.255.255.255", "0.0.0.0", "10.0.1.0/24"],
    6: ["fd00::1", "fd00::/64", "fd00::/65", "fd00::8000:0:0:0/65", "::/1", "8000::/1", "::", "fd00::2"],
}  # fmt: skip


@kernel
@pytest.mark.parametrize("version", [4, 6])
def test_any_history_of_members_ends_as_wished_for(netns: Namespace, version: int) -> None:
    rand = Random(5)
    table = Table(netns, "ip" if version == 4 else "ip6")
    fresh = Table(netns, "ip" if version == 4 else "ip6")
    for number in range(60):
        if number == 30:  # as a table built anew makes its sets, which leaves a mark in them
            lines = list(table.sets.creation(["cali40s"]))
            family = lines[0].split()[2]
            netns.run("nft", "-f", "-", stdin="\n".join([f"delete set {family} calico cali40s", *lines, ""]))
        members = frozenset(rand.sample(SAMPLES[version], rand.randint(0, len(SAMPLES[version]))))
        wanted = IPSet("hash:net", version, members)
        table.members.put("cali40s", wanted)
        outcome = table.sync(table.members)
        assert outcome.ok, outcome.failed
        (read,) = netns.call(asyncio.run, fresh.sets.read()).values()
        assert read.members == uncovered(members)
        assert fresh.sets.same(wanted, read)


@kernel
@pytest.mark.parametrize(
    "wanted",
    [
        IPSet("hash:ip", 4, frozenset({"10.0.0.1", "255.255.255.255"})),
        IPSet("hash:ip,port", 4, frozenset({"10.0.0.1,tcp:80", "10.0.0.1,udp:53", "10.0.0.1,sctp:1"})),
        IPSet("hash:net", 4, frozenset(f"10.{n // 250}.{n % 250}.1" for n in range(5000))),
    ],
)
def test_every_type_reads_back_the_same(table: Table, wanted: IPSet) -> None:
    table.members.put("cali40s", wanted)
    assert table.sync(table.members).updated == 1
    table.members.forget()
    outcome = table.sync(table.members)
    assert (outcome.ok, outcome.updated) == (True, 0)


@kernel
def test_a_member_that_is_none_fails_its_set_and_no_other(table: Table) -> None:
    table.members.put("cali40bad", IPSet("hash:net", 4, frozenset({"10.0.0.1", "nonsense } ; x"})))
    table.members.put("cali40good", SET)
    outcome = table.sync(table.members)
    assert set(outcome.failed) == {"cali40bad"}
    assert "10.1.0.0/16" in table.ns.sh("nft list set ip calico cali40good")


@kernel
def test_a_set_in_use_is_not_deleted_and_the_others_are(table: Table) -> None:
    standing(table)
    table.members.put("cali40free", SET)
    table.sync(table.members)
    table.members.want({})
    outcome = table.sync(table.members)
    assert set(outcome.failed) == {"cali40s"}
    assert "cali40free" not in table.shown() and "cali40s" in table.shown()


# --- the host -------------------------------------------------------------------------------------


@kernel
def test_what_this_host_can_do(netns: Namespace) -> None:
    assert netns.call(asyncio.run, nft_usable.reason_against()) == ""
    assert netns.call(asyncio.run, nft_usable.arp_works())
    assert netns.run("nft", "list", "ruleset") == "", "asking leaves nothing"
    assert not netns.call(asyncio.run, nft_usable.kube_proxy_in_nftables())
    netns.sh("nft add table ip6 kube-proxy")
    netns.sh("nft add chain ip6 kube-proxy c")
    assert netns.call(asyncio.run, nft_usable.kube_proxy_in_nftables())


@unit
def test_without_nft_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert asyncio.run(nft_usable.reason_against()) == "nft is not installed"


@unit
@pytest.mark.parametrize(
    ("net", "first", "after"),
    [
        ("10.0.0.1", "0a000001", "0a000002"),
        ("10.0.0.0/8", "0a000000", "0b000000"),
        ("255.255.255.255", "ffffffff", None),
        ("128.0.0.0/1", "80000000", None),
        ("0.0.0.0/0", "00000000", None),
        ("ffff::/16", "ffff" + "0" * 28, None),
        ("::/1", "0" * 32, "8" + "0" * 31),
    ],
)
def test_where_a_network_begins_and_ends(net: str, first: str, after: str | None) -> None:
    found = span(net)
    assert (found[0].hex(), found[1] and found[1].hex()) == (first, after)


@kernel
@pytest.mark.parametrize(
    "net", ["10.0.0.0/33", "10.0.0.256", "x", "10.0.0.0/x", "10.0.0.1,tcp:80", "", "fd00::1"]
)
def test_no_member_of_another_kind_gets_in(table: Table, net: str) -> None:
    table.members.put("cali40s", IPSet("hash:net", 4, frozenset({net, "10.9.9.9"})))
    table.members.put("cali40p", IPSet("hash:ip,port", 4, frozenset({"10.0.0.1,tcp:70000"})))
    table.members.put("cali40good", SET)
    outcome = table.sync(table.members)
    assert set(outcome.failed) == {"cali40s", "cali40p"}
    assert "set cali40s " not in table.shown() and "set cali40good" in table.shown()


# --- what did not change ------------------------------------------------------------------------


def test_what_nobody_changed_is_not_listed_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    standing(table)
    assert table.resync().ok
    with monkeypatch.context() as without_tools:
        without_tools.setenv("PATH", "/nowhere")
        assert table.ns.call(generation.generation) is not None
        outcome = table.resync()
        assert outcome.ok and not outcome.updated
    shown = table.shown()
    table.ns.run("nft", "flush", "chain", "ip", "calico", "filter-cali-b")
    table.ns.run("nft", "delete", "element", "ip", "calico", "cali40s", "{ 10.0.0.1 }")
    assert table.resync().updated == 1
    assert table.shown() == shown
