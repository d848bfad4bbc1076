"""Many allocators on one datastore, one request at a time, in an order that the test decides.

Every request of every actor stops here and waits for its turn. The test picks whose is next and what
becomes of it: carried out, lost, carried out without an answer, or its actor dies before or after it.
Between two requests there is nothing that could be left to chance, so a failing order can be shrunk
and repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import msgspec

from tests.support.memory_backend import MemoryBackend
from tortie.core.errors import DatastoreError, DatastoreUnreachable
from tortie.datastore.backend import KV, Listed, WatchEvent
from tortie.datastore.keys import Key, Listing

Fate = Literal["done", "lost", "unanswered", "dies before", "dies after"]

_WRITES = ("create", "update", "apply", "delete")
_TURNS = 30  # of the loop, after which all tasks wait for a request; gather and locks nest a few deep


class Dead(BaseException):
    """The actor was killed; nothing it does has an effect any more, not even in its finally clauses."""


@dataclass(eq=False)
class Actor:
    name: str
    alive: bool = True


_actor: ContextVar[Actor] = ContextVar("actor")


@dataclass(eq=False)
class _Request:
    actor: Actor
    kind: str
    what: object
    turn: asyncio.Future[Fate]

    def __str__(self) -> str:
        return f"{self.actor.name}: {self.kind} {self.what}"


class Scheduler:
    """`choose(waiting)`: the index of the next request. `fate(request number)`: what becomes of it."""

    def __init__(
        self,
        choose: Callable[[Sequence[str]], int],
        fate: Callable[[int], Fate] = lambda _number: "done",
        after_write: Callable[[str], None] = lambda _what: None,
    ) -> None:
        self._choose = choose
        self._fate = fate
        self._after_write = after_write
        self._waiting: list[_Request] = []
        self.history: list[str] = []
        self.current = ""  # the request whose fate is asked for

    async def run(self, actors: Iterable[tuple[str, Coroutine[Any, Any, None]]]) -> None:
        """Until all actors have ended or died; then raises what the first of them raised."""
        tasks = [asyncio.create_task(_as_actor(Actor(name), script)) for name, script in actors]
        while True:
            await self._settle(tasks)
            if all(task.done() for task in tasks):
                break
            assert self._waiting, f"deadlock after {self.history[-10:]}"
            request = self._waiting.pop(self._choose([str(request) for request in self._waiting]))
            fate: Fate = "done"
            self.current = str(request)
            if request.kind in _WRITES:
                fate = self._fate(len(self.history))
            self.history.append(f"{request} {fate}")
            request.turn.set_result(fate)
        errors = [task.exception() for task in tasks]
        for err in errors:
            if err is not None and not isinstance(err, Dead):
                raise err

    async def _settle(self, tasks: list[asyncio.Task[None]]) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            if all(task.done() for task in tasks):
                return

    async def turn(self, kind: str, what: object, action: Callable[[], Awaitable[Any]]) -> Any:
        actor = _actor.get()
        if not actor.alive:
            raise Dead
        request = _Request(actor, kind, what, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        fate = await request.turn
        if not actor.alive:
            raise Dead
        if fate in ("done", "unanswered", "dies after"):
            try:
                result = await action()
            except DatastoreError:
                if fate == "done":
                    raise
                result = None
            if kind in _WRITES:
                self._after_write(self.history[-1])
        if fate in ("lost", "unanswered"):
            raise DatastoreUnreachable("etcd does not answer")
        if fate in ("dies before", "dies after"):
            actor.alive = False
            raise Dead
        return result


async def _as_actor(actor: Actor, script: Coroutine[Any, Any, None]) -> None:
    _actor.set(actor)
    await script


class ScheduledBackend:
    """Implements datastore.backend.Backend; each request waits for its turn."""

    refused: frozenset[tuple[str, str]] = frozenset()

    def __init__(self, scheduler: Scheduler, memory: MemoryBackend) -> None:
        self._turn = scheduler.turn
        self._memory = memory

    async def create(self, key: Key, value: msgspec.Struct) -> KV:
        return await self._turn("create", key, lambda: self._memory.create(key, value))  # type: ignore[no-any-return]

    async def update(self, kv: KV) -> KV:
        return await self._turn("update", kv.key, lambda: self._memory.update(kv))  # type: ignore[no-any-return]

    async def apply(self, key: Key, value: msgspec.Struct, ttl: float | None = None) -> KV:
        return await self._turn("apply", key, lambda: self._memory.apply(key, value))  # type: ignore[no-any-return]

    async def delete(self, key: Key, revision: str = "") -> KV:
        return await self._turn("delete", key, lambda: self._memory.delete(key, revision))  # type: ignore[no-any-return]

    async def get(self, key: Key, revision: str = "") -> KV:
        return await self._turn("get", key, lambda: self._memory.get(key))  # type: ignore[no-any-return]

    async def list(self, what: Listing, revision: str = "") -> Listed:
        return await self._turn("list", what, lambda: self._memory.list(what))  # type: ignore[no-any-return]

    def serves(self, what: Listing) -> bool:
        return self._memory.serves(what)

    def watch(self, what: Listing, revision: str) -> AsyncIterator[WatchEvent]:
        return self._memory.watch(what, revision)

    async def close(self) -> None:
        return None


def at_random(seed: int, loyalty: float) -> Callable[[Sequence[str]], int]:
    """Any order; with probability `loyalty` whoever was last goes on, which lets the others be overtaken."""
    random = Random(seed)
    last = ""

    def choose(waiting: Sequence[str]) -> int:
        nonlocal last
        same = [index for index, text in enumerate(waiting) if text.partition(":")[0] == last]
        chosen = same[0] if same and random.random() < loyalty else random.randrange(len(waiting))
        last = waiting[chosen].partition(":")[0]
        return chosen

    return choose


def stages(*steps: tuple[str, str]) -> Callable[[Sequence[str]], int]:
    """An order told as a story: each (actor, request) runs the actor until it is about to make that request.

    An empty request runs the actor to its end. After the last stage everybody goes on in turn. A stage
    that does not happen as told shows in the outcome of the test, which is about that very race.
    """
    remaining = list(steps)

    def choose(waiting: Sequence[str]) -> int:
        while remaining:
            actor, stop = remaining[0]
            index = next((i for i, text in enumerate(waiting) if text.startswith(f"{actor}: ")), None)
            if index is not None and not (stop and stop in waiting[index]):
                return index
            remaining.pop(0)
        return 0

    return choose
