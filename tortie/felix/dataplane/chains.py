"""Which chains are to stand in one IP version's tables: those that something leads to.

Chains are offered as they are made and become real while a kernel chain reaches them, directly or through
others, or while they are held; so a profile costs the kernel nothing in tables where no endpoint uses it. A
chain that is led to but not offered drops everything: a gap in our own book-keeping must not open anything.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from tortie.felix.rules import ir
from tortie.felix.rules.ir import Chain, Hook, Rule

Key = tuple[str, str]
"""(table, chain)"""


class ChainGraph:
    """Calls `shown(key, chain)` for what is to stand now, and with None for what is to stand no more."""

    def __init__(self, shown: Callable[[Key, Chain | Hook | None], None]) -> None:
        self._shown = shown
        self._offered: dict[Key, Chain] = {}
        self._hooks: dict[Key, Hook] = {}
        self._users: Counter[Key] = Counter()  # chain -> times that visible chains lead to it
        self._visible: dict[Key, Chain] = {}

    def offer(self, table: str, chains: Iterable[Chain]) -> None:
        """New or changed chains; unchanged ones cost a comparison."""
        for chain in chains:
            key = (table, chain.name)
            if self._offered.get(key) != chain:
                self._offered[key] = chain
                if self._users[key] > 0:
                    self._show(key)

    def withdraw(self, table: str, names: Iterable[str]) -> None:
        for name in names:
            key = (table, name)
            if self._offered.pop(key, None) is not None and self._users[key] > 0:
                self._show(key)

    def offered(self, table: str, name: str) -> Chain | None:
        return self._offered.get((table, name))

    def hook(self, key: Key, hook: Hook, *, idle: bool = False) -> None:
        """Our rules in a kernel chain: where all ways begin. None while `idle`: each costs every packet."""
        before, after = self._hooks.pop(key, None), None if idle else hook
        if after is not None:
            self._hooks[key] = after
        if before == after:
            return
        self._count(key[0], after.targets if after else (), 1)
        self._shown(key, after)
        self._count(key[0], before.targets if before else (), -1)

    def hold(self, table: str, names: Iterable[str]) -> None:
        """Let chains stand though nothing leads to them, until release()."""
        self._count(table, names, 1)

    def release(self, table: str, names: Iterable[str]) -> None:
        self._count(table, names, -1)

    def ruleset(self) -> dict[Key, Chain | Hook]:
        """All that is to stand now, as the evaluator takes it."""
        return {**self._visible, **self._hooks}

    def _count(self, table: str, targets: Iterable[str], change: int) -> None:
        for target in targets:
            key = (table, target)
            self._users[key] += change
            if self._users[key] == 0:
                self._hide(key)
            elif self._users[key] == change == 1:
                self._show(key)

    def _show(self, key: Key) -> None:
        before = self._visible.get(key)
        chain = self._offered.get(key) or Chain(key[1], _GAP)
        self._visible[key] = chain
        self._count(key[0], chain.targets, 1)  # first, so that what stays in use never vanishes
        self._shown(key, chain)
        if before is not None:
            self._count(key[0], before.targets, -1)

    def _hide(self, key: Key) -> None:
        del self._users[key]
        chain = self._visible.pop(key)
        self._shown(key, None)
        self._count(key[0], chain.targets, -1)


_GAP = (Rule((), ir.DROP, ("Chain is missing",)),)
