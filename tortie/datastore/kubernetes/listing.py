"""Lists and watches of collections, from pages and lines of JSON to what they are of ours.

A collection that the server does not have (its definition is not installed) is empty, and is looked
for again from time to time. A watch goes on over the server's time limits: it ends only with an error.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace

import msgspec

from tortie.core.errors import DatastoreUnreachable, FieldError, RevisionGone, Unauthorized, ValidationError
from tortie.datastore.backend import KV, Broken, Listed, WatchEvent
from tortie.datastore.keys import Listing
from tortie.datastore.kubernetes.api import Api, Change, Refused
from tortie.datastore.kubernetes.reading import metadata_of
from tortie.datastore.kubernetes.sources import Query, Source, interpret

_PAGE = 500  # objects per request of a list: bounds an answer's memory and the time it takes to decode
_LIST_TRIES = 3  # a list is begun anew if its revision is compacted while it is being read
_ABSENT = "-"  # the revision of a collection that the server does not have
_ABSENT_POLL = 60.0  # seconds between looks whether it has it now; Calico's half hour is a long time to wait


class _ListMeta(msgspec.Struct, frozen=True):
    resourceVersion: str = ""
    more: str = msgspec.field(name="continue", default="")


class Page(msgspec.Struct, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: list[msgspec.Raw] | None = None


def read_page(raw: bytes) -> Page:
    """Raises DatastoreUnreachable for what is no list."""
    try:
        return msgspec.json.decode(raw, type=Page)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise DatastoreUnreachable(f"this is not a list of an API server: {err}") from err


def at_revision(revision: str) -> dict[str, str]:
    """Query parameters for a collection as it was."""
    return {"resourceVersion": revision, "resourceVersionMatch": "Exact"} if revision else {}


def split(revision: str, count: int) -> list[str]:
    """The part of a revision that is each collection's. Raises ValidationError."""
    parts = revision.split("/")
    if len(parts) == count:
        return parts
    if len(parts) == 1:  # an object's: the server counts all collections together
        return [revision] * count
    raise ValidationError([FieldError("ResourceVersion", revision, "invalid resource version")])


def check_revision(revision: str) -> None:
    """Raises ValidationError: without one the API server would overwrite whatever is there."""
    if not revision.isascii() or not revision.isdecimal():
        raise ValidationError([FieldError("ResourceVersion", revision, "invalid resource version")])


# --- lists --------------------------------------------------------------------------------------


async def list_all(api: Api, what: Listing, queries: list[Query], revision: str) -> Listed:
    """In key order. Raises RevisionGone if a revision was given that is compacted."""
    listed, revisions = Listed([], ""), []
    for query, part in zip(queries, split(revision, len(queries)), strict=True):
        at, found = await _list(api, query, part)
        revisions.append(at)
        for one in found:
            if isinstance(one, Broken):
                listed.broken.append(one)
            elif one.value is not None and what.contains(one.key):
                listed.items.append(one)
    listed.revision = "/".join(revisions)
    listed.items.sort(key=lambda kv: kv.key.path())
    return listed


async def _list(api: Api, query: Query, revision: str) -> tuple[str, list[KV | Broken]]:
    if revision == _ABSENT:
        return _ABSENT, []
    for attempt in range(1, _LIST_TRIES + 1):
        try:
            return await _pages(api, query, revision)
        except RevisionGone:
            if revision or attempt == _LIST_TRIES:
                raise
        except (Refused, Unauthorized) as err:
            if await _is_absent(api, query.source, err):
                return _ABSENT, []
            raise
    raise AssertionError("unreachable")


async def _is_absent(api: Api, source: Source, err: Refused | Unauthorized) -> bool:
    """Whether a collection was refused because there is none.

    An older role than ours does not name it, and then the server does not say so. But everybody may ask for
    the API group.
    """
    if isinstance(err, Refused):
        return err.status == 404
    try:
        await api.get(source.group)
    except Refused as answer:
        return answer.status == 404
    return False


async def _pages(api: Api, query: Query, revision: str) -> tuple[str, list[KV | Broken]]:
    options = {**query.selectors, "limit": str(_PAGE)}
    page = read_page(await api.get(query.path, options | at_revision(revision)))
    at, found = page.metadata.resourceVersion, _interpreted(query.source, page)
    while page.metadata.more:
        page = read_page(await api.get(query.path, options | {"continue": page.metadata.more}))
        found += _interpreted(query.source, page)
    return at, found


def _interpreted(source: Source, page: Page) -> list[KV | Broken]:
    return [one for item in page.items or [] if (one := interpret(source, bytes(item))) is not None]


# --- watches ------------------------------------------------------------------------------------


async def watch_all(
    api: Api, what: Listing, queries: list[Query], revision: str
) -> AsyncGenerator[WatchEvent, None]:
    """The events of all collections; first a bookmark, once every watch stands."""
    parts = split(revision, len(queries))
    watches = [_follow(api, what, query, part) for query, part in zip(queries, parts, strict=True)]
    standing: set[int] = set()
    early: list[WatchEvent] = []  # of watches that stood before others
    async with contextlib.aclosing(_merged(watches)) as events:
        async for index, event in events:
            parts[index] = event.revision
            event = replace(event, revision="/".join(parts))
            if len(standing) == len(watches):
                yield event
            elif event.type == "bookmark" and index not in standing:
                standing.add(index)
                if len(standing) == len(watches):
                    yield WatchEvent("bookmark", revision)
                    for one in early:
                        yield one
            else:
                early.append(event)


async def _follow(api: Api, what: Listing, query: Query, revision: str) -> AsyncGenerator[WatchEvent, None]:
    """One collection: a bookmark when the watch stands, then its events."""
    if revision == _ABSENT:
        yield WatchEvent("bookmark", revision)
        await _until_present(api, query)
    told = False
    while True:
        try:
            async with contextlib.aclosing(api.watch(query.path, query.selectors, revision)) as changes:
                async for change in changes:
                    if change is not None:
                        event = _event(what, query.source, change, revision)
                        revision = event.revision
                        yield event
                    elif not told:
                        told = True
                        yield WatchEvent("bookmark", revision)
        except Refused as err:
            if err.status == 404:
                raise RevisionGone(f"{query.path} is not served any more") from err
            raise


async def _until_present(api: Api, query: Query) -> None:
    """Raises RevisionGone when the server has the collection."""
    while True:
        await asyncio.sleep(_ABSENT_POLL)
        try:
            await api.get(query.path, {"limit": "1"})
        except (Refused, Unauthorized) as err:
            if await _is_absent(api, query.source, err):
                continue
            raise
        raise RevisionGone(f"{query.path} is served now")


def _event(what: Listing, source: Source, change: Change, before: str) -> WatchEvent:
    """One change as it concerns the listing; what does not concern it only moves the revision."""
    raw = bytes(change.object)
    revision = metadata_of(raw).resourceVersion or before
    found = None if change.type == "BOOKMARK" else interpret(source, raw)
    if isinstance(found, Broken) and change.type != "DELETED":
        return WatchEvent("broken", revision, broken=found)
    if found is None or found.key is None or not what.contains(found.key):
        return WatchEvent("bookmark", revision)
    if change.type == "DELETED" or not isinstance(found, KV) or found.value is None:
        return WatchEvent("deleted", revision, KV(found.key, None, revision))
    return WatchEvent("set", revision, found)


async def _merged(
    streams: list[AsyncGenerator[WatchEvent, None]],
) -> AsyncGenerator[tuple[int, WatchEvent], None]:
    """Events of all streams as they come, each with its stream's number; the first error ends all."""
    coming = {asyncio.ensure_future(_next(stream)): index for index, stream in enumerate(streams)}
    try:
        while coming:
            done, _ = await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = coming.pop(task)
                event = task.result()
                coming[asyncio.ensure_future(_next(streams[index]))] = index
                yield index, event
    finally:
        for task in coming:
            task.cancel()
        if coming:
            await asyncio.wait(coming)
        for stream in streams:
            await stream.aclose()


async def _next(stream: AsyncGenerator[WatchEvent, None]) -> WatchEvent:
    return await anext(stream)
