"""Who is in which IP set, kept up to date as selectors, endpoints, network sets and labels come and go.

Invariant: after each call, `sets` holds exactly the active sets, each with the union of what its matching
items contribute; `changed` names the sets that became active or inactive, or whose members changed, since
it was last taken. Several items may contribute the same member: it stays until the last one is gone.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from tortie.datastore.selector import Match, SelectorIndex
from tortie.felix.calc import canonical
from tortie.felix.calc.model import Members, version_of
from tortie.felix.calc.rules import PortSource, SelectorSource, ServiceSource, Source


@dataclass(frozen=True, slots=True)
class Item:
    """An endpoint or network set as sets see it. `nets` are canonical CIDRs."""

    nets: tuple[str, ...]
    labels: tuple[tuple[str, str], ...] = ()
    profiles: tuple[str, ...] = ()
    ports: tuple[tuple[str, str, int], ...] = ()  # (name, protocol, port)


@dataclass(slots=True)
class _Active:
    source: Source
    counts: Counter[str]  # member -> how many items contribute it


class MemberIndex:
    """Items are named by any hashable key; sets by their ids."""

    def __init__(self) -> None:
        self.sets: dict[str, Members] = {}
        self.changed: set[str] = set()
        self._active: dict[str, _Active] = {}
        self._items: dict[Hashable, Item] = {}
        self._services: dict[tuple[str, bool], frozenset[str]] = {}  # (service, with ports) -> members
        self._index: SelectorIndex[str, Hashable] = SelectorIndex()

    # --- sets -----------------------------------------------------------------------------------

    def activate(self, source: Source) -> None:
        """Begin to keep the set of `source`; it must not be active."""
        ident = source.id
        self._active[ident] = _Active(source, Counter())
        self.sets[ident] = Members(source.kind)
        self.changed.add(ident)
        if isinstance(source, ServiceSource):
            self._add(ident, self._services.get((source.service, source.with_ports), ()))
        else:
            self._take(self._index.update_selector(ident, source.selector))

    def deactivate(self, ident: str) -> None:
        """Forget a set and its members."""
        source = self._active.pop(ident).source
        del self.sets[ident]
        self.changed.add(ident)
        if not isinstance(source, ServiceSource):
            self._index.delete_selector(ident)

    # --- items ----------------------------------------------------------------------------------

    def update_item(self, key: Hashable, item: Item | None) -> None:
        """Add, replace or (None) delete an item."""
        known = self._items.get(key)
        if item == known:
            return
        if item is None:
            self._take(self._index.delete_item(key))
            del self._items[key]
            return
        if known is None:
            self._items[key] = item
        elif (known.nets, known.ports) != (item.nets, item.ports):
            self._recontribute(key, known, item)
        self._items[key] = item
        self._take(self._index.update_item(key, dict(item.labels), item.profiles))

    def _recontribute(self, key: Hashable, before: Item, after: Item) -> None:
        """Its addresses or ports changed: in the sets that match it now, additions first."""
        for ident in list(self._index.selectors_of(key)):
            source = self._active[ident].source
            self._add(ident, contribution(source, after))
            self._drop(ident, contribution(source, before))

    def update_profile_labels(self, name: str, labels: dict[str, str]) -> None:
        """Labels that every item with this profile inherits; {} when it is gone."""
        self._take(self._index.update_parent(name, labels))

    def update_service(self, service: str, nets: Iterable[str], ports: Iterable[str]) -> None:
        """What stands behind a service now; both empty when it is gone."""
        for with_ports, members in ((False, frozenset(nets)), (True, frozenset(ports))):
            before = self._services.get((service, with_ports), frozenset())
            if members:
                self._services[service, with_ports] = members
            else:
                self._services.pop((service, with_ports), None)
            ident = ServiceSource(service, with_ports).id
            if ident in self._active:
                self._add(ident, members - before)
                self._drop(ident, before - members)

    # --- plumbing -------------------------------------------------------------------------------

    def _take(self, events: Iterable[Match[str, Hashable]]) -> None:
        for ident, key, started in events:
            active = self._active.get(ident)
            if active is None:
                continue
            members = contribution(active.source, self._items[key])
            if started:
                self._add(ident, members)
            else:
                self._drop(ident, members)

    def _add(self, ident: str, members: Iterable[str]) -> None:
        counts, shown = self._active[ident].counts, self.sets[ident]
        for member in members:
            counts[member] += 1
            if counts[member] == 1:
                shown.of(version_of(member.partition(",")[0])).add(member)
                self.changed.add(ident)

    def _drop(self, ident: str, members: Iterable[str]) -> None:
        counts, shown = self._active[ident].counts, self.sets[ident]
        for member in members:
            counts[member] -= 1
            if counts[member] == 0:
                del counts[member]
                shown.of(version_of(member.partition(",")[0])).discard(member)
                self.changed.add(ident)


def contribution(source: Source, item: Item) -> Iterable[str]:
    """What a matching item puts into the set, as ipset prints members; each once."""
    if isinstance(source, PortSource):
        return dict.fromkeys(
            f"{canonical.address_of(net)},{protocol}:{port}"
            for name, protocol, port in item.ports
            if name == source.name and source.protocol in ("any", protocol)
            for net in item.nets
        )
    if isinstance(source, SelectorSource):
        return dict.fromkeys(canonical.single(half) for net in item.nets for half in canonical.halves(net))
    return ()
