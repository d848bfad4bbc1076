"""A set of addresses as intervals: what is reserved, what is taken up by blocks of another size.

Intervals are closed, disjoint, ascending and merged, so that "is this block wholly reserved by several
reservations together" is one look-up, and space can be counted in pools of any size (an IPv6 pool may
hold 2^80 addresses).
"""

from bisect import bisect_right
from collections.abc import Iterable

from tortie.ipam.addresses import Address, Network


class Ranges:
    """Immutable. Questions take a network or an address of either IP version."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)
        spans = sorted((n.version, int(n.network_address), int(n.broadcast_address)) for n in self._networks)
        self._spans: dict[int, list[tuple[int, int]]] = {4: [], 6: []}  # version -> intervals
        for version, first, last in spans:
            merged = self._spans[version]
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        self._firsts = {version: [first for first, _ in spans] for version, spans in self._spans.items()}

    def with_networks(self, networks: Iterable[Network]) -> "Ranges":
        return Ranges([*self._networks, *networks])

    def __bool__(self) -> bool:
        return bool(self._spans[4] or self._spans[6])

    def __contains__(self, address: Address) -> bool:
        return self.end_of_run(address.version, int(address)) is not None

    def end_of_run(self, version: int, value: int) -> int | None:
        """The last address (as a number) of the interval that holds `value`, None if none does."""
        index = bisect_right(self._firsts[version], value) - 1
        if index >= 0 and value <= (last := self._spans[version][index][1]):
            return last
        return None

    def covers(self, net: Network) -> bool:
        """Whether every address of `net` is in the set."""
        end = self.end_of_run(net.version, int(net.network_address))
        return end is not None and end >= int(net.broadcast_address)

    def ordinals(self, net: Network) -> tuple[range, ...]:
        """The part of the set inside `net`, as offsets from its first address."""
        base, top = int(net.network_address), int(net.broadcast_address)
        spans = self._spans[net.version]
        found = []
        for first, last in spans[max(0, bisect_right(self._firsts[net.version], base) - 1) :]:
            if first > top:
                break
            if last >= base:
                found.append(range(max(first, base) - base, min(last, top) - base + 1))
        return tuple(found)

    def overlaps(self, net: Network) -> bool:
        return bool(self.ordinals(net))

    def count_in(self, net: Network) -> int:
        """How many addresses of `net` are in the set."""
        # Not len(): an IPv6 pool has more addresses than len() may return.
        return sum(part.stop - part.start for part in self.ordinals(net))
