"""Communities for prefixes that this node announces (reference: BGP facts, 5).

A node's own BGPConfiguration that has prefixAdvertisements replaces the cluster's list, for both
families; names of communities are those of the same resource. Pure.
"""

from collections.abc import Iterable, Iterator, Mapping

from tortie.bgp.config import Advertisement
from tortie.bgp.prefix import canonical
from tortie.confd.bgpfilter import community
from tortie.confd.cluster import DEFAULT_NAME
from tortie.datastore.types.bgp import BGPConfiguration, PrefixAdvertisement


def advertisements(
    configurations: Mapping[str, BGPConfiguration], node: str, problems: list[str]
) -> tuple[Advertisement, ...]:
    """What holds on the node, in the order of the resource."""
    for name in (f"node.{node}", DEFAULT_NAME):
        found = configurations.get(name)
        if found is not None and found.spec.prefixAdvertisements:
            return tuple(_advertisements(found, problems))
    return ()


def _advertisements(resource: BGPConfiguration, problems: list[str]) -> Iterator[Advertisement]:
    names = {one.name: one.value for one in resource.spec.communities}
    for given in resource.spec.prefixAdvertisements:
        try:
            standard, large = _sorted(_values(given, names))
            cidr = canonical(given.cidr)
        except ValueError as err:
            where = f"BGPConfiguration {resource.name}: prefixAdvertisements {given.cidr!r}"
            problems.append(f"{where}: {err}")
            continue
        if standard or large:
            yield Advertisement(cidr=cidr, communities=standard, large_communities=large)


def _values(given: PrefixAdvertisement, names: Mapping[str, str]) -> Iterator[tuple[int, ...]]:
    return (community(names.get(one, one)) for one in given.communities)


def _sorted(
    values: Iterable[tuple[int, ...]],
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int, int], ...]]:
    """Standard and large ones, each once."""
    standard: set[tuple[int, int]] = set()
    large: set[tuple[int, int, int]] = set()
    for value in values:
        match value:
            case (high, low):
                standard.add((high, low))
            case (one, two, three):
                large.add((one, two, three))
            case _:
                pass
    return tuple(sorted(standard)), tuple(sorted(large))
