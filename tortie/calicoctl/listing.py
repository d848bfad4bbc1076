"""What `get` without a name has found."""

from dataclasses import dataclass

from tortie.datastore.types.meta import Resource


@dataclass(frozen=True, slots=True)
class Listing:
    """All resources of a kind; `revision` is the datastore's when they were read."""

    kind: str
    items: tuple[Resource, ...]
    revision: str
