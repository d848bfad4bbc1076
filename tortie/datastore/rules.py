"""What the client does around a write or a read beyond one object: rules that look at others.

Each hook is `async (client, resource) -> resource`; it may refuse by raising, or return a changed
resource. Kinds without an entry have no such rule. (Reference: Calico data model, sections 1.2,
2.3-2.7.)
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tortie.datastore.client import Client

Hook = Callable[["Client", Any], Awaitable[Any]]


async def _unchanged(_client: "Client", resource: Any) -> Any:
    return resource


@dataclass(frozen=True, slots=True)
class KindRules:
    before_create: Hook = _unchanged
    before_update: Hook = _unchanged  # the resource still carries the revision it is based on
    before_delete: Hook = _unchanged  # is given the stored resource
    after_read: Callable[[Any], Any] = lambda resource: resource  # pure: what readers see


RULES: dict[str, KindRules] = {}  # kind name -> its rules
NO_RULES = KindRules()
