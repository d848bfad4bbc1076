"""The v3 client: typed resources in and out, with defaults, validation and the rules of each kind.

What Calico's clientv3 is to its backends. Nothing here knows etcd; nothing above it should talk to
a backend about v3 resources directly, or the rules are bypassed. IPAM's own objects do not pass
here: the allocator works on the backend.
"""

import time
import uuid
from collections.abc import Callable
from typing import TypeVar, cast

from tortie.core.errors import FieldError, ResourceAlreadyExists, UpdateConflict, ValidationError
from tortie.datastore import validate
from tortie.datastore.access import Page
from tortie.datastore.backend import KV, Backend
from tortie.datastore.keys import ResourceKey, ResourceList, key_of
from tortie.datastore.kinds import KINDS
from tortie.datastore.rules import DEFAULT_ALLOW, DEFAULT_ALLOW_PROFILE, NO_RULES, RULES, KindRules, as_read
from tortie.datastore.types.meta import Resource
from tortie.datastore.types.policy import Profile

R = TypeVar("R", bound=Resource)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Client:
    def __init__(
        self,
        backend: Backend,
        *,
        now: Callable[[], str] = _now,
        new_uid: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        """`now` gives RFC 3339 UTC times in whole seconds, `new_uid` random UUIDs."""
        self.backend = backend
        self._now = now
        self._new_uid = new_uid

    async def close(self) -> None:
        await self.backend.close()

    async def create(self, resource: R) -> R:
        """Store a new resource and return it as stored. Raises ValidationError, ResourceAlreadyExists."""
        if resource.metadata.resourceVersion:
            raise ValidationError(
                [
                    FieldError(
                        "Metadata.ResourceVersion",
                        resource.metadata.resourceVersion,
                        "field must not be set for a Create request",
                    )
                ]
            )
        resource = await self._new(resource)
        try:
            kv = await self.backend.create(key_of(resource), resource)
        except ResourceAlreadyExists as err:
            raise ResourceAlreadyExists(key_of(resource), err.err, self._seen(err.current)) from None
        return self._after_read(cast(R, kv.value), kv)

    async def unsafe_create(self, resource: R) -> R:
        """As create, without the rules that look at other objects: splitting a pool overlaps it meanwhile.

        Raises ValidationError, ResourceAlreadyExists.
        """
        resource = self._stamped(resource)
        return self._after_read(resource, await self.backend.create(key_of(resource), resource))

    async def _new(self, resource: R) -> R:
        """The resource as it is to be stored for the first time. Raises ValidationError."""
        resource = self._stamped(resource)
        made: R = await _rules(resource).before_create(self, resource)
        return made

    def _stamped(self, resource: R) -> R:
        """With a UID, a time and defaults. Raises ValidationError."""
        resource = resource.with_metadata(
            uid=resource.metadata.uid or self._new_uid(),
            creationTimestamp=resource.metadata.creationTimestamp or self._now(),
        )
        resource = validate.with_defaults(resource)
        validate.check(resource)
        return resource

    async def update(self, resource: R) -> R:
        """Replace a resource that still has the revision it was read with.

        Raises ValidationError, ResourceDoesNotExist, UpdateConflict.
        """
        resource = validate.with_defaults(resource)
        validate.check(resource)
        resource = await _rules(resource).before_update(self, resource)
        _based_on_something_stored(resource)
        try:
            kv = await self.backend.update(KV(key_of(resource), resource, resource.revision))
        except UpdateConflict as err:
            raise UpdateConflict(key_of(resource), current=self._seen(err.current)) from None
        return self._after_read(cast(R, kv.value), kv)

    async def overwrite(self, resource: R) -> R:
        """Store a resource, whatever is there: for what cannot be read, and so has nothing to be kept.

        Raises ValidationError.
        """
        resource = await self._new(resource)
        kv = await self.backend.apply(key_of(resource), resource)
        return self._after_read(cast(R, kv.value), kv)

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        """Raises ResourceDoesNotExist; ValidationError if what is stored cannot be parsed."""
        if (kind.KIND, name) == (Profile.KIND, DEFAULT_ALLOW):
            return cast(R, DEFAULT_ALLOW_PROFILE)
        kv = await self.backend.get(_key(kind, name, namespace))
        return self._after_read(cast(R, kv.value), kv)

    async def list(self, kind: type[R], namespace: str = "", name_prefix: str = "") -> Page[R]:
        listed = await self.backend.list(ResourceList(kind.KIND, namespace, name_prefix))
        items = [self._after_read(kv.value, kv) for kv in listed.items]
        if kind.KIND == Profile.KIND and DEFAULT_ALLOW.startswith(name_prefix):
            items.append(cast(R, DEFAULT_ALLOW_PROFILE))
        return Page(items, listed.revision, listed.broken)

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R | None:
        """Delete and return what was stored (None if it was unreadable).

        Raises ResourceDoesNotExist, and UpdateConflict if `revision` is given and not current.
        """
        key = _key(kind, name, namespace)
        await RULES.get(kind.KIND, NO_RULES).before_delete(self, key)
        kv = await self.backend.delete(key, revision)
        return self._after_read(kv.value, kv) if kv.value is not None else None

    def _after_read(self, resource: R, kv: KV) -> R:
        return as_read(resource.with_metadata(resourceVersion=kv.revision))

    def _seen(self, current: object) -> object:
        """What a reader would see of an object that stood in the way of a write."""
        if isinstance(current, KV) and isinstance(current.value, Resource):
            return self._after_read(current.value, current)
        return None


def _based_on_something_stored(resource: Resource) -> None:
    """Raises ValidationError naming what an update must have of what it replaces."""
    meta = resource.metadata
    missing = [
        FieldError(f"Metadata.{name}", value or "", "field must be set for an Update request")
        for name, value in [
            ("ResourceVersion", meta.resourceVersion),
            ("CreationTimestamp", meta.creationTimestamp),
            ("UID", meta.uid),
        ]
        if not value
    ]
    if missing:
        raise ValidationError(missing)


def _rules(resource: Resource) -> KindRules:
    return RULES.get(resource.KIND, NO_RULES)


def _key(kind: type[Resource], name: str, namespace: str) -> ResourceKey:
    """Raises ValidationError: without its namespace a key would be that of another object."""
    if not name:
        raise ValidationError([FieldError("Metadata.Name", name, "field must be set")])
    if KINDS[kind.KIND].namespaced and not namespace:
        reason = "namespace is not specified on namespaced resource"
        raise ValidationError([FieldError("Metadata.Namespace", None, reason)])
    return ResourceKey(kind.KIND, name, namespace)
