"""Makes the kernel's IP sets what they should be. A Target for the reconciler, keyed by set name.

What it relies on and gives:
- A set is filled before apply() returns, so a rule written afterwards finds it whole. A new one that cannot
  be filled goes again: a rule that denies its members must not find half of them.
- Members change one by one inside a living set, additions first: a member that stays is never missing.
- A set whose size limit changed, or that has no room for its old and new members at once, is built under a
  temporary name and swapped in: rules that name it see the old content or the new one. The kernel swaps
  only sets of one type; a set of another type is destroyed first, which fails while a rule names it. (The
  ids of felix's sets imply their type.)
- A set that a rule still names cannot be destroyed; its key then fails and is tried again.

Members are compared as text: the caller gives them as the kernel prints them (addresses of inet_ntop,
networks without host bits, single addresses without prefix length).
"""

import asyncio
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tortie.core.errors import KernelError
from tortie.linux.overtaken import Writes
from tortie.linux.process import run

SetType = Literal["hash:ip", "hash:net", "hash:ip,port"]


@dataclass(frozen=True, slots=True)
class IPSet:
    """`version` is 4 or 6; `maximum` is how many members it may ever hold."""

    type: SetType
    version: int
    members: frozenset[str] = frozenset()
    maximum: int = 1048576

    def shaped_like(self, other: "IPSet") -> bool:
        """Whether the one can become the other by adding and deleting members."""
        return (self.type, self.version, self.maximum) == (other.type, other.version, other.maximum)


# Names that are ours; the last two belong to the first releases of Calico.
OURS = re.compile(r"cali[46]|felix-[46]|felix-(masq|all)-ipam-pools$")
_TEMPORARY = re.compile(r"cali[46]t(\d+)$")
_CREATE = re.compile(r"create (\S+) (\S+) family (inet6?)\b.*? maxelem (\d+)")
_ERROR_LINE = re.compile(r"Error in line (\d+)")
_MISSING = "does not exist"
_LINES_AT_ONCE = 5000  # parsed before the loop runs again: about 3 ms
_DEADLINE = 60.0  # seconds; a million members take about ten


class SetTarget:
    """reconcile.Target[str, IPSet] for the sets of one IP version that are ours by name."""

    def __init__(self, version: int) -> None:
        self._version = version
        self._known: dict[str, IPSet] = {}  # name -> as read or written last
        self._writes = Writes()

    async def read(self) -> Mapping[str, IPSet]:
        """Our sets of this version. Raises KernelError, also if a write overtakes it."""
        mark = self._writes.mark()
        saved = await run("ipset", "save", deadline=_DEADLINE)
        if saved.status:
            raise KernelError("read", "IP sets", text=saved.reason)
        everything, known = await _parse(saved.output), {}
        self._writes.check(mark, "IP sets")
        for name, found in everything.items():
            if found.version == self._version and OURS.match(name):
                before = self._known.get(name)
                # The same object for an unchanged set: comparing it again later costs nothing.
                known[name] = before if before == found and before is not None else found
        self._known = known
        return dict(known)

    async def apply(self, update: Mapping[str, IPSet], delete: Collection[str]) -> Mapping[str, str]:
        with self._writes.under_way():
            return await self._apply(update, delete)

    async def _apply(self, update: Mapping[str, IPSet], delete: Collection[str]) -> Mapping[str, str]:
        failed: dict[str, str] = {}
        reshaped = [name for name in update if name in self._known and not self._fits(name, update[name])]
        plain = {name: wanted for name, wanted in update.items() if name not in reshaped}
        await self._restore({name: list(self._changes(name, plain[name])) for name in plain}, failed)
        half = [name for name in plain if name in failed and name not in self._known]
        await self._restore({name: [f"destroy {name}"] for name in half}, {})
        for name in reshaped:
            await self._rebuild(name, update[name], failed)
        await self._restore({name: [f"destroy {name}"] for name in delete}, failed)
        self._known.update({name: wanted for name, wanted in update.items() if name not in failed})
        for name in delete:
            if name not in failed:
                self._known.pop(name, None)
        return failed

    def same(self, desired: IPSet, actual: IPSet) -> bool:
        return desired is actual or desired == actual

    # --- steps ----------------------------------------------------------------------------------

    def _fits(self, name: str, wanted: IPSet) -> bool:
        """Whether the set can become what is wanted member by member, additions first."""
        known = self._known[name]
        if not known.shaped_like(wanted):
            return False
        room = wanted.maximum
        return len(known.members) + len(wanted.members) <= room or len(known.members | wanted.members) <= room

    def _changes(self, name: str, wanted: IPSet) -> Iterator[str]:
        known = self._known.get(name)
        if known is None:
            yield f"create {name} {_shape(wanted)} -exist"
        before = known.members if known else frozenset()
        for member in wanted.members - before:
            yield f"add {name} {member} -exist"
        for member in before - wanted.members:
            yield f"del {name} {member} -exist"

    async def _rebuild(self, name: str, wanted: IPSet, failed: dict[str, str]) -> None:
        if (self._known[name].type, self._known[name].version) != (wanted.type, wanted.version):
            adds = [f"add {name} {member}" for member in wanted.members]
            await self._restore({name: [f"destroy {name}", f"create {name} {_shape(wanted)}", *adds]}, failed)
            return
        temporary = self._temporary_name()
        lines = [f"create {temporary} {_shape(wanted)}"]
        lines += [f"add {temporary} {member}" for member in wanted.members]
        lines += [f"swap {temporary} {name}", f"destroy {temporary}"]
        await self._restore({name: lines}, failed)

    def _temporary_name(self) -> str:
        """Sets left over from a rebuild that broke off keep theirs until they are pruned."""
        used = {int(match[1]) for name in self._known if (match := _TEMPORARY.match(name))}
        return f"cali{self._version}t{next(number for number in range(len(used) + 1) if number not in used)}"

    async def _restore(self, lines: Mapping[str, list[str]], failed: dict[str, str]) -> None:
        """Run the lines of all sets in one go; a set whose line is refused fails, the others go on."""
        pending = {name: own for name, own in lines.items() if own}
        while pending:
            owners = [name for name, own in pending.items() for _ in own]
            text = "\n".join(line for own in pending.values() for line in own)
            done = await run("ipset", "restore", given=text + "\n", deadline=_DEADLINE)
            if done.status == 0:
                return
            match = _ERROR_LINE.search(done.complaint)
            if match is None or not 0 < int(match[1]) <= len(owners):
                failed.update(dict.fromkeys(pending, done.reason))
                return
            culprit = owners[int(match[1]) - 1]
            gone = pending[culprit][0].startswith("destroy ") and _MISSING in done.complaint
            if not gone:  # deleting what is gone succeeds
                failed[culprit] = done.reason
            # What came before was carried out, or was not: every line may be repeated.
            del pending[culprit]


def _shape(wanted: IPSet) -> str:
    family = "inet" if wanted.version == 4 else "inet6"
    return f"{wanted.type} family {family} maxelem {wanted.maximum}"


async def _parse(text: str) -> dict[str, IPSet]:
    """All sets that `ipset save` shows and that are of a kind we use."""
    shapes: dict[str, tuple[SetType, int, int]] = {}
    members: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines()):
        if line.startswith("add "):
            _, name, member, *_ = line.split(" ", 3)
            members[name].append(member)
        elif line.startswith("create "):
            members[line.split(" ", 2)[1]] = []
            if (match := _CREATE.match(line)) and match[2] in ("hash:ip", "hash:net", "hash:ip,port"):
                shapes[match[1]] = match[2], 4 if match[3] == "inet" else 6, int(match[4])  # type: ignore[assignment]
        if number % _LINES_AT_ONCE == 0:
            await asyncio.sleep(0)
    return {
        name: IPSet(kind, version, frozenset(members[name]), maximum)
        for name, (kind, version, maximum) in shapes.items()
    }
