"""Defaults and validation of every v3 kind, as Calico's client and CRD schemas do them together.

`with_defaults` fills in what a writer may leave out; `check` raises ValidationError naming every
wrong field. Both are pure. Rules that need to look at other objects are in datastore.rules.

The tables of checks are imported at the first call: who only reads, as `calicoctl get`, starts without them.
"""

from typing import TypeVar

from tortie.datastore.types.meta import Resource

R = TypeVar("R", bound=Resource)

__all__ = ["check", "with_defaults"]


def with_defaults(resource: R) -> R:
    """A copy with every default that Calico writes into the stored object."""
    from tortie.datastore.validate import registry

    return registry.with_defaults(resource)


def check(resource: Resource) -> None:
    """Raises ValidationError naming every wrong field of the resource."""
    from tortie.datastore.validate import registry

    registry.check(resource)
