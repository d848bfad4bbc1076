"""What is known of this host's interfaces, smoothed so that a flap does not tear down what it will need.

Pure: fed with events and readings, asked for what is so now. "Running" is the kernel's IFF_RUNNING, the
far end included. A link that stops running, and an address that goes, are believed only after 100 ms: a
workload's interface that is replaced, or a daemon that re-adds an address, causes no withdrawal.
While two indices share a name (a rename in flight) the name keeps what it had.
(Reference: dataplane sheet 2.6; felix/ifacemonitor.)
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from tortie.linux.addresses import Address
from tortie.linux.links import Link

_HOLD = 0.1  # seconds, Calico's number


class Interface(NamedTuple):
    name: str
    ifindex: int
    running: bool
    mtu: int


@dataclass(slots=True)
class _Seen:
    link: Link
    stopped_at: float = inf  # when it is to be believed that it no longer runs


class Interfaces:
    """`exclude`: patterns found in names of interfaces whose addresses are not ours to look at."""

    def __init__(self, exclude: Iterable[re.Pattern[str]] = ()) -> None:
        self._exclude = tuple(exclude)
        self._seen: dict[int, _Seen] = {}  # ifindex -> as last reported
        self._shown: dict[str, Interface] = {}  # name -> what others are told
        self._names: dict[int, str] = {}  # ifindex -> name, without delay
        self._bearers: dict[str, set[int]] = {}  # name -> indices that have it, without delay
        self._addresses: dict[tuple[int, str], float] = {}  # (ifindex, address) -> when it goes
        self._dirty: set[str] = set()
        self._flapped: set[str] = set()

    # --- questions ------------------------------------------------------------------------------

    def get(self, name: str) -> Interface | None:
        return self._shown.get(name)

    def name_of(self, ifindex: int) -> str:
        """'' if there is no such interface."""
        return self._names.get(ifindex, "")

    def addresses(self, *, besides: Iterable[str] = ()) -> frozenset[str]:
        """The host's addresses; those of interfaces whose name begins with one of `besides` left out."""
        left_out = tuple(besides)
        return frozenset(
            address
            for ifindex, address in self._addresses
            if (name := self.name_of(ifindex)) and not name.startswith(left_out) and not self._excluded(name)
        )

    def held(self) -> dict[str, frozenset[str]]:
        """Interface -> its addresses; without those whose addresses are not ours to look at."""
        found: dict[str, set[str]] = {name: set() for name in self._shown if not self._excluded(name)}
        for ifindex, address in self._addresses:
            if (name := self.name_of(ifindex)) in found:
                found[name].add(address)
        return {name: frozenset(addresses) for name, addresses in found.items()}

    def on(self, name: str) -> frozenset[str]:
        """The addresses of one interface."""
        index = next(iter(self._bearers.get(name, ())), 0)
        return frozenset(address for ifindex, address in self._addresses if ifindex == index)

    def shown(self) -> Iterator[Interface]:
        """Every interface."""
        return iter(self._shown.values())

    def holding(self, address: str, *, besides: Iterable[str] = ()) -> Interface | None:
        """The interface that has an address, of several one that runs; `besides`: names that do not count."""
        indices = [ifindex for ifindex, one in self._addresses if one == address]
        found = [self._shown.get(self.name_of(ifindex)) for ifindex in indices]
        counted = (one for one in found if one is not None and one.name not in besides)
        return max(counted, key=lambda one: one.running, default=None)

    def _excluded(self, name: str) -> bool:
        return any(pattern.search(name) for pattern in self._exclude)

    # --- events ---------------------------------------------------------------------------------

    def link_changed(self, link: Link, now: float) -> None:
        before = self._seen.get(link.ifindex)
        seen = self._seen[link.ifindex] = _Seen(link)
        if before is not None and (before.link.running or before.stopped_at != inf) and not link.running:
            seen.stopped_at = min(before.stopped_at, now + _HOLD)
        if before is not None and before.link.running and not link.running:
            self._flapped.add(link.name)
        self._unname(link.ifindex)
        self._names[link.ifindex] = link.name
        self._bearers.setdefault(link.name, set()).add(link.ifindex)
        self._dirty.add(link.name)

    def link_gone(self, ifindex: int) -> None:
        """A deleted interface takes its addresses along at once: it cannot come back under this index."""
        self._seen.pop(ifindex, None)
        self._unname(ifindex)
        for key in [key for key in self._addresses if key[0] == ifindex]:
            del self._addresses[key]

    def _unname(self, ifindex: int) -> None:
        name = self._names.pop(ifindex, None)
        if name is not None:
            self._dirty.add(name)
            self._bearers[name].discard(ifindex)
            if not self._bearers[name]:
                del self._bearers[name]

    def address_changed(self, address: Address) -> None:
        self._addresses[address.ifindex, address.address] = inf

    def address_gone(self, address: Address, now: float) -> None:
        key = (address.ifindex, address.address)
        if key in self._addresses:
            self._addresses[key] = min(self._addresses[key], now + _HOLD)

    def reread(self, links: Iterable[Link], addresses: Iterable[Address], now: float) -> None:
        """A full reading: what it does not hold is gone."""
        current = {link.ifindex: link for link in links}
        for ifindex in self._seen.keys() - current.keys():
            self.link_gone(ifindex)
        for ifindex, link in current.items():
            known = self._seen.get(ifindex)
            if known is None or known.link != link:
                self.link_changed(link, now)
        held = {(one.ifindex, one.address): one for one in addresses}
        for key, one in held.items():
            if self._addresses.get(key) != inf:
                self.address_changed(one)
        for key in self._addresses.keys() - held.keys():
            self._addresses[key] = min(self._addresses[key], now + _HOLD)

    # --- what came of it ------------------------------------------------------------------------

    def settle(self, now: float) -> set[str]:
        """Names of interfaces of which others are told something new from now on."""
        for ifindex, seen in self._seen.items():
            if seen.stopped_at <= now:
                seen.stopped_at = inf
                self._dirty.add(self._names[ifindex])
        for key in [key for key, at in self._addresses.items() if at <= now]:
            del self._addresses[key]
        changed: set[str] = set()
        unclear = {name for name in self._dirty if len(self._bearers.get(name, ())) > 1}
        for name in self._dirty - unclear:
            bearers = [self._seen[ifindex] for ifindex in self._bearers.get(name, ())]
            shown = _show(bearers[0]) if bearers else None
            if shown != self._shown.get(name):
                changed.add(name)
                if shown is None:
                    del self._shown[name]
                else:
                    self._shown[name] = shown
        self._dirty = unclear
        return changed

    def take_flapped(self) -> set[str]:
        """Names of interfaces that stopped running, if only for a moment, since the last call.

        The kernel drops their IPv4 routes and ARP entries then, and says nothing.
        """
        flapped, self._flapped = self._flapped, set()
        return flapped

    def next_due(self) -> float:
        """When settle() will have to be called though no event came."""
        return min(self._deadlines(), default=inf)

    def _deadlines(self) -> Iterator[float]:
        yield from (seen.stopped_at for seen in self._seen.values())
        yield from self._addresses.values()


def _show(seen: _Seen) -> Interface:
    held = seen.stopped_at != inf
    return Interface(seen.link.name, seen.link.ifindex, seen.link.running or held, seen.link.mtu)
