"""The etcd v3 backend: Calico's keys and JSON, one transaction per write.

Atomicity is etcd's: create if the key's version is 0, update and delete if its mod revision is the
one read before. No multi-key transaction is used anywhere (reference: Calico data model, 1.4).
Connections, endpoints, TLS and login are etcdlink's, messages are etcdproto's.
"""

import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from msgspec import structs

from tortie.core.errors import (
    FieldError,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    RevisionGone,
    UpdateConflict,
    ValidationError,
)
from tortie.datastore import codec
from tortie.datastore import etcdproto as proto
from tortie.datastore.backend import KV, Broken, Listed, WatchEvent
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcdchannel import TIMING, Timing
from tortie.datastore.etcdlink import EtcdLink
from tortie.datastore.keys import (
    AffinityKey,
    BlockKey,
    HandleKey,
    Key,
    Listing,
    ResourceKey,
    WorkloadStatusKey,
    parse,
)
from tortie.datastore.nativekeys import KUBERNETES_ONLY
from tortie.datastore.types.meta import Resource

# Entries per request of a list: bounds the memory of one answer and the time the loop is busy decoding
# it (some 30 ms), and lets a list of any length pass under a call's deadline.
_PAGE = 500
_LIST_TRIES = 3  # a list is begun anew if its revision is compacted while it is being read
_MAX_REVISION = 2**63 - 1  # etcd's are int64


class EtcdBackend:
    """Implements datastore.backend.Backend."""

    refused: frozenset[tuple[str, str]] = frozenset()

    def __init__(self, config: DatastoreConfig, timing: Timing = TIMING, first: int = 0) -> None:
        """`first` numbers the endpoint to begin with; nodes that differ in it share the load."""
        self._link = EtcdLink(config, timing, first)

    async def close(self) -> None:
        await self._link.close()

    # --- single objects -------------------------------------------------------------------------

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        path = _path(key)
        absent = proto.compare_version(path, 0)
        reply = await self._txn([absent], proto.op_put(path, _bytes(value)), proto.op_range(path))
        if not reply.succeeded:
            raise ResourceAlreadyExists(key, current=_current(key, reply))
        return _stored(key, value, reply.revision)

    async def update(self, kv: KV) -> KV:
        path = _path(kv.key)
        put = proto.op_put(path, _bytes(kv.value, kv.origin))
        reply = await self._txn([_unchanged(path, kv.revision)], put, proto.op_range(path))
        if not reply.succeeded:
            raise _lost(kv.key, reply)
        return _stored(kv.key, kv.value, reply.revision, kv.origin)

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        path, data, lease = _path(key), _bytes(value), 0
        if ttl is not None:  # a fresh lease per put, as Calico does: the put detaches the one before
            lease = await self._link.call(proto.LEASE, proto.lease_grant(max(1, math.ceil(ttl))))
        revision = await self._link.call(proto.PUT, proto.put(path, data, lease))
        return _stored(key, value, revision)

    async def delete(self, key: Key, revision: str = "") -> KV:
        path = _path(key)
        condition = [_unchanged(path, revision)] if revision else []
        reply = await self._txn(condition, proto.op_delete(path), proto.op_range(path))
        if not reply.succeeded:
            raise _lost(key, reply)
        if not reply.entries:
            raise ResourceDoesNotExist(key)
        # An unreadable object must still be deletable.
        return _readable(key, reply.entries[0]) or KV(key, None, str(reply.entries[0].revision))

    async def get(self, key: Key, revision: str = "") -> KV:
        request = proto.range_(_path(key), revision=_number(revision or "0"))
        reply = await self._link.call(proto.RANGE, request)
        if not reply.entries:
            raise ResourceDoesNotExist(key)
        return _kv(key, reply.entries[0])

    async def compact(self, revision: str) -> None:
        """Forget the history before a revision; whoever watches from it lists again.

        Raises RevisionGone if it is forgotten already.
        """
        await self._link.call(proto.COMPACT, proto.compaction(_number(revision)))

    async def _txn(self, condition: list[bytes], success: bytes, failure: bytes) -> proto.TxnReply:
        return await self._link.call(proto.TXN, proto.txn(condition, success, failure))

    # --- sets -----------------------------------------------------------------------------------

    async def list(self, what: Listing, revision: str = "") -> Listed:
        for attempt in range(1, _LIST_TRIES + 1):
            try:
                return await self._list(what, _number(revision or "0"))
            except RevisionGone:
                if revision or attempt == _LIST_TRIES:
                    raise
        raise AssertionError("unreachable")

    async def _list(self, what: Listing, revision: int) -> Listed:
        start, end = _range(what)
        listed, more = Listed([], ""), True
        while more:
            request = proto.range_(start, end, limit=_PAGE, revision=revision)
            reply = await self._link.call(proto.RANGE, request)
            revision = revision or reply.revision  # the following pages are of the first one's moment
            listed.revision = listed.revision or str(reply.revision)
            for entry in reply.entries:
                found = _interpret(what, entry)
                if isinstance(found, KV):
                    listed.items.append(found)
                elif found is not None:
                    listed.broken.append(found)
            if more := reply.more:
                start = reply.entries[-1].key + b"\0"
        return listed

    def serves(self, what: Listing) -> bool:
        return not isinstance(what, KUBERNETES_ONLY)

    async def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        start, end = _range(what)
        known = _number(revision)
        replies = self._link.watch(proto.watch(start, end, known + 1))
        async with contextlib.aclosing(replies):
            async for reply in replies:
                if reply.created:
                    if reply.revision < known:
                        # Restored from a backup, or a member that lags: waiting for the future to come
                        # would miss what happens until then.
                        raise RevisionGone(f"etcd is at revision {reply.revision}, before {known}")
                    yield WatchEvent("bookmark", revision)  # the watch stands
                elif not reply.events and reply.watch_id >= 0:
                    # etcd's own report of this watch's progress, in order with its events. The answer
                    # to a request for one (watch_id -1) may overtake events before 3.4.25 and 3.5.8.
                    yield WatchEvent("bookmark", str(reply.revision))
                for event in _events(what, reply):
                    yield event


# --- between etcd's messages and ours -----------------------------------------------------------


_LISTED = ResourceKey | BlockKey | AffinityKey | HandleKey | WorkloadStatusKey  # keys that parse() knows


def _path(key: Key) -> bytes:
    path = key.path()
    # "/" inside a name would silently address another object, or one that no list shows.
    found = parse(path)
    if found != key and (found is not None or isinstance(key, _LISTED)):
        raise _bad_name(key, path)
    try:
        return path.encode()
    except UnicodeEncodeError as err:  # JSON can spell half a surrogate pair
        raise _bad_name(key, ascii(path)) from err


def _bad_name(key: Key, path: str) -> ValidationError:
    field, value = ("metadata.name", key.name) if isinstance(key, ResourceKey) else ("key", path)
    return ValidationError([FieldError(field, value, "invalid resource name")])


def _range(what: Listing) -> tuple[bytes, bytes]:
    start = what.prefix().encode("utf-8", "replace")
    return start, start[:-1] + bytes([start[-1] + 1])


def _bytes(value: msgspec.Struct, origin: dict[str, Any] | None = None) -> bytes:
    if isinstance(value, Resource):  # the revision is etcd's, never part of the stored object
        value = value.with_metadata(resourceVersion="")
        if isinstance(value.origin, dict) and isinstance(metadata := value.origin.get("metadata"), dict):
            stored = {name: field for name, field in metadata.items() if name != "selfLink"}
            value = structs.replace(value, origin=value.origin | {"metadata": stored})
    return codec.encode(value, origin)


def _unchanged(path: bytes, revision: str) -> bytes:
    # 0 is etcd's revision of what does not exist; as a condition it must not match that.
    return proto.compare_revision(path, _number(revision) or -1)


def _number(revision: str) -> int:
    if revision.isascii() and revision.isdecimal() and len(revision) <= 19:
        number = int(revision)
        if number <= _MAX_REVISION:
            return number
    raise ValidationError([FieldError("ResourceVersion", revision, "invalid resource version")])


def _kv(key: Key, entry: proto.Entry) -> KV:
    """Raises ValidationError if the stored bytes are not what the key promises."""
    value, revision = codec.decode(key.type, entry.value), str(entry.revision)
    if isinstance(key, ResourceKey) and isinstance(value, Resource):
        # The key decides who this is: a body that says otherwise must not impersonate another object.
        value = value.with_metadata(name=key.name, namespace=key.namespace, resourceVersion=revision)
        return KV(key, value, revision)
    return KV(key, value, revision, msgspec.json.decode(entry.value or b"{}"))


def _stored(key: Key, value: Any, revision: int, origin: dict[str, Any] | None = None) -> KV:
    if isinstance(value, Resource):
        value = value.with_metadata(resourceVersion=str(revision))
    return KV(key, value, str(revision), origin)


def _readable(key: Key, entry: proto.Entry) -> KV | None:
    try:
        return _kv(key, entry)
    except ValidationError:
        return None


def _current(key: Key, reply: proto.TxnReply) -> KV | None:
    """What a failed condition found instead, as far as it can be understood."""
    return _readable(key, reply.entries[0]) if reply.entries else None


def _lost(key: Key, reply: proto.TxnReply) -> Exception:
    """Why a compare failed: the object is gone, or somebody else wrote it."""
    if not reply.entries:
        return ResourceDoesNotExist(key)
    return UpdateConflict(key, _current(key, reply))


def _interpret(what: Listing, entry: proto.Entry, deleted: bool = False) -> KV | Broken | None:
    """One stored entry, without a value if it was deleted; None if it does not belong to the listing."""
    try:
        where = entry.key.decode()
    except UnicodeDecodeError:
        where = repr(entry.key)[2:-1]
        return Broken(where, None, ValidationError([FieldError("key", where, "not UTF-8")]))
    key = parse(where)
    if key is None or not what.contains(key):
        return None
    if deleted:
        return KV(key, None, str(entry.revision))
    try:
        return _kv(key, entry)
    except ValidationError as err:
        return Broken(where, key, err)


def _events(what: Listing, reply: proto.WatchReply) -> Iterator[WatchEvent]:
    """Events with the revision to resume after: until the last of a transaction, the one before it."""
    revisions = [entry.revision for _, entry in reply.events]
    following = [*revisions[1:], revisions[-1] if reply.fragment and revisions else 0]
    for (deleted, entry), after in zip(reply.events, following, strict=False):
        resume = str(entry.revision - (after == entry.revision))
        found = _interpret(what, entry, deleted)
        if isinstance(found, KV):
            yield WatchEvent("deleted" if deleted else "set", resume, found)
        elif found is not None and not deleted:
            yield WatchEvent("broken", resume, broken=found)
