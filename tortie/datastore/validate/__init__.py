"""Defaults and validation of every v3 kind, as Calico's client and CRD schemas do them together.

`with_defaults` fills in what a writer may leave out; `check` raises ValidationError naming every
wrong field. Both are pure. Rules that need to look at other objects are in datastore.rules.

The tables of checks are imported at the first call: who only reads, as `calicoctl get`, starts without them.
"""

from typing import Any, TypeVar

from tortie.datastore.types.meta import Resource

R = TypeVar("R", bound=Resource)

__all__ = ["check", "check_stored", "with_defaults"]

# Of these a part that is wrong does not make the whole absent: felix denies for a policy or profile it cannot
# understand, takes a configuration without the field that is wrong, and looks at endpoints (there are
# many) when it uses them.
_READ_IN_PARTS = frozenset({
    "FelixConfiguration",
    "GlobalNetworkPolicy", "GlobalNetworkSet", "HostEndpoint", "NetworkPolicy", "NetworkSet", "Profile",
    "StagedGlobalNetworkPolicy", "StagedNetworkPolicy", "Tier", "WorkloadEndpoint",
})  # fmt: skip


def with_defaults(resource: R) -> R:
    """A copy with every default that Calico writes into the stored object."""
    from tortie.datastore.validate import registry

    return registry.with_defaults(resource)


def check(resource: Resource) -> None:
    """Raises ValidationError naming every wrong field of the resource."""
    from tortie.datastore.validate import registry

    registry.check(resource)


def check_stored(value: Any) -> None:
    """For a Syncer: raises ValidationError for what must count as absent, to all processes alike.

    One that took an invalid pool for a pool while another does not would give out addresses without routes.
    """
    if isinstance(value, Resource) and value.KIND not in _READ_IN_PARTS:
        check(value)
