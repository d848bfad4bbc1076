"""The iptables edge against a real kernel, both back-ends and families: what is wished for, nothing else."""

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.linux.reconciled import Reconciled
from tests.netns_lab import Namespace
from tortie.core.errors import KernelError
from tortie.core.reconcile import Outcome
from tortie.linux import iptables, iptables_backend, process
from tortie.linux.iptables import (
    Content,
    Found,
    Hooked,
    Key,
    Own,
    RuleText,
    TableTarget,
    found,
    ours,
    parse_save,
)
from tortie.linux.iptables_backend import Tools

unit, kernel = pytest.mark.unit, pytest.mark.kernel


def rule(ident: str, text: str) -> RuleText:
    """A rule of ours; `ident` is padded to a hash's length."""
    hashed = ident.ljust(16, "_")
    return RuleText(hashed, f'-m comment --comment "cali:{hashed}" {text}')


def chain(*texts: str) -> Own:
    return Own(tuple(rule(f"{number}{abs(hash(text)) % 10**12}", text) for number, text in enumerate(texts)))


# --- reading, pure ------------------------------------------------------------------------------

SAVED = """# Generated
*filter
:INPUT ACCEPT [0:0]
:cali-INPUT - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -m comment --comment "cali:Cz_u1IQiXIMmKD4c" -j cali-INPUT
-A INPUT -j KUBE-FORWARD
-A INPUT -g felix-INPUT
-A cali-INPUT -m comment --comment "cali:abcdefghijklmnop" -m comment --comment "x" -j ACCEPT
-A cali-INPUT -j DROP
COMMIT
*security
:INPUT ACCEPT [0:0]
-A INPUT -j cali-INPUT
COMMIT
"""


@unit
def test_reading_tells_ours_from_others() -> None:
    assert ours(parse_save(SAVED)) == {
        ("filter", "INPUT"): Found(
            ("Cz_u1IQiXIMmKD4c", "", "<no hash>"),
            ('-m comment --comment "cali:Cz_u1IQiXIMmKD4c" -j cali-INPUT', "-g felix-INPUT"),
        ),
        ("filter", "cali-INPUT"): Found(("abcdefghijklmnop", ""), ()),
    }


@unit
@pytest.mark.parametrize(
    "text",
    [
        '-m comment --comment "not cali:abcdefghijklmnop" -j ACCEPT',
        '-m comment --comment "cali:short" -j X',
        "",
    ],
)
def test_a_comment_that_merely_looks_alike_is_not_ours(text: str) -> None:
    assert found("FORWARD", [text]).hashes == ("",)


@unit
@pytest.mark.parametrize(
    ("append", "hashes", "expected"),
    [
        (False, ("a", "", "", "z"), True),
        (False, ("", "a", "", "z"), False),
        (False, ("a", "z", ""), False),
        (False, ("a", "", "", "z", "z"), False),
        (True, ("", "", "a", "z"), True),
        (True, ("a", "", "", "z"), False),
    ],
)
def test_our_place_in_a_kernel_chain(append: bool, hashes: tuple[str, ...], expected: bool) -> None:
    target = TableTarget(Tools((), ()), append=append)
    wanted = Hooked((RuleText("a", ""),), (RuleText("z", ""),))
    assert target.same(wanted, Found(hashes, ())) is expected


# --- against the kernel -------------------------------------------------------------------------


class Host(Reconciled):
    """The rules of one family and back-end."""

    def __init__(self, ns: Namespace, backend: str, version: int, **options: Any) -> None:
        self.version = version
        name = "iptables" if version == 4 else "ip6tables"
        self.save, self.restore = f"{name}-{backend}-save", f"{name}-{backend}-restore"
        tools = iptables_backend.tools(version, "nft" if backend == "nft" else "legacy")
        self.target = TableTarget(tools, **options)
        super().__init__(ns, "chains", self.target)

    def want(self, desired: dict[Key, Content]) -> Outcome:
        self.reconciler.want(desired)
        return self.sync()

    def rules(self, *grep: str) -> list[str]:
        return [line for line in self.ns.run(self.save).splitlines() if any(word in line for word in grep)]

    def feed(self, *lines: str) -> None:
        self.ns.run(self.restore, "--noflush", stdin="\n".join([*lines, ""]))


@pytest.fixture(params=["nft-4", "nft-6", "legacy-4", "legacy-6"])
def host(request: pytest.FixtureRequest, netns: Namespace) -> Host:
    backend, version = request.param.split("-")
    return Host(netns, backend, int(version))


HOOK = Hooked((rule("hook", "--jump cali-INPUT"), rule("second", "-p udp --jump cali-INPUT")))
WISH: dict[Key, Content] = {
    ("filter", "INPUT"): HOOK,
    ("filter", "cali-INPUT"): chain("--jump cali-sub", "--jump RETURN"),
    ("filter", "cali-sub"): chain("-p tcp --jump ACCEPT"),
    ("nat", "POSTROUTING"): Hooked((), (rule("last", "--jump cali-POSTROUTING"),)),
    ("nat", "cali-POSTROUTING"): Own(),
    ("raw", "cali-unused"): chain("--jump NOTRACK"),
}
FOREIGN = """*filter
:KUBE-X - [0:0]
-A INPUT -j KUBE-X
-A FORWARD -p udp -j DROP
-A KUBE-X -m comment --comment mine -j ACCEPT
COMMIT
*nat
-A POSTROUTING -p tcp -j ACCEPT
COMMIT"""


@kernel
def test_wishes_come_true_and_stay(host: Host) -> None:
    assert host.want(WISH).ok
    before = host.ns.run(host.save)
    again = host.resync()
    assert (again.updated, again.deleted, again.ok) == (0, 0, True)
    assert [line for line in host.ns.run(host.save).splitlines() if line[:1] != "#"] == [
        line for line in before.splitlines() if line[:1] != "#"
    ]


@kernel
def test_another_process_adopts_what_it_finds(host: Host) -> None:
    """Counters go on counting: nothing is written."""
    host.want(WISH)
    host.ns.run("ping", "-n", "-q", "-c", "3", "-i", "0.01", "127.0.0.1" if host.version == 4 else "::1")
    before = packets(host, "cali:hook_")
    assert before >= 3
    second = Host(host.ns, "nft" if "nft" in host.save else "legacy", host.version)
    outcome = second.want(WISH)
    assert (outcome.ok, outcome.updated, outcome.deleted) == (True, 0, 0)
    assert packets(host, "cali:hook_") >= before


def packets(host: Host, what: str) -> int:
    """How many packets the one rule with `what` in it has counted."""
    (line,) = [line for line in host.ns.run(host.save, "-c").splitlines() if what in line]
    return int(line[1:].split(":")[0])


@kernel
def test_only_what_changed_is_written(host: Host) -> None:
    host.want(WISH)
    calls: list[str] = []
    restore = host.target._restore

    async def counting(table: str, lines: list[tuple[Key, str]]) -> tuple[str, int]:
        calls.append(f"{table}: {' '.join(line for _, line in lines)}")
        return await restore(table, lines)

    host.target._restore = counting  # type: ignore[method-assign]
    host.want({**WISH, ("filter", "cali-sub"): chain("-p udp --jump ACCEPT")})
    assert len(calls) == 1 and "cali-INPUT" not in calls[0] and calls[0].startswith("filter: :cali-sub")


@kernel
def test_chains_no_longer_wanted_go_with_all_that_led_to_them(host: Host) -> None:
    host.want(WISH)
    outcome = host.want({("filter", "INPUT"): HOOK, ("filter", "cali-INPUT"): Own()})
    assert outcome.ok
    assert host.rules(":cali-") == [line for line in host.rules(":cali-") if line.startswith(":cali-INPUT ")]
    assert host.rules("POSTROUTING -m") == []
    assert host.want({}).ok
    assert host.rules("cali") == []


@kernel
def test_rules_of_others_stay_as_they_are(host: Host) -> None:
    host.feed(FOREIGN)
    theirs = host.rules("KUBE", "udp", "-p tcp")
    host.want(WISH)
    host.want({**WISH, ("filter", "cali-sub"): chain("-p udp --jump ACCEPT")})
    assert host.rules("KUBE", "-A FORWARD -p udp", "-A POSTROUTING -p tcp") == theirs
    assert host.rules("-A INPUT")[0].endswith("-j cali-INPUT"), "ours come first"
    assert host.rules("-A POSTROUTING")[-1].endswith("-j cali-POSTROUTING"), "and where it is to be, last"
    host.want({})
    assert host.rules("KUBE", "udp", "-p tcp") == theirs


@kernel
def test_in_append_mode_ours_come_after_others(netns: Namespace) -> None:
    host = Host(netns, "nft", 4, append=True)
    host.feed(FOREIGN)
    host.want(WISH)
    assert host.rules("-A INPUT")[-1].endswith("-j cali-INPUT")
    assert host.resync().updated == 0


@kernel
@pytest.mark.parametrize(
    "vandal",
    [
        ("*filter", "-F", "COMMIT"),
        ("*filter", "-F", "-X", "COMMIT"),
        ("*filter", "-F cali-sub", "COMMIT"),
        ("*filter", "-I INPUT -j ACCEPT", "COMMIT"),
        ("*filter", "-I cali-INPUT -j ACCEPT", "COMMIT"),
        ("*filter", "-A INPUT -j cali-INPUT", "COMMIT"),
        ("*filter", ":cali-stray - -", "-A cali-stray -j ACCEPT", "COMMIT"),
        ("*nat", "-F POSTROUTING", "COMMIT"),
    ],
)
def test_damage_is_repaired(host: Host, vandal: tuple[str, ...]) -> None:
    host.want(WISH)
    good = host.rules("cali")
    host.feed(*vandal)
    assert host.resync().ok
    assert host.rules("cali") == good
    assert host.rules("-A INPUT")[0].endswith("-j cali-INPUT")


@kernel
def test_rules_of_old_releases_are_taken_away(host: Host) -> None:
    old = ("-A INPUT -j felix-INPUT", "-A felix-INPUT -j califw-1")
    host.feed("*filter", ":felix-INPUT - -", ":califw-1 - -", *old, "COMMIT")
    assert host.want(WISH).ok
    assert host.rules("felix", "califw") == []


# --- refusals -----------------------------------------------------------------------------------


@kernel
def test_a_refused_table_stays_as_it_was_and_says_which_chain(host: Host) -> None:
    host.want(WISH)
    good = host.rules("cali")
    bad = {**WISH, ("filter", "cali-sub"): chain("-m set --match-set nosuch src --jump ACCEPT")}
    outcome = host.want(bad)
    assert host.rules("cali") == good
    assert set(outcome.failed) == {("filter", "cali-sub")}
    assert "nosuch" in outcome.failed["filter", "cali-sub"]
    assert host.want(WISH).ok


@kernel
def test_a_chain_that_may_be_replaced_drops_and_does_not_hold_up_the_rest(
    request: pytest.FixtureRequest, netns: Namespace
) -> None:
    host = Host(netns, "nft", 4, expendable=lambda name: name.startswith("cali-pi-"))
    wish: dict[Key, Content] = {
        **WISH,
        ("filter", "cali-pi-good"): chain("--jump ACCEPT"),
        ("filter", "cali-pi-bad"): chain("-m set --match-set nosuch src --jump ACCEPT", "--jump ACCEPT"),
        ("filter", "cali-pi-worse"): chain("-m nosuchmatch --jump ACCEPT"),
        ("filter", "cali-INPUT"): chain("--jump cali-pi-bad", "--jump cali-pi-good", "--jump cali-pi-worse"),
    }
    outcome = host.want(wish)
    assert set(outcome.failed) == {("filter", "cali-pi-bad"), ("filter", "cali-pi-worse")}
    assert "drops everything instead" in outcome.failed["filter", "cali-pi-bad"]
    assert host.rules("-A cali-pi-bad", "-A cali-pi-worse") == [
        "-A cali-pi-bad -j DROP",
        "-A cali-pi-worse -j DROP",
    ]
    assert len(host.rules("-A cali-pi-good")) == 1
    netns.run("ipset", "create", "nosuch", "hash:net")
    outcome = host.resync()
    assert set(outcome.failed) == {("filter", "cali-pi-worse")}


@kernel
@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("replaceable", [True, False])
def test_no_part_of_a_rule_is_ever_read_as_another(netns: Namespace, backend: str, replaceable: bool) -> None:
    """`*-restore` takes what stands behind the end of its buffer for the next line."""
    host = Host(netns, backend, 4, expendable=lambda _name: replaceable)
    text = " ".join([f'-m comment --comment "{"x" * 233}"'] * 39) + ' -m comment --comment "'
    text += "x" * (10239 - len(f"-A cali-bad {rule('0', text).text}"))
    text += '-A cali-INPUT --jump ACCEPT -m comment --comment x" --jump RETURN'
    outcome = host.want({**WISH, ("filter", "cali-bad"): Own((rule("0", text),))})
    assert ("filter", "cali-bad") in outcome.failed
    assert host.rules("-A cali-bad") == (["-A cali-bad -j DROP"] if replaceable else [])
    assert not [line for line in host.rules("-A cali-INPUT") if "cali:" not in line]


@kernel
def test_rules_that_cannot_be_read_never_hold_up_the_rest_however_many(netns: Namespace) -> None:
    host = Host(netns, "nft", 4, expendable=lambda name: name.startswith("cali-pi-"))
    bad = {("filter", f"cali-pi-{number}"): chain("-p 1 " * 130) for number in range(20)}
    assert host.want({**WISH, **bad}).failed.keys() == bad.keys()
    assert len(host.rules("-j DROP")) == len(bad)


@kernel
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_many_refused_chains_hold_up_neither_the_table_nor_each_other(netns: Namespace, backend: str) -> None:
    """One in three is refused: first of those that nothing stands of yet, then of those that are open."""
    host = Host(netns, backend, 4, expendable=lambda name: name.startswith("cali-pi-"))
    all_of_them = [("filter", f"cali-pi-{number}") for number in range(150)]
    open_ones: dict[Key, Content] = dict.fromkeys(all_of_them, chain("--jump ACCEPT"))
    refused = dict.fromkeys(all_of_them[::3], chain("-m set --match-set nosuch src --jump ACCEPT"))
    for others in ("--jump ACCEPT", "--jump RETURN"):
        top = {("filter", "cali-INPUT"): chain(others)}
        good = {key: chain(others) for key in open_ones.keys() - refused.keys()}
        outcome = host.want({**WISH, **top, **good, **refused})
        assert outcome.failed.keys() == refused.keys()
        assert all("nosuch" in why for why in outcome.failed.values())
        lines = host.rules("-A cali-pi-")
        assert len(lines) == len(all_of_them)
        assert {line for line in lines if "DROP" in line} == {f"-A {name} -j DROP" for _, name in refused}
        assert host.rules("-A cali-INPUT")[0].endswith(others.removeprefix("--jump "))
    assert host.want({**WISH, **open_ones}).ok


@kernel
def test_a_chain_that_something_leads_to_is_neither_deleted_nor_emptied(host: Host) -> None:
    host.want(WISH)
    before = host.rules("-A cali-sub")
    host.feed("*filter", "-A FORWARD -p tcp -g cali-sub", "COMMIT")
    lean = {key: content for key, content in WISH.items() if key[1] != "cali-sub"}
    lean["filter", "cali-INPUT"] = chain("--jump RETURN")
    outcome = host.want(lean)
    assert set(outcome.failed) == {("filter", "cali-sub")}
    assert host.rules("-A cali-sub") == before
    assert host.sync().ok, "what leads to our chains without our mark is of an old release, and goes"
    assert host.rules("cali-sub") == []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Puts a shell script in front of a program."""

    def shadow(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    yield shadow


@kernel
def test_a_write_that_fails_once_is_made_good(netns: Namespace, programs: Callable[[str, str], None]) -> None:
    programs("iptables-nft-restore", 'if mkdir "$0.done" 2>/dev/null; then echo busy >&2; exit 4; fi\n'
             'exec /usr/sbin/iptables-nft-restore "$@"')  # fmt: skip
    host = Host(netns, "nft", 4)
    outcome = host.want({("filter", "INPUT"): HOOK, ("filter", "cali-INPUT"): Own()})
    assert set(outcome.failed.values()) == {"busy"}
    assert host.sync().ok
    assert len(host.rules("cali")) == 3


@kernel
def test_a_program_that_hangs_is_an_error_not_a_standstill(
    netns: Namespace, programs: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs("iptables-nft-save", "exec sleep 60")

    async def impatient(*command: str, given: str = "", deadline: float = 0.2) -> process.Finished:
        return await process.run(*command, given=given, deadline=0.2)

    monkeypatch.setattr(iptables, "run", impatient)
    target = TableTarget(iptables_backend.tools(4, "nft"))
    with pytest.raises(KernelError, match="no answer within"):
        netns.call(asyncio.run, target.read())


@kernel
def test_tables_that_iptables_cannot_show_are_reported(netns: Namespace) -> None:
    netns.run(
        "nft", "-f", "-", stdin="table ip filter {\nchain INPUT {\ntype filter hook input priority 5;\n}\n}\n"
    )
    host = Host(netns, "nft", 4)
    with pytest.raises(KernelError, match="table filter"):
        netns.call(asyncio.run, host.target.read())


# --- which back-end -----------------------------------------------------------------------------


@kernel
def test_the_backend_follows_the_kubelet_then_the_rules_then_the_host(netns: Namespace) -> None:
    def detect(wanted: str = "auto") -> str:
        return netns.call(asyncio.run, iptables_backend.detect(4, wanted))

    assert detect("Legacy") == "legacy"
    assert detect("nft") == "nft"
    assert detect() == "nft", "Debian's iptables is the nft one"
    netns.run("iptables-legacy", "-A", "INPUT", "-j", "ACCEPT")
    assert detect() in ("legacy", "nft")  # /proc/net shows this process's own namespace
    netns.run("iptables-nft", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
    assert detect() == "nft"


@kernel
def test_programs_are_found_with_what_their_backend_needs() -> None:
    legacy, nft = iptables_backend.tools(6, "legacy", 20), iptables_backend.tools(6, "nft")
    assert os.path.basename(legacy.save[0]) == "ip6tables-legacy-save"
    assert legacy.restore[1:] == ("--noflush", "--wait", "10", "--wait-interval", "20000")
    assert nft.restore[1:] == ("--noflush",)


@unit
def test_a_host_without_iptables_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(KernelError, match="is not installed"):
        iptables_backend.tools(4, "nft")
    assert not iptables_backend.installed(4)
