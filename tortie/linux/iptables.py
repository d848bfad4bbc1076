"""Makes our chains in the iptables tables what they should be, and touches nothing else.

A Target for the reconciler. Its keys are (table, chain). The value of a chain of our own is its rules;
of one of the kernel's chains (INPUT, FORWARD, …) it is our rules in it, first and last (Hooked).

What it relies on and gives:
- Each of our rules carries the comment `cali:<hash>`, and the hash covers all rules before it. Reading
  is therefore comparing hashes; the kernel's rewording of a rule never matters.
- One `*-restore --noflush` per table that changed, holding only the chains that changed. The kernel
  takes each as a whole: no packet ever sees a chain half written, nor a jump to one not yet written.
- Chains are deleted in a transaction of their own afterwards: if something still leads to one, it
  stays as it was.
- Rules of others are never part of a transaction. In a kernel chain ours are deleted by their full text
  and inserted anew, so that others' rules keep their order and counters.
- A chain that the kernel refuses and that may be replaced (`expendable`) is written as a single drop, so
  that it neither opens nor holds up the rest; its key fails with the kernel's reason. Where many are refused,
  all that may be are closed so with the rest of the table, and then opened in small transactions.
"""

import asyncio
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tortie.core.errors import KernelError
from tortie.linux import refused
from tortie.linux.generation import generation
from tortie.linux.iptables_backend import Tools
from tortie.linux.overtaken import Writes
from tortie.linux.process import run


class RuleText(NamedTuple):
    """One rule: the hash in its comment, and what follows `-A CHAIN ` (comment included)."""

    hash: str
    text: str


Rules = tuple[RuleText, ...]
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Own:
    """A chain of our own: all that stands in it."""

    rules: Rules = ()


@dataclass(frozen=True, slots=True)
class Hooked:
    """Our rules in a kernel chain: before all others (or after, in append mode) and after all others."""

    first: Rules = ()
    last: Rules = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A chain as read: the hash of each rule, "" for one that is not ours; and the text of ours."""

    hashes: tuple[str, ...]
    ours: tuple[str, ...]


Content = Own | Hooked | Found

# Chains that are ours, those of old releases of Calico included.
OWN_CHAIN = re.compile(r"(cali-|califw-|calitw-|califh-|calith-|calipi-|calipo-|felix-)")
_HASH = re.compile(r'--comment "?cali:([A-Za-z0-9_-]{16})"?(?: |$)')
_TARGET = re.compile(r"(?:-j|-g|--jump|--goto) (\S+)")
_OLD = "<no hash>"  # stands for a rule of ours that carries none
_LINE = re.compile(r"line:? (\d+)")
_INCOMPATIBLE = re.compile(r"# Table `(\w+)' (?:is|contains) incompatible")
_DROP: Rules = (RuleText("", "--jump DROP"),)
# `*-restore` reads 10239 bytes as a line and what follows as the next one, which could be anything; of
# words it takes 251.
_LONGEST_LINE = 10_000
_MOST_WORDS = 250
_QUOTED = re.compile(r'"[^"]*"')
_TABLES = ("raw", "mangle", "nat", "filter")
_LINES_AT_ONCE, _CHAINS_AT_ONCE = 5000, 500  # looked at before the loop runs again: about 3 ms each


# --- reading ------------------------------------------------------------------------------------


def parse_save(text: str) -> dict[Key, list[str]]:
    """All chains of the tables we use and their rules, from the output of iptables-save."""
    chains: dict[Key, list[str]] = {}
    _take_lines(text.splitlines(), "", chains)
    return chains


def _take_lines(lines: Iterable[str], table: str, chains: dict[Key, list[str]]) -> str:
    """Goes on with `lines` of `table`; returns the table that the last of them belongs to."""
    for line in lines:
        kind = line[:1]
        if kind == "*":
            table = line[1:].strip()
        elif kind == ":" and table in _TABLES:
            chains[table, line[1:].split(" ", 1)[0]] = []
        elif line.startswith("-A ") and table in _TABLES:
            _, chain, *rule = line.split(" ", 2)
            chains.setdefault((table, chain), []).append(rule[0] if rule else "")
    return table


def found(chain: str, rules: Collection[str]) -> Found:
    """What a chain's rules say about us."""
    hashes = tuple(map(_hash_of, rules))
    if OWN_CHAIN.match(chain):
        return Found(hashes, ())
    return Found(hashes, tuple(rule for rule, ident in zip(rules, hashes, strict=True) if ident))


def _hash_of(rule: str) -> str:
    if match := _HASH.search(rule):
        return match[1]
    target = _TARGET.search(rule)
    return _OLD if target and OWN_CHAIN.match(target[1]) else ""


def ours(chains: Mapping[Key, list[str]]) -> dict[Key, Found]:
    """Our chains, and the kernel's as far as rules of ours stand in them."""
    everything = {key: found(key[1], rules) for key, rules in chains.items()}
    return {key: one for key, one in everything.items() if OWN_CHAIN.match(key[1]) or any(one.hashes)}


async def _ours_in(text: str) -> dict[Key, Found]:
    """ours(parse_save(text)) in pieces, between which the loop runs."""
    chains: dict[Key, list[str]] = {}
    found: dict[Key, Found] = {}
    lines, table = text.splitlines(), ""
    for start in range(0, len(lines), _LINES_AT_ONCE):
        table = _take_lines(lines[start : start + _LINES_AT_ONCE], table, chains)
        await asyncio.sleep(0)
    keys = list(chains)
    for start in range(0, len(keys), _CHAINS_AT_ONCE):
        found |= ours({key: chains[key] for key in keys[start : start + _CHAINS_AT_ONCE]})
        await asyncio.sleep(0)
    return found


# --- the target ---------------------------------------------------------------------------------


class TableTarget:
    """reconcile.Target[Key, Content] for one IP version."""

    def __init__(
        self,
        tools: Tools,
        *,
        append: bool = False,
        expendable: Callable[[str], bool] = lambda _chain: False,
    ) -> None:
        """`append`: our first rules in kernel chains go behind others' instead of before them."""
        self._tools = tools
        self._append = append
        self._expendable = expendable
        self._known: dict[Key, Found] = {}  # as read or written last
        self._writes = Writes()
        self._generation: int | None = None  # that was read last, if nothing was written since

    async def read(self) -> Mapping[Key, Content]:
        """Our chains and our rules in the kernel's. Raises KernelError, also if a write overtakes it."""
        number = generation() if self._tools.counted else None
        if number is not None and number == self._generation:
            return dict(self._known)
        mark = self._writes.mark()
        saved = await run(*self._tools.save)
        if saved.status:
            raise KernelError("read", "iptables rules", text=saved.reason)
        if match := _INCOMPATIBLE.search(saved.output):
            text = "holds rules that only nft can show; whoever wrote them must use a table of their own"
            raise KernelError("read", f"table {match[1]}", text=text)
        known = await _ours_in(saved.output)
        self._writes.check(mark, "iptables rules")
        self._known, self._generation = known, number
        return dict(known)

    async def apply(self, update: Mapping[Key, Content], delete: Collection[Key]) -> Mapping[Key, str]:
        """One transaction per table for what changes, then one for what goes."""
        failed: dict[Key, str] = {}
        self._generation = None
        with self._writes.under_way():
            for table in _TABLES:
                changing = {key: content for key, content in update.items() if key[0] == table}
                leaving = [key for key in delete if key[0] == table]
                unhooked = [key for key in leaving if not OWN_CHAIN.match(key[1])]
                await self._write(table, changing, unhooked, failed)
                await self._remove(table, [key for key in leaving if key not in unhooked], failed)
        return failed

    def same(self, desired: Content, actual: Content) -> bool:
        if desired is actual or desired == actual:
            return True
        if not isinstance(actual, Found):
            return False
        if isinstance(desired, Hooked):
            return actual.hashes == self._expected(desired, actual.hashes.count(""))
        return isinstance(desired, Own) and actual.hashes == _hashes(desired.rules)

    def _expected(self, hooked: Hooked, others: int) -> tuple[str, ...]:
        foreign = ("",) * others
        first, last = _hashes(hooked.first), _hashes(hooked.last)
        return foreign + first + last if self._append else first + foreign + last

    # --- transactions ---------------------------------------------------------------------------

    async def _write(
        self, table: str, changing: Mapping[Key, Content], unhooked: list[Key], failed: dict[Key, str]
    ) -> None:
        if not changing and not unhooked:
            return
        replaced = self._unreadable(changing)  # chains that are refused -> the reason
        most = len(replaced) + refused.MAX_REPLACED
        closed: list[Key] = []  # without having been tried
        while True:
            lines = list(self._change_lines(changing, unhooked, replaced))
            refusal, line = await self._restore(table, lines)
            if not refusal:
                break
            culprit = lines[line - 1][0] if 0 < line <= len(lines) else None
            if culprit is None or culprit in replaced or not self._may_replace(culprit):
                where = f" (chain {culprit[1]})" if culprit else ""
                failed.update(dict.fromkeys([*changing, *unhooked], f"{refusal}{where}"))
                return
            replaced[culprit] = refusal
            if len(replaced) == most:
                closed = [key for key in changing if key not in replaced and self._may_replace(key)]
                refused.close(closed, replaced)

        async def write(keys: Collection[Key]) -> Mapping[Key, str]:
            lines = list(self._change_lines({key: changing[key] for key in keys}, (), ()))
            refusal, line = await self._restore(table, lines)
            culprits = [lines[line - 1][0]] if 0 < line <= len(lines) else keys
            return dict.fromkeys(culprits, refusal) if refusal else {}

        await refused.open_again(closed, replaced, write)
        failed.update({key: f"drops everything instead: {why}" for key, why in replaced.items()})
        for key, content in changing.items():
            self._known[key] = _as_found(content)
        for key in unhooked:
            self._known.pop(key, None)

    def _may_replace(self, key: Key) -> bool:
        return key[0] != "nat" and self._expendable(key[1])

    def _unreadable(self, changing: Mapping[Key, Content]) -> dict[Key, str]:
        """The chains that may be replaced and that `*-restore` could not read, with the reason."""
        found: dict[Key, str] = {}
        for key, content in changing.items():
            if isinstance(content, Own) and self._may_replace(key):
                reasons = (_why_unreadable(f"-A {key[1]} {rule.text}") for rule in content.rules)
                if reason := next(filter(None, reasons), ""):
                    found[key] = reason
        return found

    def _change_lines(
        self, changing: Mapping[Key, Content], unhooked: Collection[Key], replaced: Collection[Key]
    ) -> Iterator[tuple[Key, str]]:
        """The transaction, each line with the key it belongs to."""
        own = {key: content.rules for key, content in changing.items() if isinstance(content, Own)}
        for key in own:
            yield key, f":{key[1]} - -"
        for key, rules in own.items():
            for rule in _DROP if key in replaced else rules:
                yield key, f"-A {key[1]} {rule.text}"
        for key in [*unhooked, *(key for key in changing if key not in own)]:
            for text in self._known[key].ours if key in self._known else ():
                yield key, f"-D {key[1]} {text}"
        for key, content in changing.items():
            if isinstance(content, Hooked):
                yield from ((key, line) for line in self._hook_lines(key[1], content))

    def _hook_lines(self, chain: str, hooked: Hooked) -> Iterator[str]:
        if self._append:
            yield from (f"-A {chain} {rule.text}" for rule in hooked.first)
        else:
            yield from (f"-I {chain} {rule.text}" for rule in reversed(hooked.first))
        yield from (f"-A {chain} {rule.text}" for rule in hooked.last)

    async def _remove(self, table: str, keys: list[Key], failed: dict[Key, str]) -> None:
        if not keys:
            return
        lines = [(key, f":{key[1]} - -") for key in keys] + [(key, f"-X {key[1]}") for key in keys]
        refusal, _ = await self._restore(table, lines)
        if refusal:
            failed.update(dict.fromkeys(keys, refusal))
            return
        for key in keys:
            self._known.pop(key, None)

    async def _restore(self, table: str, lines: list[tuple[Key, str]]) -> tuple[str, int]:
        """("", 0), or why the table was left as it was and which of `lines` (from 1) is to blame."""
        for number, (_, line) in enumerate(lines, 1):
            if reason := _why_unreadable(line):
                return reason, number
        text = "\n".join([f"*{table}", *(line for _, line in lines), "COMMIT", ""])
        done = await run(*self._tools.restore, given=text)
        if done.status == 0:
            return "", 0
        match = _LINE.search(done.complaint)
        return " ".join(done.reason.split()), int(match[1]) - 1 if match else 0


def _why_unreadable(line: str) -> str:
    if len(line) > _LONGEST_LINE or "\n" in line:
        return f"iptables cannot read a rule of {len(line)} characters as one line"
    if line.count(" ") >= _MOST_WORDS and len(_QUOTED.sub("_", line).split()) > _MOST_WORDS:
        return f"iptables cannot read a rule of more than {_MOST_WORDS} words"
    return ""


def _hashes(rules: Rules) -> tuple[str, ...]:
    return tuple(rule.hash for rule in rules)


def _as_found(content: Content) -> Found:
    """What read() would say after a successful write; of others' rules it knows nothing."""
    if isinstance(content, Hooked):
        rules = content.first + content.last
        return Found(_hashes(rules), tuple(rule.text for rule in rules))
    return Found(_hashes(content.rules), ()) if isinstance(content, Own) else content
