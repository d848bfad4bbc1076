"""The etcd v3 backend: Calico's keys and JSON, one transaction per write.

Atomicity is etcd's: create if the key's version is 0, update and delete if its mod revision is the
one read before. No multi-key transaction is used anywhere (reference: Calico data model, 1.4).
Connections, endpoints, TLS and login are etcdlink's.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from tortie.core.errors import (
    DatastoreUnreachable,
    FieldError,
    ResourceAlreadyExists,
    ResourceDoesNotExist,
    RevisionGone,
    UpdateConflict,
    ValidationError,
)
from tortie.datastore import codec
from tortie.datastore.backend import KV, Broken, Listed, WatchEvent
from tortie.datastore.config import DatastoreConfig
from tortie.datastore.etcdlink import EtcdLink
from tortie.datastore.etcdrpc import rpc_pb2 as pb
from tortie.datastore.keys import Key, Listing, ResourceKey, parse
from tortie.datastore.types.meta import Resource

# A quiet watch is asked for a sign of life this often, and given up when none comes in time.
# 10 s matches Calico's gRPC keep-alive timeout; it also catches a server that lives but is stuck.
_PROGRESS_INTERVAL = 10.0
_PROGRESS_TIMEOUT = 20.0


class EtcdBackend:
    """Implements datastore.backend.Backend."""

    def __init__(self, config: DatastoreConfig) -> None:
        self._link = EtcdLink(config)

    async def close(self) -> None:
        await self._link.close()

    # --- single objects -------------------------------------------------------------------------

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        path = _path(key)
        condition = pb.Compare(key=path, target=pb.Compare.VERSION, result=pb.Compare.EQUAL, version=0)
        reply = await self._txn(condition, _put(path, _bytes(value)), _get(path))
        if not reply.succeeded:
            raise ResourceAlreadyExists(key, current=_current(key, reply))
        return _written(key, value, reply)

    async def update(self, kv: KV) -> KV:
        path = _path(kv.key)
        data = _bytes(kv.value, kv.origin)
        reply = await self._txn(_unchanged(path, kv.revision), _put(path, data), _get(path))
        if not reply.succeeded:
            raise _lost(kv.key, reply)
        return _written(kv.key, kv.value, reply, kv.origin)

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        lease = 0
        if ttl is not None:
            granted = await self._link.call("lease", pb.LeaseGrantRequest(TTL=max(1, round(ttl))))
            lease = granted.ID
        put = pb.PutRequest(key=_path(key), value=_bytes(value), lease=lease)
        reply = await self._link.call("put", put)
        return KV(key, value, str(reply.header.revision))

    async def delete(self, key: Key, revision: str = "") -> KV:
        path = _path(key)
        drop = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=path, prev_kv=True))
        reply = await self._txn(_unchanged(path, revision) if revision else None, drop, _get(path))
        if not reply.succeeded:
            raise _lost(key, reply)
        deleted = reply.responses[0].response_delete_range.prev_kvs
        if not deleted:
            raise ResourceDoesNotExist(key)
        try:
            return _kv(key, deleted[0])
        except ValidationError:  # an unreadable object must still be deletable
            return KV(key, None, str(deleted[0].mod_revision))

    async def get(self, key: Key, revision: str = "") -> KV:
        request = pb.RangeRequest(key=_path(key), revision=_number(revision or "0"))
        reply = await self._link.call("range", request)
        if not reply.kvs:
            raise ResourceDoesNotExist(key)
        return _kv(key, reply.kvs[0])

    async def _txn(self, condition: Any, success: Any, failure: Any) -> Any:
        compare = [condition] if condition is not None else []
        return await self._link.call(
            "txn", pb.TxnRequest(compare=compare, success=[success], failure=[failure])
        )

    # --- sets -----------------------------------------------------------------------------------

    async def list(self, what: Listing, revision: str = "") -> Listed:
        start, end = _range(what)
        request = pb.RangeRequest(key=start, range_end=end, revision=_number(revision or "0"))
        reply = await self._link.call("range", request)
        listed = Listed([], str(reply.header.revision))
        for entry in reply.kvs:
            event = _interpret(what, entry)
            if event is not None and event.kv is not None:
                listed.items.append(event.kv)
            elif event is not None and event.broken is not None:
                listed.broken.append(event.broken)
        return listed

    async def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        start, end = _range(what)
        create = pb.WatchCreateRequest(
            key=start, range_end=end, start_revision=_number(revision) + 1, progress_notify=True
        )
        requests: asyncio.Queue[Any] = asyncio.Queue()
        requests.put_nowait(pb.WatchRequest(create_request=create))
        async with self._link.watch(requests) as replies:
            while True:
                reply = await _next_reply(replies, requests)
                if reply.canceled:
                    raise _watch_ended(reply)
                if reply.created:  # the watch stands: whoever waited for the datastore may say so
                    yield WatchEvent("bookmark", revision)
                for event in reply.events:
                    if (told := _event(what, event)) is not None:
                        yield told
                # No bookmarks: before 3.4.25 and 3.5.8 etcd may answer a progress request ahead of
                # events that it has yet to send; resuming from there would lose them.


async def _next_reply(replies: AsyncIterator[Any], requests: asyncio.Queue[Any]) -> Any:
    """The next message, prodding a silent server once; raises DatastoreUnreachable if it stays silent."""
    pending = asyncio.ensure_future(anext(replies, None))
    try:
        for wait in (_PROGRESS_INTERVAL, _PROGRESS_TIMEOUT):
            done, _ = await asyncio.wait([pending], timeout=wait)
            if done:
                if (reply := pending.result()) is None:
                    raise DatastoreUnreachable("etcd closed the watch stream")
                return reply
            requests.put_nowait(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
        raise DatastoreUnreachable(f"etcd watch silent for {_PROGRESS_INTERVAL + _PROGRESS_TIMEOUT:.0f} s")
    finally:
        pending.cancel()


def _watch_ended(reply: Any) -> Exception:
    if reply.compact_revision:
        return RevisionGone(f"etcd compacted history up to revision {reply.compact_revision}")
    return DatastoreUnreachable(f"etcd cancelled the watch: {reply.cancel_reason or 'no reason given'}")


# --- between etcd's messages and ours -----------------------------------------------------------


def _path(key: Key) -> bytes:
    path = key.path()
    # "/" inside a name would silently address another object; IPAM's host key has no parse() form.
    if isinstance(key, ResourceKey) and parse(path) != key:
        raise ValidationError([FieldError("metadata.name", key.name, "invalid resource name")])
    return path.encode()


def _range(what: Listing) -> tuple[bytes, bytes]:
    start = what.prefix().encode()
    return start, start[:-1] + bytes([start[-1] + 1])


def _bytes(value: msgspec.Struct, origin: dict[str, Any] | None = None) -> bytes:
    if isinstance(value, Resource):  # the revision is etcd's, never part of the stored object
        value = value.with_metadata(resourceVersion="")
        if isinstance(value.origin, dict) and isinstance(value.origin.get("metadata"), dict):
            value.origin["metadata"].pop("selfLink", None)
    return codec.encode(value, origin)


def _put(path: bytes, data: bytes) -> Any:
    return pb.RequestOp(request_put=pb.PutRequest(key=path, value=data))


def _get(path: bytes) -> Any:
    return pb.RequestOp(request_range=pb.RangeRequest(key=path))


def _unchanged(path: bytes, revision: str) -> Any:
    number = _number(revision)
    return pb.Compare(key=path, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=number)


def _number(revision: str) -> int:
    if not revision.isascii() or not revision.isdecimal() or len(revision) > 19:
        raise ValidationError([FieldError("ResourceVersion", revision, "invalid resource version")])
    return int(revision)


def _kv(key: Key, entry: Any) -> KV:
    """Raises ValidationError if the stored bytes are not what the key promises."""
    revision = str(entry.mod_revision)
    value = codec.decode(key.type, entry.value)
    if isinstance(value, Resource):
        assert isinstance(key, ResourceKey) and isinstance(value.origin, dict)
        # The key decides who this is: a body that says otherwise must not impersonate another object.
        value = value.with_metadata(resourceVersion=revision, name=key.name, namespace=key.namespace)
        return KV(key, value, revision)
    return KV(key, value, revision, msgspec.json.decode(entry.value or b"{}"))


def _written(key: Key, value: msgspec.Struct, reply: Any, origin: dict[str, Any] | None = None) -> KV:
    revision = str(reply.header.revision)
    if isinstance(value, Resource):
        value = value.with_metadata(resourceVersion=revision)
    return KV(key, value, revision, origin)


def _current(key: Key, reply: Any) -> KV | None:
    entries = reply.responses[0].response_range.kvs
    try:
        return _kv(key, entries[0]) if entries else None
    except ValidationError:
        return None


def _lost(key: Key, reply: Any) -> Exception:
    """Why a compare failed: the object is gone, or somebody else wrote it."""
    if not reply.responses[0].response_range.kvs:
        return ResourceDoesNotExist(key)
    return UpdateConflict(key, _current(key, reply))


def _interpret(what: Listing, entry: Any) -> WatchEvent | None:
    """One stored entry as an event, None if it does not belong to the listing."""
    where = entry.key.decode("utf-8", "replace")
    revision = str(entry.mod_revision)
    key = parse(where)
    if key is None or not what.contains(key):
        return None
    try:
        return WatchEvent("set", revision, _kv(key, entry))
    except ValidationError as err:
        return WatchEvent("broken", revision, broken=Broken(where, key, err))


def _event(what: Listing, event: Any) -> WatchEvent | None:
    if event.type == event.PUT:
        return _interpret(what, event.kv)
    key = parse(event.kv.key.decode("utf-8", "replace"))
    if key is None or not what.contains(key):
        return None
    revision = str(event.kv.mod_revision)
    return WatchEvent("deleted", revision, KV(key, None, revision))
