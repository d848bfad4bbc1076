"""Which host endpoint is on which of the host's interfaces. Pure.

An endpoint names its interface, or the addresses it expects there, or stands for all interfaces with none
of their own (`*`). Of several on one interface the one with the smallest name has it. One that names its
interface holds it also while that does not exist: when it appears, its policy is already there.
(Reference: policy sheet 3; felix/dataplane/linux/endpoint_mgr.go.)
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from tortie.core.errors import ValidationError
from tortie.felix.calc import canonical
from tortie.felix.calc.model import HostEndpoint
from tortie.felix.rules.dispatch import ANY_INTERFACE


def assign(
    hosts: Iterable[HostEndpoint], addresses: Mapping[str, Collection[str]], prefixes: tuple[str, ...]
) -> dict[str, HostEndpoint]:
    """Interface (or ANY_INTERFACE) -> its endpoint.

    `addresses`: interface -> its addresses; `prefixes` are those of workload interfaces, which have none.
    """
    found: dict[str, HostEndpoint] = {}
    for endpoint in sorted(hosts, key=lambda one: one.name, reverse=True):
        for interface in _claims(endpoint, addresses):
            if not interface.startswith(prefixes):
                found[interface] = endpoint
    if (general := found.get(ANY_INTERFACE)) is not None:
        found[ANY_INTERFACE] = replace(general, untracked_tiers=())  # works only on interfaces named
    return found


def _claims(endpoint: HostEndpoint, addresses: Mapping[str, Collection[str]]) -> list[str]:
    if endpoint.interface:
        return [ANY_INTERFACE if endpoint.interface == "*" else endpoint.interface]
    expected = set(endpoint.expected_ips)
    return [name for name, held in addresses.items() if not expected.isdisjoint(held) and _writable(name)]


def _writable(interface: str) -> bool:
    """The kernel allows names that a ruleset cannot hold safely."""
    try:
        return canonical.interface(interface) == interface
    except ValidationError:
        return False
