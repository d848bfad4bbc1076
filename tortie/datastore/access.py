"""What rules and initial data need of the client, so that it can use them without their knowing it."""

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from tortie.datastore.backend import Backend, Broken
from tortie.datastore.types.meta import Resource

R = TypeVar("R", bound=Resource)


@dataclass(slots=True)
class Page(Generic[R]):
    """All resources of a list at one revision; `broken` are those that could not be read."""

    items: list[R]
    revision: str
    broken: list[Broken] = field(default_factory=list)


class Access(Protocol):
    """See Client, which is the one there is."""

    backend: Backend

    async def create(self, resource: R) -> R: ...

    async def update(self, resource: R) -> R: ...

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R: ...

    async def list(self, kind: type[R], namespace: str = "", name_prefix: str = "") -> Page[R]: ...
